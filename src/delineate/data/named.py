"""Dataset folders as people write them on one line: FOLDER, FOLDER=TARGET, FOLDER=TARGET@MODALITY."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from delineate.data.dataset import Dataset, open_dataset
from delineate.errors import DelineateError
from delineate.prompts.modality import modality_code


@dataclass(frozen=True)
class NamedFolder:
    """A dataset folder, what its masks show (() if its own dataset.json says so), and the kind of picture."""

    folder: Path
    targets: tuple[str, ...] = ()
    modality: str | None = None

    def open(self) -> Dataset:
        """The dataset. Raises as `delineate.data.dataset.open_dataset`."""
        return open_dataset(self.folder, targets=self.targets or None, modality=self.modality)

    def __str__(self) -> str:
        name = f"={','.join(self.targets)}" if self.targets else ""
        return f"{self.folder}{name}{f'@{self.modality}' if self.modality else ''}"


def open_named(text: str | Path, targets: Sequence[str] | None = None, modality: str | None = None) -> Dataset:
    """The dataset that `text` names; arguments and errors as in `parse_named` and `open_dataset`."""
    return parse_named(text, targets, modality).open()


def parse_named(text: str | Path, targets: Sequence[str] | None = None, modality: str | None = None) -> NamedFolder:
    """The folder, targets and modality of FOLDER, FOLDER=TARGET,TARGET or FOLDER=TARGET@MODALITY.

    A folder that exists with '=' in its name is a folder. The folder comes back resolved, the modality in the
    spelling that the code compares with ("ultrasound" is "US").

    Args:
        text: what was written.
        targets: for datasets that `text` gives no target.
        modality: for datasets that `text` gives no modality.

    Raises:
        DelineateError: an empty target or modality, or the same thing said twice.
    """
    text = str(text)
    ends = [place for place, letter in enumerate(text) if letter == "="] + [len(text)]
    at = next((end for end in reversed(ends) if end and Path(text[:end]).is_dir()), ends[0])
    if not at:
        raise DelineateError(f"'{text}': name the folder before =, as in kvasir_seg=polyp")
    folder, told = Path(text[:at]).resolve(), text[at + 1 :]
    if at == len(text):
        return NamedFolder(folder, tuple(targets or ()), modality)
    names, marked, picture = told.rpartition("@") if "@" in told else (told, "", "")
    named = tuple(name.strip() for name in names.split(","))
    if not all(named):
        raise DelineateError(f'{text}: name what the masks show after =, as in {text[:at]}="breast lesion"')
    if marked and not picture.strip():
        raise DelineateError(f"{text}: name the kind of picture after @, as in {text[:at]}={names}@endoscopy")
    if targets:
        raise DelineateError(f"{text}: its target is named twice, after = and by --target; give one of them")
    if marked and modality:
        raise DelineateError(f"{text}: its modality is named twice, after @ and by --modality; give one of them")
    return NamedFolder(folder, named, modality_code(picture) or modality)
