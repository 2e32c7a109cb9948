import pytest
from hypothesis import given
from hypothesis import strategies as st

from delineate.errors import DelineateError
from delineate.prompts.anatomy import MODALITIES, MODALITY_CODES
from delineate.prompts.modality import modality_code

SPELT = {
    "CT": ["ct", "CTA", "CBCT", "computed tomography", "Computed_Tomography", "CT scan", "contrast-enhanced CT", "CT (HU)"],
    "MR": ["MRI", "T1", "t2-spir", "T1w", "T2-weighted", "FLAIR", "cine MRI", "mr_t2", "T1-weighted MRI", "fMRI", "DWI"],
    "US": [" us ", "Ultrasound", "breast ultrasound", "sonography"],
    "PET": ["PT", "FDG-PET", "positron emission tomography"],
    "XR": ["X-ray", "chest x ray", "DX", "CR", "radiograph"],
    "fundus": ["fundus", "retinal photograph", "fundus photograph"],
    "photo": ["photo", "clinical photograph"],
}  # fmt: skip


@pytest.mark.parametrize(("code", "stated"), [(code, text) for code, texts in SPELT.items() for text in texts])
def test_usual_spellings_are_understood(code, stated):
    assert modality_code(stated) == code
    assert modality_code([stated]) == code
    assert modality_code(stated.upper()) == code


@given(st.sampled_from([*MODALITY_CODES, *(words for spelt in MODALITIES.values() for words in spelt)]))
def test_every_spelling_of_the_tables_gives_a_code_of_the_table_and_codes_stay(stated):
    code = modality_code(stated)
    assert code in MODALITIES
    assert modality_code(code) == code


def test_other_words_stand_for_themselves_and_nothing_is_none():
    assert modality_code("Thermography ") == "Thermography"
    assert modality_code("direct view") == "direct view"  # no CT in "direct"
    assert modality_code("adjust us") == "US"
    assert [modality_code(nothing) for nothing in (None, "", "  ")] == [None] * 3


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [
        ("PET/CT", "'PET/CT' names CT and PET"),
        (["CT", "MR"], "must be one word"),
        (0, "got 0"),
        ([["CT"]], "must be one"),
    ],
)
def test_what_is_no_single_kind_is_refused_in_words(stated, wanted):
    with pytest.raises(DelineateError, match=wanted):
        modality_code(stated)
