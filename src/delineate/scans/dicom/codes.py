"""What anatomy is called in SNOMED CT: the codes of a DICOM segment for every name of `delineate.prompts.anatomy`.

Codes come from pydicom's own dictionaries by their keyword; none is typed here. A name that is not in the table gets a
code of the private scheme 99DELINEATE, made from the name itself.
"""

import hashlib
from typing import NamedTuple

SCHEME = "99DELINEATE"

ANATOMY, ABNORMAL = "AnatomicalStructure", "MorphologicallyAbnormalStructure"


class Term(NamedTuple):
    """Keywords of SNOMED CT in `pydicom.sr.codedict`.

    Attributes:
        category: of the segmented property.
        kind: its type.
        modifier: of the type, such as the side.
        regions: where it lies, if its type does not say so.
    """

    category: str
    kind: str
    modifier: str | None = None
    regions: tuple[str, ...] = ()


TERMS: dict[str, Term] = {
    "spleen": Term(ANATOMY, "Spleen"),
    "right kidney": Term(ANATOMY, "Kidney", "Right"),
    "left kidney": Term(ANATOMY, "Kidney", "Left"),
    "kidney": Term(ANATOMY, "Kidney"),
    "gallbladder": Term(ANATOMY, "Gallbladder"),
    "esophagus": Term(ANATOMY, "Esophagus"),
    "liver": Term(ANATOMY, "Liver"),
    "stomach": Term(ANATOMY, "Stomach"),
    "aorta": Term(ANATOMY, "Aorta"),
    "inferior vena cava": Term(ANATOMY, "InferiorVenaCava"),
    "portal and splenic vein": Term(ANATOMY, "Vein", None, ("PortalVein", "SplenicVein")),
    "portal vein": Term(ANATOMY, "PortalVein"),
    "pancreas": Term(ANATOMY, "Pancreas"),
    "right adrenal gland": Term(ANATOMY, "AdrenalGland", "Right"),
    "left adrenal gland": Term(ANATOMY, "AdrenalGland", "Left"),
    "adrenal gland": Term(ANATOMY, "AdrenalGland"),
    "duodenum": Term(ANATOMY, "Duodenum"),
    "bladder": Term(ANATOMY, "Bladder"),
    "prostate": Term(ANATOMY, "Prostate"),
    "heart": Term(ANATOMY, "Heart"),
    "lungs": Term(ANATOMY, "Lung", "RightAndLeft"),
    "right lung": Term(ANATOMY, "Lung", "Right"),
    "left lung": Term(ANATOMY, "Lung", "Left"),
    "lung nodule": Term(ABNORMAL, "Nodule", None, ("Lung",)),
    "hippocampus": Term(ANATOMY, "Hippocampus"),
    "anterior hippocampus": Term(ANATOMY, "Hippocampus", "Anterior"),
    "posterior hippocampus": Term(ANATOMY, "Hippocampus", "Posterior"),
    "polyp": Term(ABNORMAL, "PolypOfColon"),
    "skin lesion": Term(ABNORMAL, "Lesion", None, ("Skin",)),
    "breast lesion": Term(ABNORMAL, "Lesion", None, ("Breast",)),
    "fetal head": Term(ANATOMY, "Head"),
    "nuclei": Term(ANATOMY, "Nucleus"),
    "retinal vessels": Term(ANATOMY, "BloodVessel", None, ("Retina",)),
    "colon": Term(ANATOMY, "Colon"),
    "small bowel": Term(ANATOMY, "SmallIntestine"),
    "lesion": Term(ABNORMAL, "Lesion"),
    "tumour": Term(ABNORMAL, "Neoplasm"),
    "liver tumour": Term(ABNORMAL, "Neoplasm", None, ("Liver",)),
    "kidney tumour": Term(ABNORMAL, "Neoplasm", None, ("Kidney",)),
    "spine": Term(ANATOMY, "Spine"),
    "vertebrae": Term(ANATOMY, "Vertebra"),
}


def private_code(name: str) -> str:
    """The code of a name that has none: its letters and digits, and eight digits of its hash where that is ambiguous.

    >>> private_code("left lung base")
    'LEFTLUNGBASE'
    >>> private_code("a name that is a good deal too long for a code")
    'ANAMETH-0BEA7563'
    """
    plain = "".join(c for c in name.upper() if c.isascii() and c.isalnum())
    if 0 < len(plain) <= 16 and plain == name.upper().replace(" ", ""):
        return plain
    return f"{plain[:7]}-{hashlib.sha256(name.encode()).hexdigest()[:8].upper()}".lstrip("-")
