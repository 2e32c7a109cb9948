"""A colour for every structure, the same in every file: whoever learns that the liver is blue is right everywhere.

The first seven are Okabe and Ito's. The others were chosen one after another, each as far as can be from those before
it in CIELAB, as everybody sees them and as people without red or without green cones do (Machado et al. 2009): no two
of the table are nearer than 14, or 10 without such cones, where 2.3 can just be seen.
"""

import hashlib

CONSENSUS = "#D55E00"  # of what is outlined as the answer
DISTINCT = ("#56B4E9", "#F0E442")  # of proposals: on grey, on skin and beside the consensus told apart by everyone

COLOURS: dict[str, str] = {
    "spleen": "#E69F00",
    "right kidney": "#56B4E9",
    "left kidney": "#009E73",
    "gallbladder": "#F0E442",
    "liver": "#0072B2",
    "aorta": "#D55E00",
    "stomach": "#CC79A7",
    "inferior vena cava": "#6900FF",
    "pancreas": "#00FF96",
    "portal and splenic vein": "#4B78FF",
    "esophagus": "#B40F2D",
    "right adrenal gland": "#4BFFFF",
    "left adrenal gland": "#96A55A",
    "duodenum": "#87E1B4",
    "kidney": "#784B78",
    "adrenal gland": "#693CC3",
    "bladder": "#87F069",
    "prostate": "#2DA5FF",
    "lungs": "#3CC3D2",
    "right lung": "#4B693C",
    "left lung": "#FF6987",
    "heart": "#C30000",
    "lung nodule": "#0F695A",
    "colon": "#C300A5",
    "small bowel": "#694BFF",
    "polyp": "#E1963C",
    "hippocampus": "#3CFFE1",
    "anterior hippocampus": "#87D269",
    "posterior hippocampus": "#2D78D2",
    "fetal head": "#D2693C",
    "nuclei": "#5AD2C3",
    "retinal vessels": "#78E1FF",
    "tumour": "#F00069",
    "spine": "#69FFB4",
    "vertebrae": "#69B496",
    "skin lesion": "#9687C3",
    "breast lesion": "#B4005A",
    "lesion": "#E1C34B",
    "liver tumour": "#B4C387",
    "kidney tumour": "#8700E1",
}


def colour_of(name: str) -> str:
    """The colour of a structure, "#RRGGBB"; of a name that is not in the table one of the table's, by its letters.

    >>> colour_of("liver"), colour_of("left thumb") == colour_of("left thumb")
    ('#0072B2', True)
    """
    if name in COLOURS:
        return COLOURS[name]
    number = int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:4])
    return list(COLOURS.values())[number % len(COLOURS)]


def rgb_of(name: str) -> tuple[int, int, int]:
    """The colour of a structure as red, green and blue, 0 to 255.

    >>> rgb_of("liver")
    (0, 114, 178)
    """
    red, green, blue = bytes.fromhex(colour_of(name)[1:])
    return red, green, blue
