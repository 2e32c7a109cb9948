"""What structures, parts and modalities are called: plain tables, no code.

Names are those of the public label sets (BTCV, AMOS, TotalSegmentator, MSD, MedSegBench); synonyms are other
English names in use and common clinical shorthand. Spelling (British, American), plurals, word order and
adjectives ("hepatic") need no entry of their own: `delineate.prompts.matching` derives them.
"""

from typing import NamedTuple


class Structure(NamedTuple):
    """One thing that can be outlined: its name, other names, and the part of the body ("" if anywhere)."""

    name: str
    synonyms: tuple[str, ...] = ()
    region: str = ""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


STRUCTURES: tuple[Structure, ...] = (
    Structure("spleen", (), "abdominal"),
    Structure("right kidney", ("RK",), "abdominal"),
    Structure("left kidney", ("LK",), "abdominal"),
    Structure("kidney", (), "abdominal"),
    Structure("gallbladder", ("gall bladder", "GB"), "abdominal"),
    Structure("esophagus", ("oesophagus", "gullet"), "abdominal"),
    Structure("liver", ("hepar",), "abdominal"),
    Structure("stomach", (), "abdominal"),
    Structure("aorta", (), "abdominal"),
    Structure("inferior vena cava", ("IVC", "postcava", "posterior vena cava"), "abdominal"),
    Structure(
        "portal and splenic vein",
        ("portal vein and splenic vein", "portal/splenic vein", "PSV", "PV/SV"),
        "abdominal",
    ),
    Structure("pancreas", (), "abdominal"),
    Structure(
        "right adrenal gland",
        ("RAG", "right adrenal", "right suprarenal gland", "right suprarenal"),
        "abdominal",
    ),
    Structure("left adrenal gland", ("LAG", "left adrenal", "left suprarenal gland", "left suprarenal"), "abdominal"),
    Structure("adrenal gland", ("adrenal", "suprarenal gland", "suprarenal"), "abdominal"),
    Structure("duodenum", (), "abdominal"),
    Structure("bladder", ("urinary bladder",), "pelvic"),
    Structure("prostate", ("prostate gland",), "pelvic"),
    Structure("heart", (), "chest"),
    Structure("lungs", ("lung", "both lungs"), "chest"),
    Structure("right lung", (), "chest"),
    Structure("left lung", (), "chest"),
    Structure("lung nodule", ("pulmonary nodule", "nodule in the lung"), "chest"),
    Structure("hippocampus", ("hippocampal formation",), "brain"),
    Structure(
        "anterior hippocampus",
        ("hippocampus head", "head of the hippocampus", "anterior part of the hippocampus"),
        "brain",
    ),
    Structure(
        "posterior hippocampus",
        (
            "hippocampus body and tail",
            "body and tail of the hippocampus",
            "posterior part of the hippocampus",
        ),
        "brain",
    ),
    Structure("polyp", ("colon polyp", "colorectal polyp", "colonic polyp", "bowel polyp")),
    Structure(
        "skin lesion",
        ("melanoma lesion", "skin melanoma", "melanoma", "mole", "naevus", "nevus", "pigmented lesion"),
    ),
    Structure(
        "breast lesion",
        (
            "breast tumour",
            "breast tumor",
            "breast mass",
            "breast cancer",
            "breast cancer lesion",
            "breast nodule",
            "breast carcinoma",
        ),
        "breast",
    ),
    Structure("fetal head", ("head of the fetus", "fetus head"), "fetal"),
    Structure("nuclei", ("nucleus", "cell nuclei", "cell nucleus")),
    Structure("retinal vessels", ("retinal blood vessels", "retinal vasculature", "vessels of the retina")),
    Structure("colon", ("large bowel", "large intestine"), "abdominal"),
    Structure("small bowel", ("small intestine",), "abdominal"),
    Structure("lesion", ()),
    Structure("tumour", ("tumor", "neoplasm")),
    Structure("liver tumour", ("liver tumor", "hepatic tumour", "hepatic tumor"), "abdominal"),
    Structure("kidney tumour", ("kidney tumor", "renal tumour", "renal tumor"), "abdominal"),
    Structure("spine", ("spinal column", "vertebral column", "backbone")),
    Structure("vertebrae", ("vertebra", "vertebral bodies")),
)

# What the word "lesion" asks for, all together, of a model that knows some of them.
FINDINGS: frozenset[str] = frozenset(
    {
        "polyp",
        "skin lesion",
        "breast lesion",
        "lung nodule",
        "nuclei",
        "lesion",
        "tumour",
        "liver tumour",
        "kidney tumour",
    }
)

