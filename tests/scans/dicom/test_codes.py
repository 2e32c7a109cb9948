import pytest
from pydicom.sr.codedict import codes

from delineate.prompts.anatomy import STRUCTURES
from delineate.scans.dicom.codes import TERMS, private_code
from delineate.scans.dicom.segments import concepts


def test_every_known_structure_has_a_term():
    assert {structure.name for structure in STRUCTURES} <= TERMS.keys()


@pytest.mark.parametrize("name", TERMS)
def test_every_keyword_is_in_pydicoms_dictionary(name):
    category, kind, modifier, regions = concepts(name)
    assert category.scheme_designator == kind.scheme_designator == "SCT"
    assert category in (codes.SCT.AnatomicalStructure, codes.SCT.MorphologicallyAbnormalStructure)
    assert all(region.scheme_designator == "SCT" for region in regions)
    if name.startswith(("left ", "right ")):
        assert modifier is not None
        assert modifier.meaning.lower() == name.split()[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("liver", "10200004"),
        ("spleen", "78961009"),
        ("pancreas", "15776009"),
        ("aorta", "15825003"),
        ("inferior vena cava", "64131007"),
        ("portal vein", "32764006"),
        ("gallbladder", "28231008"),
        ("hippocampus", "5366008"),
    ],
)
def test_codes_that_people_know_by_heart(name, value):
    assert concepts(name)[1].value == value
    assert concepts(name.upper())[1].value == value


def test_left_and_right_differ_by_their_modifier_alone():
    left, right = concepts("left adrenal gland"), concepts("right adrenal gland")
    assert left[1] == right[1]
    assert left[2] != right[2]


def test_unknown_names_get_private_codes_that_fit_and_differ():
    made = [concepts(name)[1] for name in ("left wing", "leftwing", "left-wing", "ein Flügel", "x" * 200, "   ", "肝")]
    assert {code.scheme_designator for code in made} == {"99DELINEATE"}
    assert all(1 <= len(code.value) <= 16 for code in made)
    assert private_code("left wing") == "LEFTWING"
    assert len({code.value for code in made[2:]}) == 5
