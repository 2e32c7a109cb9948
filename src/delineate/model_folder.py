"""A trained model on disk: all that `segment` needs, and the hash of every part.

config.json       system, versions, modalities, how it was trained
vocabulary.json   what can be asked
*.safetensors     weights; foundation/ holds a Stable Diffusion folder where the system has one
calibration.*     what held-out subjects say about its answers (`delineate.calibration.guarantees`); not in every folder
card.md           for people: data, licences, figures, limits
manifest.json     SHA-256 of every file above
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from annotated_types import Interval, Len

from delineate import __version__
from delineate.errors import ModelError
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.preparation import Habits
from delineate.storage import sealed
from delineate.storage.files import sha256_of_json, write_json, write_text
from delineate.storage.schema import MOST_CHANNELS, Line, Name, checked, read_json
from delineate.storage.sealed import sealing
from delineate.storage.seen import Seen
from delineate.storage.shipped import house_folder
from delineate.systems import SYSTEMS

if TYPE_CHECKING:  # which import torch and SciPy
    from delineate.calibration.guarantees import Calibration
    from delineate.systems.system import Adaptable

FORMAT = 1
MOST_VOCABULARY = 1 << 20  # bytes of a file
BUNDLED = Path("models") / "delineate"  # where a MONAI bundle of ours holds the model folder


@dataclass(frozen=True)
class Training:
    """What others read of how a model came about; the rest is for people."""

    datasets: Annotated[tuple[Line, ...], Len(0, 1000)] = ()
    fold: Line | None = None
    held_out: Annotated[tuple[Seen, ...], Len(0, 1000)] | None = ()


@dataclass(frozen=True)
class ModelConfig:
    """What config.json must hold; `system_config` is checked by the system itself."""

    system: Name
    modalities: Annotated[tuple[Name | None, ...], Len(0, 100)]
    system_config: dict[str, Any]
    training: Training
    apart_mm: Annotated[float, Interval(gt=0, le=1000)] | None = None
    channels: Annotated[tuple[Line, ...], Len(0, MOST_CHANNELS)] = ()


class Trained(Protocol):
    """What can be saved: a segmenter."""

    @property
    def system(self) -> "Adaptable":
        """With its weights."""
        ...

    @property
    def modalities(self) -> tuple[str | None, ...]:
        """Of the scans it was trained on."""
        ...

    @property
    def habits(self) -> Habits:
        """How it treats scans; of these a model folder keeps `apart_mm`, `channels` and `regions`."""
        ...


def save_model(folder: Path, segmenter: Trained, system_name: str, *, training: dict[str, Any], card: str) -> None:
    """Write a model folder, whole or not at all; an older model of the same name is replaced.

    Args:
        folder: where to.
        segmenter: what to save.
        system_name: its name in `SYSTEMS`.
        training: data, seed, images seen, seconds: whatever tells how it came about; JSON values.
        card: Markdown for people.

    Raises:
        ModelError: `folder` exists and is something other than a model folder, or an adapter is on.
    """
    from delineate.adapters.adapter import is_adapted

    if is_adapted(segmenter.system):
        raise ModelError(f"{folder}: a model with an adapter on cannot be saved; merge it first (`Adapted.merged`)")

    with sealing(folder, is_model, "model") as building:
        system_config = SYSTEMS[system_name].save(segmenter.system, building)
        config = {
            "format": FORMAT,
            "delineate": __version__,
            "system": system_name,
            "modalities": list(segmenter.modalities),
            "apart_mm": segmenter.habits.apart_mm,
            "channels": list(segmenter.habits.channels),
            "system_config": system_config,
            "training": training,
        }
        write_json(building / "config.json", config)
        vocabulary = segmenter.system.vocabulary.with_regions(segmenter.habits.regions)
        write_json(building / "vocabulary.json", vocabulary.to_json())
        write_text(building / "card.md", card)


def is_model(folder: Path) -> bool:
    """Whether the files of a model are there."""
    return all((folder / name).is_file() for name in ("manifest.json", "config.json", "vocabulary.json"))


def found_model(folder: Path) -> Path:
    """The model folder in a folder: itself, or the one in a MONAI bundle of ours."""
    inside = Path(folder) / BUNDLED
    return inside if not is_model(Path(folder)) and is_model(inside) else Path(folder)


def check_free(folder: Path) -> None:
    """Make sure that a model may be written to `folder`: nothing is there, or an empty folder, or an older model.

    Raises:
        ModelError: something else is there.
    """
    sealed.check_free(folder, is_model, "model")


def check_model(folder: Path | str | None) -> tuple[Path, dict[str, Any]]:
    """The folder and its configuration, every file compared with its hash; the house model for None.

    Raises:
        ModelError: no such folder, a missing, added or changed file, a format of a newer release, or a configuration
            that is none.
    """
    folder = house_folder() if folder is None else Path(folder)
    if not (folder / "manifest.json").is_file():
        hint = "train one with: delineate train" if folder.is_dir() else "check the path"
        raise ModelError(f"{folder}: not a model folder (no manifest.json); {hint}")
    sealed.verify(folder, {"config.json", "vocabulary.json"}, "model")
    config: dict[str, Any] = read_json(folder / "config.json", dict[str, Any])
    if (told := config.get("format")) != FORMAT:
        raise ModelError(f"{folder}: model format {told!r:.20}, this release reads {FORMAT}; update delineate")
    checked(config, ModelConfig, folder / "config.json")
    return folder, config


@dataclass(frozen=True, eq=False)
class Model:
    """What a model folder holds, read.

    Attributes:
        system: with its weights.
        modalities: of the scans it was trained on.
        fingerprint: of the folder (`fingerprint`).
        calibration: what held-out subjects taught about its answers; None where nobody calibrated it.
        habits: of them `apart_mm`, `channels` and `regions`.
    """

    system: "Adaptable"
    modalities: tuple[str | None, ...]
    fingerprint: str
    calibration: "Calibration | None"
    habits: Habits


def read_model(folder: Path | str | None, device: str = "cpu", *, calibrated: bool = True) -> Model:
    """A checked model folder, its system on `device`, with its calibration or without; the house model for None.

    Raises:
        ModelError: as `check_model`, of a system that is not known here or has another configuration, or its weights
            are others.
    """
    from delineate.calibration.guarantees import Calibration

    folder, config = check_model(folder)
    if config["system"] not in SYSTEMS:
        raise ModelError(f"{folder}: system '{config['system']}' is not known here; known: {', '.join(SYSTEMS)}")
    vocabulary = read_vocabulary(folder)
    system = SYSTEMS[config["system"]].load(folder, config["system_config"], vocabulary.learnt)
    for part in system.parts.values():  # as after a training: who goes on says what learns
        part.requires_grad_(False)
    channels = tuple(config.get("channels", ()))
    habits = Habits(apart_mm=config.get("apart_mm"), channels=channels, regions=vocabulary.regions)
    calibration = Calibration.load(folder) if calibrated else None
    return Model(system.to(device), tuple(config["modalities"]), fingerprint(folder), calibration, habits)


def read_vocabulary(folder: Path | str | None) -> Vocabulary:
    """What a model can be asked, without loading it (and without torch)."""
    folder = house_folder() if folder is None else Path(folder)
    path = folder / "vocabulary.json"
    if not path.is_file():
        raise ModelError(f"{folder}: not a model folder (no vocabulary.json); check the path")
    return read_json(path, Vocabulary, most_bytes=MOST_VOCABULARY, exact=True)


def fingerprint(folder: Path | str | None) -> str:
    """The SHA-256 of a model folder's manifest without calibrations: names the model in reports and adapters."""
    folder = house_folder() if folder is None else Path(folder)
    manifest = sealed.read_manifest(folder, "model")
    return sha256_of_json({name: value for name, value in manifest.items() if not name.startswith("calibration.")})


def calibration_hash(folder: Path | str | None) -> str | None:
    """The SHA-256 of a model's calibration, which reports name beside the model; None where it has none."""
    folder = house_folder() if folder is None else Path(folder)
    manifest = sealed.read_manifest(folder, "model")
    own = {name: value for name, value in manifest.items() if name.startswith("calibration.")}
    return sha256_of_json(own) if own else None
