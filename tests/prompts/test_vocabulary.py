import subprocess
import sys

import pytest

from delineate.errors import DatasetError, ModelError, PromptError
from delineate.prompts import anatomy
from delineate.prompts.concept import Concept
from delineate.prompts.prompt import Prompt
from delineate.prompts.vocabulary import Vocabulary, canonical_name, unknown_prompt_message

LABELS = """
spleen Right_Kidney kidney_left gallbladder esophagus liver stomach aorta postcava
portal_vein_and_splenic_vein pancreas  adrenal_gland_right left_adrenal_gland polyp skin_lesion
breast_lesion nuclei retinal_vessels Anterior_Hippocampus  posterior_hippocampus lung_nodule
"""
V = Vocabulary.from_names(LABELS.split(), "CT")

KNOWN = {
    "liver": "liver",
    "LIVER": "liver",
    "LiVeR": "liver",
    "  the liver. ": "liver",
    "livers": "liver",
    "hepatic": "liver",
    "lliver": "liver",
    "lievr": "liver",
    "liver CT": "liver",
    "liver (MRI)": "liver",
    "please outline the liver in this CT scan": "liver",
    "segment the liver": "liver",
    "could you segment out the liver for radiotherapy planning in this 54-year-old man with cirrhosis?": "liver",
    "abdominal CT: liver": "liver",
    "which pixels belong to the liver?": "liver",
    "the liver's outline": "liver",
    "the liver in this spleen CT": "liver",
    "spleen": "spleen",
    "Splenic": "spleen",
    "spleeen": "spleen",
    "where is the left kidney?": "left kidney",
    "kidney, left": "left kidney",
    "KIDNEY_LEFT": "left kidney",
    "LeftKidney": "left kidney",
    "L kidney": "left kidney",
    "LK": "left kidney",
    "left renal": "left kidney",
    "left kidny": "left kidney",
    "right renal": "right kidney",
    "kidney right": "right kidney",
    "right nephros": "right kidney",
    "Rt. kidney": "right kidney",
    "kidney on the right": "right kidney",
    "RK": "right kidney",
    "gall bladder": "gallbladder",
    "gall-bladder": "gallbladder",
    "gallblader": "gallbladder",
    "oesophagus": "esophagus",
    "Œsophagus": "esophagus",
    "oesophageal": "esophagus",
    "esophagos": "esophagus",
    "gastric": "stomach",
    "aortic": "aorta",
    "IVC": "inferior vena cava",
    "inferior vena cava": "inferior vena cava",
    "vena cava, inferior": "inferior vena cava",
    "postcava": "inferior vena cava",
    "portal and splenic vein": "portal and splenic vein",
    "portal vein and splenic vein": "portal and splenic vein",
    "the splenic and portal veins": "portal and splenic vein",
    "portal/splenic vein": "portal and splenic vein",
    "pancreatic": "pancreas",
    "pancraes": "pancreas",
    "RAG": "right adrenal gland",
    "right suprarenal gland": "right adrenal gland",
    "left adrenal": "left adrenal gland",
    "left adrenal gland": "left adrenal gland",
    "adrenal gland left": "left adrenal gland",
    "colon polyps": "polyp",
    "the polyp in this colonoscopy image": "polyp",
    "polyp in the colon": "polyp",
    "mole": "skin lesion",
    "naevi": "skin lesion",
    "melanoma lesion": "skin lesion",
    "lesion on the skin": "skin lesion",
    "breast tumour": "breast lesion",
    "breast tumor": "breast lesion",
    "breast mass in an ultrasound image": "breast lesion",
    "breast cancer lesion": "breast lesion",
    "tumour of the breast": "breast lesion",
    "cell nuclei": "nuclei",
    "nucleus": "nuclei",
    "all nuclei, please": "nuclei",
    "blood vessels of the retina": "retinal vessels",
    "retinal vessel": "retinal vessels",
    "hippocampus head": "anterior hippocampus",
    "head of the hippocampus": "anterior hippocampus",
    "anterior hippocampus on brain MRI": "anterior hippocampus",
    "hippocampal body and tail": "posterior hippocampus",
    "pulmonary nodules": "lung nodule",
    "abdominal aorta": "aorta",
    "the aorta, abdominal part": "aorta",
    "abdominal segment of the aorta": "aorta",
    "aorta in the abdomen": "aorta",
    "whole liver": "liver",
    "entire spleen": "spleen",
    "R kidney": "right kidney",
    "rt kidney": "right kidney",
    "lt kidney": "left kidney",
    "kidney (left)": "left kidney",
    "left-sided kidney": "left kidney",
    "kidney on the right side": "right kidney",
    "GB": "gallbladder",
    "PV/SV": "portal and splenic vein",
    "PV and SV": "portal and splenic vein",
    "Lt adrenals": "left adrenal gland",
}

