import pytest
from tests.prompts.test_vocabulary import V

from delineate.prompts import anatomy
from delineate.prompts.captions import captions, modality_words, scan_captions
from delineate.prompts.concept import Concept


@pytest.mark.parametrize("modality", [None, *anatomy.MODALITIES, "my scanner"])
def test_every_caption_names_its_concept(modality):
    for concept in V.concepts:
        lines = captions(concept, modality)
        assert len(lines) >= 12
        assert len(set(lines)) == len(lines)
        assert lines[0] == concept.name
        for line in lines if modality != "my scanner" else ():
            assert V.match(line).concept == concept, line


def test_captions_say_the_modality_in_words():
    lines = captions(V.concepts[5], "CT")
    assert "segmentation mask of the liver in a CT image" in lines
    assert "segmentation mask of the liver in a computed tomography image" in lines
    assert "segmentation mask of the liver in an MR image" in captions(V.concepts[5], "mri")
    assert "hepatic segmentation" in lines
    assert modality_words("US")[0] == "ultrasound"
    assert modality_words(None) == ()


def test_scan_captions():
    assert "an abdominal CT slice showing liver and spleen" in scan_captions(["liver", "spleen"], "CT")
    assert "an MR image of liver, spleen and pancreas" in scan_captions(["liver", "spleen", "pancreas"], "MR")
    assert scan_captions([], "XR")[0] == "an X-ray slice"
    assert captions(V.concepts[0], "CT", "scan") == scan_captions(["spleen"], "CT")


def test_captions_are_made_once():
    liver = V.concepts[V.index("liver")]
    assert captions(liver, "CT") is captions(Concept(liver.name, liver.synonyms, liver.modalities), modality="CT")
    assert scan_captions(["liver"], "CT") is scan_captions(iter(["liver", "liver"]), "CT")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be 'mask' or 'scan', not 'map'"):
        captions(V.concepts[0], kind="map")  # pyright: ignore[reportArgumentType]