# What a word for findings of many kinds may mean, in plain form; the model's names and the kind of picture decide.
GENERIC_FINDINGS: dict[str, frozenset[str]] = {
    "lesion": FINDINGS - {"nuclei"},
    "finding": FINDINGS - {"nuclei"},
    "abnormality": FINDINGS - {"nuclei"},
    "tumor": FINDINGS - {"nuclei", "polyp"},
    "tumour": FINDINGS - {"nuclei", "polyp"},
    "neoplasm": FINDINGS - {"nuclei", "polyp"},
    "mass": FINDINGS - {"nuclei", "polyp", "skin lesion"},
    "cancer": FINDINGS - {"nuclei", "polyp", "lung nodule"},
    "nodule": frozenset({"lung nodule", "breast lesion"}),
    "growth": FINDINGS - {"nuclei"},
}

# What a word for several structures may mean, in plain form, where the model has no such name itself.
GENERIC_STRUCTURES: dict[str, frozenset[str]] = {
    "bowel": frozenset({"colon", "small bowel"}),
    "intestine": frozenset({"colon", "small bowel"}),
    "gut": frozenset({"colon", "small bowel"}),
    "head": frozenset({"fetal head"}),
    "vessel": frozenset({"aorta", "inferior vena cava", "portal and splenic vein", "retinal vessels"}),
    "vein": frozenset({"inferior vena cava", "portal and splenic vein"}),
}

# Words one slip away from "left" and "right" that are words of their own.
NO_SIDES = _words(
    "light night sight tight might fight eight bright wright rite lift loft let lent felt deft heft weft cleft lefty "
    "leet lest lets rights lefts fright"
)

# What a part of a thing is called; none of these is a finding in it, or a thing beside it.
PIECE_WORDS = _words(
    "lobe lobule segment head neck body tail tip pole cortex medulla wall capsule dome border edge margin surface rim "
    "core part piece half portion quadrant zone parenchyma cavity lumen fundus antrum pylorus cardia hilum isthmus "
    "arch root bulb apex base valve ventricle atrium septum chamber myocardium parenchymal uncinate process limb"
)

# A word that stands for another one wherever it appears, so that "right renal" is "right kidney".
WORD_ALIASES: dict[str, str] = {
    "r": "right",
    "dexter": "right",
    "dextra": "right",
    "dextrum": "right",
    "sinister": "left",
    "sinistra": "left",
    "sinistrum": "left",
    "ren": "kidney",
    "pulmo": "lung",
    "suprarenalis": "adrenal",
    "glandula": "gland",
    "rt": "right",
    "l": "left",
    "lt": "left",
    "suprarenal": "adrenal",
    "vasculature": "vessel",
    "nephros": "kidney",
}
ADJECTIVES: dict[str, str] = {
    "splenic": "spleen",
    "renal": "kidney",
    "hepatic": "liver",
    "gastric": "stomach",
    "aortic": "aorta",
    "pancreatic": "pancreas",
    "duodenal": "duodenum",
    "oesophageal": "esophagus",
    "esophageal": "esophagus",
    "vesical": "bladder",
    "prostatic": "prostate",
    "cardiac": "heart",
    "pulmonary": "lung",
    "hippocampal": "hippocampus",
    "colonic": "colon",
    "colorectal": "colon",
    "cutaneous": "skin",
    "mammary": "breast",
    "nuclear": "nucleus",
    "retinal": "retina",
    "spinal": "spine",
    "vertebral": "vertebra",
}

SIDES = _words(
    "left right bilateral both unilateral ipsilateral contralateral anterior posterior superior "
    "inferior upper lower middle ascending descending medial lateral dorsal ventral proximal distal caudal cranial "
    "central peripheral inner outer interior exterior internal external"
)

# Beside a structure's name these make another target: "liver tumour" is not the liver.
PART_WORDS = _words(
    "tumor lesion cyst vessel vein artery metastasis lobe lobule capsule nodule stone calculus cancer "
    "carcinoma sarcoma lymphoma adenoma hemangioma melanoma mass wall duct valve ventricle atrium "
    "chamber arch root trunk branch tract cord canal disc disk process node lymph nerve muscle fat bone "
    "marrow cortex medulla pelvis hilum fissure ligament sinus lumen head neck body tail tip apex base "
    "dome border edge boundary margin surface rim core part piece half portion quadrant zone parenchyma "
    "tissue cell blood bile gland plexus septum sphincter antrum pylorus bulb thrombus clot plaque "
    "aneurysm stent graft catheter hemorrhage hematoma bleed bleeding abscess effusion edema infarct "
    "necrosis fibrosis scar fracture ulcer polyp diverticulum hernia lymphnode background "
    "adenocarcinoma neoplasm growth ureter urethra uterus ovary testis rectum ileum ilium jejunum cecum "
    "appendix trachea bronchus thyroid brain skull rib pleura pericardium myocardium diaphragm "
    "mesentery peritoneum omentum eye retina optic macula cup skin breast"
)

