"""What a prompt asks of a model: several names, generic words, all but some, parts; and what is refused."""

import pytest

from delineate.prompts.understanding import in_words, understood
from delineate.prompts.vocabulary import Vocabulary

ABDOMEN = Vocabulary.from_names(
    [
        "spleen",
        "right kidney",
        "left kidney",
        "gallbladder",
        "esophagus",
        "liver",
        "stomach",
        "aorta",
        "inferior vena cava",
        "portal and splenic vein",
        "pancreas",
        "right adrenal gland",
        "left adrenal gland",
    ],
    "CT",
)
KIDNEYS = ("right kidney", "left kidney")
HOUSE = ABDOMEN.merged(Vocabulary.from_names(["lung nodule"], "CT")).merged(
    Vocabulary.from_names(["breast lesion", "fetal head"], "US").merged(
        Vocabulary.from_names(["skin lesion"], "dermoscopy")
    )
)


def names(text, vocabulary=ABDOMEN, modality=None):
    return understood(text, vocabulary, modality).targets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("liver", ("liver",)),
        ("kidneys", KIDNEYS),
        ("both kidneys", KIDNEYS),
        ("Kidney", KIDNEYS),
        ("please segment the kidneys", KIDNEYS),
        ("adrenals", ("right adrenal gland", "left adrenal gland")),
        ("suprarenal glands", ("right adrenal gland", "left adrenal gland")),
        ("liver and spleen", ("liver", "spleen")),
        ("liver, spleen, aorta", ("liver", "spleen", "aorta")),
        ("liver/spleen & pancreas", ("liver", "spleen", "pancreas")),
        ("left and right kidney", ("left kidney", "right kidney")),
        ("kidneys and the liver", (*KIDNEYS, "liver")),
        ("portal and splenic vein, liver", ("portal and splenic vein", "liver")),
        ("liver, hepatic organ", ("liver",)),
        ("kidney on the left", ("left kidney",)),
        ("everything", ABDOMEN.names),
        ("all organs", ABDOMEN.names),
        ("all organs in this CT, please", ABDOMEN.names),
    ],
)
def test_names_several_and_generic(text, expected):
    assert names(text) == expected


@pytest.mark.parametrize(
    "but", ["everything but", "all organs except", "all except for", "the organs without", "all, minus"]
)
def test_all_but_some(but):
    left = names(f"{but} the liver and the kidneys")
    assert set(left) == set(ABDOMEN.names) - {"liver", *KIDNEYS}
    assert names(f"{but} the flux capacitor") == ()


def test_a_side_said_somewhere_is_that_of_the_name_where_the_model_tells_sides_apart():
    lungs = Vocabulary.from_names(["lungs", "right lung", "left lung"], "CT")
    assert names("lung (right)", lungs) == names("outline the lung on the patient's right", lungs) == ("right lung",)
    assert names("lungs", lungs) == ("lungs",)
    assert names("kidney (L)") == ("left kidney",)


def test_not_these_but_those():
    without = tuple(name for name in ABDOMEN.names if name not in KIDNEYS)
    assert names("no kidneys, but everything else") == without
    vessels = {"aorta", "inferior vena cava", "portal and splenic vein"}
    for text in ("not the vessels, only the organs", "the organs without the vessels"):
        assert set(names(text)) == set(ABDOMEN.names) - vessels


def test_where_nothing_is_left_nothing_was_understood():
    two = Vocabulary.from_names(["liver", "left kidney"])
    assert names("everything but the liver and the left kidney", two) == ()
    assert names("left kidney but not the left one", two) == ()


def test_of_one_thing_nothing_is_cut_out_and_that_is_said():
    assert understood("liver without vessels", ABDOMEN).said == "liver; nothing is cut out of it"


def test_all_organs_are_no_findings():
    assert names("all organs", HOUSE) == (*ABDOMEN.names, "fetal head")
    assert names("everything", HOUSE) == HOUSE.names


@pytest.mark.parametrize("word", ["lesion", "the tumour", "mass", "nodule", "Tumor?"])
def test_a_finding_is_what_the_picture_can_show(word):
    assert names(word, HOUSE, "US") == ("breast lesion",)
    told = understood(word, HOUSE)
    assert told.targets == ()
    assert "breast lesion" in told.by_scan
    assert names(word, ABDOMEN) == ()


def test_a_word_for_findings_of_one_kind_needs_no_picture():
    assert understood("lesion", Vocabulary.from_names(["liver", "skin lesion"])).said == "skin lesion"