# text -> a name that must be among the nearest, or None where nothing needs to be near
UNKNOWN = {
    "": None,
    "???": None,
    "печень": None,
    "banana": None,
    "livr3": "liver",
    "kidney": "left kidney",
    "kidneys": "right kidney",
    "both kidneys": "right kidney",
    "left and right kidney": "left kidney",
    "light kidney": "right kidney",
    "left of the kidney": "left kidney",
    "leftkidney": "left kidney",
    "adrenal gland": "right adrenal gland",
    "right liver": "liver",
    "liver tumour": "liver",
    "hepatic tumor": "liver",
    "liver lesin": "liver",
    "tumour of the liver": "liver",
    "spots on the liver": "liver",
    "cirrhotic liver": "liver",
    "liver segment": "liver",
    "segment 4 of the liver": "liver",
    "left lobe of the liver": "liver",
    "liver capsule": "liver",
    "hepatic vein": "liver",
    "splenic vein": "portal and splenic vein",
    "portal vein": "portal and splenic vein",
    "pancreatic duct": "pancreas",
    "aortic valve": "aorta",
    "stomach wall": "stomach",
    "gallbladder stones": "gallbladder",
    "left kidney stones": "left kidney",
    "left renal artery": "left kidney",
    "bladder": "gallbladder",
    "breast": "breast lesion",
    "skin": "skin lesion",
    "nodule": "lung nodule",
    "hippocampus": "anterior hippocampus",
    "everything but the liver": "liver",
    "no liver": "liver",
    "not the liver": "liver",
    "don't outline the liver": "liver",
    "without the liver": "liver",
    "all organs except liver": "liver",
    "excpet the liver": "liver",
    "leave out the liver": "liver",
    "the organ next to the liver": "liver",
    "above the liver": "liver",
    "outside of the liver": "liver",
    "liver and spleen": "spleen",
    "liver or spleen": "spleen",
    "liver and thymus": "liver",
    "liver and lungs": "liver",
    "lung and nodule": "lung nodule",
    "the thoracic aorta": "aorta",
    "ascending aorta": "aorta",
    "aorta, ascending part": "aorta",
    "infrarenal abdominal aorta": "aorta",
    "upper abdominal aorta": "aorta",
    "part of the abdominal aorta": "aorta",
    "abdominal aortic aneurysm": "aorta",
    "abdominal wall": None,
    "not the abdominal aorta": "aorta",
    "bilateral kidneys": "left kidney",
    "left side of the kidney": "left kidney",
    "L/R kidney": "right kidney",
    "adrenals": "left adrenal gland",
    "Leber": "liver",
    "PV": "portal and splenic vein",
    "tumor": "breast lesion",
    "abdominal polyp": "polyp",
    "liver including tumour": "liver",
    "heart attack": None,
    "river": "liver",
    "lever": "liver",
}


