"""An adapter on disk: a few hundred kilobytes that name their base by its hash.

adapter.json           kind, rank, …; the base; how it came about; its figures
adapter.safetensors    its weights, in half precision
vocabulary.json        what the adapted model can be asked
card.md, dice.png      for people
manifest.json          SHA-256 of every file above
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Len
from safetensors.torch import save_file

from delineate.adapters import AdapterConfig
from delineate.adapters.adapter import Adapted, attach
from delineate.errors import ModelError
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.preparation import Habits
from delineate.storage import sealed
from delineate.storage.files import sha256_of, write_json, write_text
from delineate.storage.schema import Line, Name, Sha256, checked, read_json
from delineate.storage.weights import building, read_weights
from delineate.systems.system import Adaptable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1
FIX = "copy the adapter again"
NEEDED = {"adapter.json", "adapter.safetensors", "vocabulary.json"}


@dataclass(frozen=True)
class Base:
    """The model that an adapter belongs to."""

    sha256: Sha256
    name: Line
    system: Line = ""


@dataclass(frozen=True)
class Training:
    """What others read of how an adapter came about; the rest is for people."""

    learnt_from: Annotated[tuple[Sha256, ...], Len(0, 100_000)] = ()


@dataclass(frozen=True)
class AdapterFile:
    """What adapter.json must hold."""

    config: AdapterConfig
    base: Base
    habits: Habits
    training: Training
    figures: dict[Name, Any]


@dataclass(frozen=True, eq=False)
class AdapterFolder:
    """All that `adapter.json` says.

    Attributes:
        config: which adapter.
        base: "sha256" and "name" of the model folder it belongs to.
        habits: how the adapted model treats scans.
        training: data, seed, shots: how it came about; JSON values.
        figures: what was measured; JSON values.
    """

    config: AdapterConfig
    base: Mapping[str, str]
    habits: Habits
    training: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


def save_adapter(
    folder: Path,
    adapted: Adapted,
    about: AdapterFolder,
    card: str,
    draw: "Mapping[str, Figure] | None" = None,
) -> None:
    """Write an adapter folder, whole or not at all; an older adapter of the same name is replaced.

    Args:
        folder: where to.
        adapted: whose weights must be those of half precision already (`in_half`), or they would change here.
        about: the rest.
        card: Markdown for people.
        draw: pictures by file name.

    Raises:
        ModelError: `folder` exists and is something else.
    """
    from delineate import __version__

    with sealed.sealing(folder, is_adapter, "adapter") as building:
        weights = {name: value.half().contiguous() for name, value in adapted.weights().items()}
        save_file(weights, building / "adapter.safetensors")
        write_json(
            building / "adapter.json",
            {
                "format": FORMAT,
                "delineate": __version__,
                "config": asdict(about.config),
                "base": dict(about.base),
                "habits": about.habits.to_json(),
                "training": dict(about.training),
                "figures": dict(about.figures),
            },
        )
        write_json(building / "vocabulary.json", adapted.vocabulary.to_json())
        write_text(building / "card.md", card)
        for name, figure in (draw or {}).items():
            figure.savefig(building / name)


def in_half(adapted: Adapted) -> None:
    """Round the adapter's weights to half precision, so that what is saved is what was measured."""
    adapted.load({name: value.half().float() for name, value in adapted.weights().items()})


def read_adapter(folder: Path) -> AdapterFolder:
    """What an adapter says of itself, every file compared with its hash.

    Raises:
        ModelError: no adapter, a damaged one, or one of a newer release.
    """
    folder = Path(folder)
    if not (folder / sealed.MANIFEST).is_file() or not is_adapter(folder):
        hint = "it is a model; give it with --model" if (folder / "config.json").is_file() else "check the path"
        raise ModelError(f"{folder}: not an adapter folder (no adapter.json); {hint}")
    sealed.verify(folder, NEEDED, "adapter")
    told = read_json(path := folder / "adapter.json", dict[str, Any], fix=FIX)
    if (number := told.get("format")) != FORMAT:
        raise ModelError(f"{folder}: adapter format {number!r:.20}, this release reads {FORMAT}; update delineate")
    known = checked(told, AdapterFile, path, fix=FIX)
    checked(told["config"], AdapterConfig, path, below="config", fix=FIX, exact=True)
    checked(told["habits"], Habits, path, below="habits", fix=FIX, exact=True)
    return AdapterFolder(known.config, told["base"], known.habits, told["training"], told["figures"])


def load_adapter(folder: Path | str, base: Adaptable, base_fingerprint: str | None) -> tuple[Adapted, AdapterFolder]:
    """The base with the adapter on, and what the adapter says of itself; `base` stays as it is and shares its weights.

    Args:
        folder: of the adapter.
        base: the system it was made for.
        base_fingerprint: of the model folder that the system came from.

    Raises:
        ModelError: as `read_adapter`, or the adapter belongs to another base.
    """
    folder = Path(folder)
    about = read_adapter(folder)
    if base_fingerprint is None:
        raise ModelError(f"{folder}: an adapter needs a base that was loaded from a model folder; save the model first")
    if about.base["sha256"] != base_fingerprint:
        raise ModelError(
            f"{folder}: was made for the model '{about.base['name']}' ({about.base['sha256'][:12]}…), this one is "
            f"{base_fingerprint[:12]}…; give that model with --model"
        )
    vocabulary = read_json(folder / "vocabulary.json", Vocabulary, fix=FIX, exact=True)
    if not set(base.vocabulary.names) <= set(vocabulary.names):
        raise ModelError(f"{folder}/vocabulary.json: lacks names of its base; {FIX}")
    weights = read_weights(folder / "adapter.safetensors", FIX)
    size = sum(parameter.numel() for part in base.parts.values() for parameter in part.parameters())
    with building(folder, FIX, more=size):
        adapted = attach(base, about.config, vocabulary)
    adapted.load({name: value.float() for name, value in weights.items()})
    return adapted, about


def is_adapter(folder: Path) -> bool:
    """Whether the files of an adapter are there."""
    return all((folder / name).is_file() for name in NEEDED)


def fingerprint(folder: Path) -> str:
    """The SHA-256 of an adapter's manifest: names it in reports."""
    return sha256_of(Path(folder) / sealed.MANIFEST)