@pytest.mark.parametrize("text", ["left lobe of the liver", "the tail of the pancreas", "wall of gallbladder"])
def test_of_a_part_the_whole_is_answered_and_said_so(text):
    told = understood(text, ABDOMEN)
    assert len(told.targets) == 1
    assert told.said.startswith(f"all of the {told.targets[0]}: a part of it is not known apart")


@pytest.mark.parametrize(
    "text",
    [
        "tumour in the liver",
        "hepatic artery",
        "not the liver",
        "liver and banana",
        "liver, banana",
        "liver, thyroid",
        "liver with femur",
        "flux capacitor",
        "thyroid",
        "spinal cord",
        "DROP TABLE users",
        "🙂",
        "hello",
    ],
)
def test_what_is_not_known_is_refused(text):
    assert names(text) == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Gallbladder, not distended, no stones", "gallbladder"),
        ("Spleen - no focal lesion", "spleen"),
        ("aorta, no aneurysm", "aorta"),
    ],
)
def test_what_a_report_says_of_a_name_changes_nothing_and_that_is_said(text, name):
    told = understood(text, ABDOMEN)
    assert told.targets == (name,)
    assert told.said == f"{name}; the rest of the words changes nothing"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("spleen with splenic vein", ("spleen", "portal and splenic vein")),
        ("organs at risk: liver, kidneys", ("liver", *KIDNEYS)),
        ("the liver and not the spleen", ("liver",)),
        ("liver, not the kidneys", ("liver",)),
        ("everything you know in this scan", ABDOMEN.names),
        ("contour the stomach for pancreas surgery planning", ("stomach",)),
        ("righ kidney", ("right kidney",)),
        ("lef kidney", ("left kidney",)),
        ("ren sinister", ("left kidney",)),
        ("bowel, small", ()),
        ("spleen pancreas liver", ("spleen", "pancreas", "liver")),
        ("L and R kidney", KIDNEYS),
        ("kidneys but not the left one", ("right kidney",)),
        ("the pair of kidneys and the aorta", (*KIDNEYS, "aorta")),
        ("aorta, liver (work-up)", ("aorta", "liver")),
        ("the spleen and the liver, not the kidneys", ("spleen", "liver")),
        ("all of them please", ABDOMEN.names),
        ("full multi-organ segmentation", ABDOMEN.names),
        ("all abdominal organs", ABDOMEN.names),
        ("the veins", ("inferior vena cava", "portal and splenic vein")),
        ("all blood vessels", ("aorta", "inferior vena cava", "portal and splenic vein")),
    ],
)
def test_ways_in_which_people_ask(text, expected):
    assert names(text) == expected


def test_words_for_several_structures():
    gut = Vocabulary.from_names(["colon", "small bowel", "liver"], "CT")
    assert names("bowel", gut) == names("large and small intestine", gut) == ("colon", "small bowel")
    assert names("head", HOUSE, "US") == ("fetal head",)
    assert names("head", HOUSE) == names("head", HOUSE, "CT") == ()


def test_the_kind_of_picture_may_stand_among_the_words():
    assert names("mass on ultrasound", HOUSE) == ("breast lesion",)
    assert names("lesion mask for the dermoscopic picture", HOUSE) == ("skin lesion",)


def test_a_side_that_was_said_is_never_the_other():
    for vocabulary in (
        Vocabulary.from_names(["right kidney"]),
        Vocabulary.from_names(["right adrenal gland", "liver"]),
    ):
        assert names("the left kidney", vocabulary) == names("left suprarenal", vocabulary) == ()


def test_names_of_a_model_alone_are_known_to_its_reader():
    femurs = Vocabulary.from_names(["left femur", "right femur"])
    assert names("femurs", femurs) == ("left femur", "right femur")
    assert names("femur on the left", femurs) == ("left femur",)
    assert names("liver", femurs) == ()


def test_what_was_understood_is_said():
    assert understood("kidneys", ABDOMEN).said == "right kidney and left kidney"
    assert understood("liver", ABDOMEN).said == ""
    assert in_words(["a"]) == "a"
    assert in_words(["a", "b", "c"]) == "a, b and c"


def test_of_unknown_words_the_nearest_names_are_told():
    assert understood("livr3x", ABDOMEN).nearest[0] == "liver"
    assert set(understood("renal artery", ABDOMEN).nearest) & set(KIDNEYS)
