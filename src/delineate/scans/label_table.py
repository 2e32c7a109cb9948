"""Which number in a label map is whose, and how the file says so itself: names and colours in the header of NIfTI.

Headers carry the label table of Caret, in XML, which TotalSegmentator writes too. It stands there twice. Connectome
Workbench reads it under the code that NIfTI gave Caret; loaders made for TotalSegmentator take whatever extension comes
first and ask nibabel for its content, which nibabel (since 5.3) has for the code 0 and refuses for Caret's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from delineate.prompts.colours import colour_of

CODES = (0, 30)  # of the extensions: any, as TotalSegmentator's; Caret's own
ALIGNED = 16  # bytes that an extension is a multiple of, its head of 8 included
BACKGROUND = "background"  # nnU-Net's name for 0


@dataclass(frozen=True)
class LabelTable:
    """The names that the numbers of a label map stand for, the first one for 1; 0 is the background."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, known: Sequence[str], asked: Sequence[str]) -> "LabelTable":
        """The names that a model knows, in its order, and behind them others that were asked, in theirs."""
        return cls(tuple(dict.fromkeys((*known, *asked))))

    @property
    def ids(self) -> dict[str, int]:
        """The number of each name."""
        return {name: number for number, name in enumerate(self.names, start=1)}

    @property
    def dtype(self) -> type:
        """What holds all numbers, those that do not occur included: it is the same for all files of this table."""
        return np.uint8 if len(self.names) <= np.iinfo(np.uint8).max else np.uint16

    @property
    def colours(self) -> dict[str, str]:
        """The colour of each name, "#RRGGBB"."""
        return {name: colour_of(name) for name in self.names}

    def caret(self) -> bytes:
        """Caret's label table of a volume, as it stands in a NIfTI header, filled up with line ends."""
        root = ElementTree.Element("CaretExtension")
        volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
        table = ElementTree.SubElement(volume, "LabelTable")
        for name, number in self.ids.items():
            red, green, blue = (f"{int(colour_of(name)[at : at + 2], 16) / 255:.6g}" for at in (1, 3, 5))
            shares = {"Key": str(number), "Red": red, "Green": green, "Blue": blue, "Alpha": "1"}
            ElementTree.SubElement(table, "Label", shares).text = "".join(c if c.isprintable() else " " for c in name)
        ElementTree.SubElement(volume, "StudyMetaDataLinkSet")
        ElementTree.SubElement(volume, "VolumeType").text = "Label"
        told = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
        return told + b"\n" * (-(len(told) + 8) % ALIGNED)