# Ordinary words one slip away from a structure's name: never "corrected" into it.
REAL_WORDS = _words(
    "river lever lover diver fiver giver silver deliver color colony clone heard hearth earth ladder "
    "blander shine spice spike spite swine spire spline legion lesson beast breath abreast module humor "
    "rumor moral coral plural visual fundus interior exterior hepatitis nephritis gastritis"
)

# Parts of the body that say where a scan was taken when an image word follows: "brain MR".
REGIONS = _words("brain head neck abdomen abdominal chest thorax thoracic pelvis pelvic breast skin retina fetal")

# Words for the region of a `Structure`: "abdominal aorta" is the aorta that the table has in the abdomen. Not
# "head" and "neck", which are parts of organs too.
REGION_WORDS: dict[str, str] = {
    "abdominal": "abdominal",
    "abdomen": "abdominal",
    "pelvic": "pelvic",
    "pelvis": "pelvic",
    "chest": "chest",
    "thoracic": "chest",
    "thorax": "chest",
    "brain": "brain",
    "cerebral": "brain",
}

# Kinds of picture that never show what another kind shows.
FAMILIES: tuple[frozenset[str], ...] = (
    frozenset({"CT", "MR", "PET", "XR", "US", "mammography"}),
    frozenset({"endoscopy"}),
    frozenset({"dermoscopy"}),
    frozenset({"fundus", "OCT"}),
    frozenset({"microscopy", "histopathology"}),
)

# Kinds of flat picture that look alike whichever side is up; an ultrasound has its skin above, a radiograph its heart.
TURNABLE = frozenset({"endoscopy", "dermoscopy", "microscopy", "histopathology", "fluorescence"})

# Regions that one scan often shows together.
TRUNK = frozenset({"chest", "abdominal", "pelvic"})

# Modality code -> how people write it, most usual first; captions use the first ones, prompts know them all.
MODALITIES: dict[str, tuple[str, ...]] = {
    "CT": ("CT", "computed tomography", "CAT"),
    "MR": ("MR", "MRI", "magnetic resonance"),
    "US": ("ultrasound", "ultrasonography", "sonography", "sonogram"),
    "XR": ("X-ray", "radiograph", "radiography"),
    "PET": ("PET", "positron emission tomography"),
    "OCT": ("OCT", "optical coherence tomography"),
    "mammography": ("mammography", "mammogram"),
    "endoscopy": ("endoscopy", "colonoscopy", "endoscopic"),
    "dermoscopy": ("dermoscopy", "dermatoscopy", "dermoscopic"),
    "microscopy": ("microscopy", "microscope", "micrograph"),
    "histopathology": ("histopathology", "histology", "pathology"),
    "fundus": ("fundus photograph", "retinal photograph", "fundus photo"),
    "photo": ("photograph", "photo", "picture"),
}

# What datasets write for a modality, lower-case -> the code above.
MODALITY_CODES: dict[str, str] = {
    **dict.fromkeys(("ct", "cta", "cbct", "cect", "ncct", "ldct", "hrct"), "CT"),
    **dict.fromkeys(("mr", "mri", "mra", "cmr", "fmri", "mrcp"), "MR"),
    "us": "US",
    "ultrasound": "US",
    "xr": "XR",
    "xray": "XR",
    "x-ray": "XR",
    "dr": "XR",
    "cr": "XR",
    "dx": "XR",
    "pt": "PET",
    "pet": "PET",
    "oct": "OCT",
    "mg": "mammography",
    "mammography": "mammography",
    "es": "endoscopy",
    "endoscopy": "endoscopy",
    "colonoscopy": "endoscopy",
    "dermoscopy": "dermoscopy",
    "dermatoscopy": "dermoscopy",
    "sm": "microscopy",
    "microscopy": "microscopy",
    "histopathology": "histopathology",
    "pathology": "histopathology",
    "fundus": "fundus",
    "op": "fundus",
    "photo": "photo",
    "photograph": "photo",
    "xc": "photo",
}