@pytest.mark.parametrize(("text", "name"), KNOWN.items())
def test_names_one_concept(text, name):
    match = V.match(text)
    assert match.concept is not None, match.nearest
    assert match.concept.name == name
    assert match.concept == V.concepts[V.index(name)]


@pytest.mark.parametrize(("text", "near"), UNKNOWN.items())
def test_unknown_is_never_guessed(text, near):
    match = V.match(text)
    assert match.concept is None
    assert len(match.nearest) <= 5
    assert set(match.nearest) <= set(V.names)
    assert near is None or near in match.nearest


def test_a_part_matches_once_it_is_a_concept():
    assert V.merged(Vocabulary.from_names(["liver tumor"])).match("hepatic tumours").concept.name == "liver tumour"


@pytest.mark.parametrize(
    ("names", "text", "name"),
    [
        ("aorta|thoracic aorta", "abdominal aorta", None),  # the vocabulary tells its parts apart
        ("aorta|thoracic aorta", "thoracic aorta", "thoracic aorta"),
        ("aorta|abdominal aorta", "abdominal aorta", "abdominal aorta"),
        ("hippocampus", "hippocampus of the brain", "hippocampus"),
        ("hippocampus", "head of the hippocampus", None),
        ("hippocampus|anterior hippocampus", "anterior brain hippocampus", "anterior hippocampus"),
        ("kidney", "both kidneys", "kidney"),
        ("kidney", "left kidney", None),
        ("kidney", "left side of the kidney", None),
        ("kidney", "renal pelvis", None),
        ("kidney", "pelvic kidney", None),
        ("tumour", "tumor", "tumour"),
        ("tumour", "tumours", "tumour"),
        ("tumour", "brain tumour", None),
        ("liver|liver tumour", "tumour", None),
    ],
)
def test_what_a_word_changes_depends_on_the_vocabulary(names, text, name):
    match = Vocabulary.from_names(names.split("|")).match(text)
    assert (match.concept and match.concept.name) == name
    assert match.concept or match.nearest


def test_a_known_word_is_never_corrected_into_another():
    assert Vocabulary.from_names(["urethra"]).match("ureter").concept is None
    assert Vocabulary.from_names(["posterior hippocampus"]).match("anterior hippocampus").concept is None


@pytest.mark.parametrize("structure", anatomy.STRUCTURES, ids=lambda one: one.name)
def test_the_table_knows_its_own_names(structure):
    for name in (structure.name, *structure.synonyms):
        for spelling in (name, name.upper(), name.replace(" ", "_")):
            assert canonical_name(spelling) == structure.name


def test_no_phrase_of_the_table_names_two_structures():
    names = [structure.name for structure in anatomy.STRUCTURES]
    assert Vocabulary.from_names(names).names == tuple(names)


def test_labels_become_canonical_names():
    assert V.names[:3] == ("spleen", "right kidney", "left kidney")
    assert Vocabulary.from_names(["Foo_Bar"], "CT").concepts == (Concept("foo bar", (), ("CT",)),)
    for spelling in ("kidney_right", "Right_Kidney", "R kidney", "RightKidney", "kidney (right)"):
        assert canonical_name(spelling) == "right kidney"


def test_json_round_trip():
    assert Vocabulary.from_json(V.to_json()) == V


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"concepts": [], "extra": 1},
        {"concepts": [{"name": "liver", "colour": "red"}]},
        {"concepts": [{"synonyms": []}]},
        {"concepts": [{"name": "liver", "synonyms": "hepar"}]},
        {"concepts": [{"name": "liver"}, {"name": "Liver"}]},
    ],
)
def test_from_json_refuses(value):
    with pytest.raises(ModelError):
        Vocabulary.from_json(value)


def test_merging_unites_synonyms_and_modalities():
    other = Vocabulary((Concept("liver", ("big organ",), ("MR",)), Concept("thing")))
    merged = V.merged(other)
    assert merged.names == (*V.names, "thing")
    assert merged.match("big organ").concept.modalities == ("CT", "MR")
    assert V.merged(V) == V


