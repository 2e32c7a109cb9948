"""A marks network on disk and at work: slices and marks in, a probability of what is meant out.

The one that ships lies in house_marks/, beside the house model, and serves every model: it knows no names.

config.json           how it looks, and how it was trained
weights.safetensors   in half precision
card.md               for people: data, licences, figures, limits
manifest.json         SHA-256 of every file above
"""

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from delineate.diffusion.codec import PixelUnshuffleCodec, noise_fields
from delineate.diffusion.sampling import known, sample_ddim
from delineate.diffusion.schedule import schedule_from_config, trailing_times
from delineate.errors import ModelError
from delineate.interaction.network import MarksNetwork
from delineate.storage import sealed
from delineate.storage.files import write_json, write_text
from delineate.storage.schema import Side, Widths, checked, read_json
from delineate.storage.shipped import house_folder
from delineate.storage.weights import building, load_weights, save_weights

FORMAT = 1
# How proposals are drawn from a probability alone: noise as in UniSegDiff (docs/lab, "Doubt"), on a cosine schedule.
STRIDE, GRAINS, LEVEL, STEPS = 8, (8, 16, 32), 0.75, 3
SCHEDULE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
HOUSE_MARKS = "house_marks"
LOOKS = ("coarse", "fine", "both")


@dataclass(frozen=True)
class MarkerConfig:
    """What the folder must say beside the weights.

    Attributes:
        size: pixels along a side of the grid that it looks at.
        widths: of the network, finest level first.
        fold: pixels a side that the finest level takes together.
        look: at half that resolution ("coarse"), in full ("fine"), or first at half and then, believing what came out,
            in full ("both").
    """

    size: Side = 256
    widths: Widths = (32, 48, 96, 128, 128)
    fold: Annotated[int, Interval(ge=1, le=16)] = 2
    look: str = "both"

    def __post_init__(self):
        if self.look not in LOOKS:
            raise ValueError(f"look is one of {', '.join(LOOKS)}; got '{self.look}'")
        if self.size % (multiple := 2 * self.fold * 2 ** (len(self.widths) - 1)):
            raise ValueError(f"size must be a multiple of {multiple}; got {self.size}")


class Marker:
    """A marks network and how it looks."""

    def __init__(self, config: MarkerConfig, network: MarksNetwork):
        self.config = config
        self.network = network.eval().requires_grad_(False)

    @property
    def size(self) -> int:
        """Pixels along a side of the grid."""
        return self.config.size

    @torch.no_grad()
    def probability(self, stack: Tensor, marks: Tensor, previous: Tensor) -> Tensor:
        """The probability of what is marked, (S, size, size), slice by slice.

        Args:
            stack: slices (S, 3, size, size) in [-1, 1].
            marks: (S, 2, size, size) bool, inside and outside.
            previous: what was believed before, (S, size, size) in [0, 1]; 0.5 where nothing is known.
        """
        slices = zip(stack, marks, previous, strict=True)
        return torch.cat([self._slice(*(part[None] for part in one)) for one in slices])

    @torch.no_grad()
    def draw(self, probability: Tensor, marks: Tensor, n: int, seed: int) -> Tensor:
        """N probability volumes (N, S, size, size) that are inside as often as `probability` (S, size, size) says.

        For words that no system knows. Noise goes to masks by the codec's closed form alone (`codec.posterior`), most
        of it one value a picture: proposals are larger and smaller outlines of what the marks leave open.

        Args:
            probability: as `probability` gave it.
            marks: (S, 2, size, size) bool; proposals agree with them.
            n: how many.
            seed: proposal k depends on the slice, `seed` and k alone.
        """
        codec = PixelUnshuffleCodec(stride=STRIDE, grains=GRAINS, smooth=True, level=LEVEL)
        schedule, edge = schedule_from_config(SCHEDULE), self.size // STRIDE
        fields = noise_fields(codec, n, (codec.channels, edge, edge), seed)
        out = []
        for one, (inside, outside) in zip(probability, marks, strict=True):
            estimate = codec.encode(one[None, None]).expand(n, -1, -1, -1)
            value, where = codec.encode((inside & ~outside)[None, None].float()), (inside ^ outside)[None, None]

            def denoise(x: Tensor, t: int, estimate: Tensor = estimate) -> Tensor:
                return codec.posterior(estimate, x, *schedule.signal_and_noise(torch.tensor([t]), x))

            x0 = sample_ddim(known(denoise, value, codec.places(where)), fields, trailing_times(STEPS), schedule)
            out.append(codec.decode(x0)[:, 0].clamp(0, 1))
        return torch.stack(out, dim=1)

    def _slice(self, image: Tensor, marks: Tensor, previous: Tensor) -> Tensor:
        if self.config.look != "fine":
            small = F.avg_pool2d(image, 2), F.max_pool2d(marks.float(), 2) > 0, F.avg_pool2d(previous, 2)
            coarse = self.network(*small).sigmoid()[:, None]
            previous = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
        return previous if self.config.look == "coarse" else self.network(image, marks, previous).sigmoid()


def build(config: MarkerConfig, *, seed: int = 0) -> MarksNetwork:
    """An untrained network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MarksNetwork(config.widths, config.fold)


def house_marks_folder() -> Path:
    """Where the marks network that ships with the package lies."""
    return house_folder().with_name(HOUSE_MARKS)


def save_marker(
    folder: Path, config: MarkerConfig, network: MarksNetwork, *, training: dict[str, Any], card: str
) -> None:
    """Write a folder, whole or not at all, in the precision that the weights have; an older one is replaced.

    Raises:
        ModelError: `folder` exists and is something other than a folder of marks.
    """
    with sealed.sealing(folder, is_marker, "marks") as building:
        save_weights(network, building / "weights.safetensors")
        write_json(building / "config.json", {"format": FORMAT, "marks": asdict(config), "training": training})
        write_text(building / "card.md", card)


def is_marker(folder: Path) -> bool:
    """Whether the files of one are there."""
    return (folder / sealed.MANIFEST).is_file() and (folder / "weights.safetensors").is_file()


def load_marker(folder: Path) -> Marker:
    """The marks network in `folder`, every file compared with its hash.

    Raises:
        ModelError: a missing, added or changed file, one that is not as `save_marker` writes it, or a format of a
            newer release.
    """
    if not (folder / sealed.MANIFEST).is_file():
        raise ModelError(f"{folder}: not a folder of marks (no {sealed.MANIFEST}); check the path")
    sealed.verify(folder, {"config.json", "weights.safetensors"}, "marks folder")
    told = read_json(path := folder / "config.json", dict[str, Any])
    if (number := told.get("format")) != FORMAT:
        raise ModelError(f"{folder}: format {number!r:.20}, this release reads {FORMAT}; update delineate")
    config = checked(told.get("marks"), MarkerConfig, path, below="marks", exact=True)
    with building(folder):
        network = build(config)
    load_weights(network, folder / "weights.safetensors")
    return Marker(config, network)


@cache
def house_marker() -> Marker:
    """The one that ships, read once."""
    return load_marker(house_marks_folder())