def test_clashes_are_refused():
    with pytest.raises(DatasetError, match="'liver' would name both 'hepatoma' and 'liver'"):
        Vocabulary((Concept("hepatoma", ("liver",)),)).merged(Vocabulary.from_names(["liver"]))
    with pytest.raises(DatasetError, match="twice"):
        Vocabulary.from_names(["kidney_right", "right renal"])
    with pytest.raises(DatasetError, match="name of letters"):
        Vocabulary.from_names(["__"])


def test_index_of_an_unknown_name():
    with pytest.raises(PromptError, match="nearest: liver"):
        V.index("livers")


def test_prompts_are_checked_at_the_door():
    assert Prompt("liver").text == "liver"
    with pytest.raises(PromptError, match="empty"):
        Prompt("  ")
    with pytest.raises(PromptError, match="200 characters; this one has 201"):
        Prompt("x" * 201)


def test_message():
    assert unknown_prompt_message("a\nb", (), "--model m") == (
        "'a b' is not in this model's vocabulary. List all with: delineate prompts --model m"
    )


def test_importing_is_light():
    code = "import sys, delineate.prompts.vocabulary; print(sorted({'torch', 'monai', 'scipy', 'numpy', 'pydantic', 'nibabel', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Lesions: a vocabulary that knows several kinds, and the word for all of them


LESIONS = Vocabulary.from_names(["polyp", "skin lesion", "breast lesion", "lung nodule", "nuclei", "lesion"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("lesion", "lesion"),
        ("the lesion", "lesion"),
        ("lesions", "lesion"),
        ("outline the lesion", "lesion"),
        ("every lesion in this image", "lesion"),
        ("the lesion in this ultrasound", "lesion"),
        ("lession", "lesion"),
        ("polyp", "polyp"),
        ("colorectal polyp", "polyp"),
        ("breast lesion", "breast lesion"),
        ("the lesion of the breast", "breast lesion"),
        ("breast tumour", "breast lesion"),
        ("skin lesion", "skin lesion"),
        ("outline the skin lesion", "skin lesion"),
        ("cutaneous lesion", "skin lesion"),
        ("lung nodule", "lung nodule"),
        ("cell nuclei", "nuclei"),
    ],
)
def test_a_kind_of_lesion_is_meant_where_it_is_named_and_else_any(text, name):
    assert LESIONS.match(text).concept.name == name


@pytest.mark.parametrize(
    "text",
    [
        "liver lesion",
        "hepatic lesion",
        "lesion in the liver",
        "lung lesion",  # not every lesion there is a nodule
        "brain lesion",
        "lesion border",
        "no lesion",
        "lesion near the polyp",
        "skin",
        "nodule",
        "skin and breast lesion",
    ],
)
def test_another_lesion_is_never_taken_for_any(text):
    match = LESIONS.match(text)
    assert match.concept is None
    assert set(match.nearest) <= set(LESIONS.names)


def test_the_findings_are_the_lesions_of_the_table():
    names = {structure.name for structure in anatomy.STRUCTURES}
    assert names >= anatomy.FINDINGS >= set(LESIONS.names)
    lesions = {name for name in names if {"lesion", "tumour", "nodule", "polyp"} & set(name.split())}
    assert anatomy.FINDINGS - lesions == {"nuclei"}  # not lesions, but what a lesion model is asked in a slide
    assert lesions <= anatomy.FINDINGS  # a new one in the table must not be forgotten
    assert not {"liver", "colon", "retinal vessels"} & anatomy.FINDINGS


def test_a_merged_vocabulary_begins_with_the_first_so_that_numbers_of_its_names_stay():
    first = Vocabulary.from_names(["liver", "spleen", "kidney_left"])
    merged = first.merged(Vocabulary.from_names(["aorta", "spleen", "foo"]))
    assert merged.names == ("liver", "spleen", "left kidney", "aorta", "foo")
