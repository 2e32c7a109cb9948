"""SDSeg: latent diffusion that draws a mask in a single step.

After Lin et al. (2024), "Stable Diffusion Segmentation for Biomedical Images with Single-step Reverse Process"
(MICCAI). A trainable image encoder's features are concatenated with the noisy latent of the mask, an embedded label
says which concept is asked for, and the noise estimate is trained by two L1 terms: of the noise, and of the clean
latent that it stands for ("latent estimation"). One evaluation at the last time gives the mask.

What differs from the paper: latents are those of the lossless codec unless a foundation's autoencoder is given; the
encoder is ours instead of a copy of the autoencoder's; and the noise is read off the network as ε̂ = σ x + a v̂
(Salimans and Ho, 2022). At the last time a = 0.026, so that errors of ε̂ reach the mask 38-fold, and a small network
does not copy x that well: after 3000 phantom slices of 64², Dice was 0.1 with ε̂ as its plain output, 0.75 with v̂.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DModel
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from delineate.data.slices import Batch, SliceBank
from delineate.diffusion.codec import CODECS, Codec, VaeCodec, noise_fields
from delineate.diffusion.sampling import sample_one_step
from delineate.diffusion.schedule import Schedule, schedule_from_config, trailing_times
from delineate.errors import DelineateError
from delineate.foundation.foundation import Foundation
from delineate.foundation.shapes import CodecConfig, VaeConfig
from delineate.networks.encoder import ENCODER_WIDTHS, ImageEncoder
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.storage.memory import at_once
from delineate.storage.schema import Side, SliceChannels, read_json
from delineate.storage.weights import load_weights, save_weights
from delineate.systems.drawing import draw_pairs
from delineate.systems.parts import configured
from delineate.systems.system import Asked, Clue, Drawn, OnShare
from delineate.training.loop import Loss, Phase, Run, Step, train_phases

PAIRS_AT_ONCE = 32  # (slice, proposal) pairs in one forward: bounds memory, changes nothing but rounding
PROMPTS = 3  # a slice: the fewest of which `SliceBank.draw` makes one absent, whatever the slice shows
MEASURED = 16  # masks from which an autoencoder's latents are standardised
LATENT_WEIGHT = 1.0  # of latent estimation, as published
SCHEDULER = {  # latent diffusion's "linear", as published
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "beta_end": 0.0155,
    "prediction_type": "epsilon",
}


@dataclass(frozen=True)
class Size:
    """Widths of a preset's denoiser, finest level first, and whether all but the finest level attend to themselves."""

    widths: tuple[int, ...]
    layers: int
    attention: bool


SIZES = {
    "tiny": Size((64, 96), layers=1, attention=False),  # attention cost time and gained nothing in short trainings
    "base": Size((128, 256, 384), layers=2, attention=True),
}


@dataclass(frozen=True)
class SDSegConfig:
    """What a model folder must say beside its weights and its codec's numbers.

    Attributes:
        size: pixels along a side of the working grid, a multiple of 32.
        preset: a key of `SIZES`.
        codec: a key of `CODECS`.
        channels: of the slices that it sees (`delineate.scans.grid.stack_of`).
    """

    size: Side = 128
    preset: str = "tiny"
    codec: str = "unshuffle"
    channels: SliceChannels = 3

    def __post_init__(self):
        if self.preset not in SIZES:
            raise ValueError(f"preset is one of {', '.join(SIZES)}; got '{self.preset}'")
        if self.codec not in CODECS:
            raise ValueError(f"codec is one of {', '.join(CODECS)}; got '{self.codec}'")
        if self.size % 32:
            raise ValueError(f"size must be a multiple of 32; got {self.size}")


class NoiseNetwork(nn.Module):
    """The image encoder, and the denoiser that its features condition."""

    def __init__(self, preset: str, channels: int, concepts: int, seen: int = 3):
        """Networks for latents of `channels` channels and `concepts` labels, and slices of `seen` channels."""
        super().__init__()
        size, encoder = SIZES[preset], ENCODER_WIDTHS[preset]
        self.encoder = ImageEncoder(encoder, channels=seen)
        self.project = nn.Conv2d(encoder[2], channels, 1)
        coarser, kind = len(size.widths) - 1, "Attn" if size.attention else ""
        self.unet = UNet2DModel(
            in_channels=2 * channels,
            out_channels=channels,
            block_out_channels=size.widths,
            layers_per_block=size.layers,
            down_block_types=("DownBlock2D", *(f"{kind}DownBlock2D",) * coarser),
            up_block_types=(*(f"{kind}UpBlock2D",) * coarser, "UpBlock2D"),
            add_attention=size.attention,
            attention_head_dim=16,
            norm_num_groups=16,
            num_class_embeds=concepts,
        )
        self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def see(self, image: Tensor) -> Tensor:
        """Conditions (B, channels, S/8, S/8) of slices (B, 3, S, S) in [-1, 1]."""
        return self.project(self.encoder(image).coarse)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor, concept: Tensor, schedule: Schedule) -> Tensor:
        """The noise estimate at x_t (B, channels, h, w), times (B,) and concepts (B,), both integers."""
        v = self.unet(torch.cat([x_t, condition], dim=1), t, class_labels=concept).sample
        a, sigma = schedule.signal_and_noise(t, x_t)
        return sigma * x_t + a * v


class SDSeg:
    """A codec, a noise network, and how to draw with them."""

    accepts: frozenset[Clue] = frozenset()
    open_words = False
    about = ""
    decoder = r"\b(grow|head|up)\b"

    def __init__(self, config: SDSegConfig, codec: Codec, vocabulary: Vocabulary, network: NoiseNetwork):
        self.config = config
        self.codec = codec
        self.vocabulary = vocabulary
        self.network = network.eval()
        self.schedule = schedule_from_config(SCHEDULER)

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        return self.config.size

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "SDSeg":
        """Itself, moved."""
        self.codec.to(device)
        self.network.to(device)
        return self

    @torch.no_grad()
    def see(self, view: View) -> Tensor:
        """Conditions (S, channels, size/8, size/8), made once for any number of prompts and proposals."""
        return torch.cat([self.network.see(chunk.to(self.device)) for chunk in view.stack.split(at_once(16))])

    @torch.no_grad()
    def propose(self, seen: Tensor, asked: Asked, n: int, seed: int, on_step: OnShare = lambda share: None) -> Drawn:
        """N probability volumes (N, S, size, size) of one target, one evaluation of the denoiser each.

        Proposal k uses one noise field for all slices, made from (seed, k) alone.
        """
        concept = self.vocabulary.index(asked.name)
        fields = noise_fields(self.codec, n, tuple(seen.shape[1:]), seed)

        def draw(proposals: Tensor, slices: Tensor) -> Tensor:
            denoise = partial(self._clean, seen[slices.to(seen.device)], concept)
            x0 = sample_one_step(
                denoise, lambda step: fields(step)[proposals].to(self.device), trailing_times(1), self.schedule
            )
            return self.codec.decode(x0)[:, 0]

        out = torch.zeros(n, len(seen), self.size, self.size)
        pairs = torch.cartesian_prod(torch.arange(len(seen)), torch.arange(n)).flip(1)
        draw_pairs(pairs, draw, out, at_once(PAIRS_AT_ONCE), on_step)
        return Drawn(out)

    def _clean(self, condition: Tensor, concept: int, x_t: Tensor, t: int) -> Tensor:
        """x0 = (x_t - σ ε̂) / a."""
        times, concepts = (torch.full((len(x_t),), value, device=x_t.device) for value in (t, concept))
        return self.schedule.to_x0(self.network(x_t, times, condition, concepts, self.schedule), x_t, times)

    @property
    def learnt(self) -> Vocabulary:
        """The vocabulary."""
        return self.vocabulary

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The network; not an autoencoder."""
        return {"network": self.network}

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "SDSeg":
        """The same codec with another network, which has a label for each name."""
        network = parts["network"]
        assert isinstance(network, NoiseNetwork)
        return SDSeg(self.config, self.codec, vocabulary, network)

    def widen(self, names: Sequence[str], *, seed: int = 0) -> None:
        """Refused: a name is an embedded number here."""
        raise DelineateError(f"this model cannot learn new names ({', '.join(names)}); leave their labels out")

    def phases(self, bank: SliceBank) -> list[Phase]:
        """One: encoder and denoiser together."""
        return [Phase("network", self.network, bank.stream(PROMPTS, self.device), latent_loss, self)]


def latent_loss(system: SDSeg, batch: Batch, step: Step) -> Loss:
    """L1 of the noise and of the clean latent, at one time drawn for every (slice, prompt)."""
    codec, schedule, device = system.codec, system.schedule, system.device
    condition = system.network.see(batch.image).repeat_interleave(batch.concepts.shape[1], dim=0)
    x0 = codec.encode(batch.masks.flatten(0, 1)[:, None])
    t = torch.randint(1000, (len(x0),), generator=step.generator).to(device)
    noise = codec.noise(x0.shape, step.generator).to(device)
    x_t = schedule.add_noise(x0, noise, t)
    noise_hat = system.network(x_t, t, condition, batch.concepts.flatten(), schedule)
    unlabelled = F.max_pool2d((~batch.known).to(x0.dtype), batch.known.shape[-1] // x0.shape[-1]) > 0
    unlabelled = unlabelled.repeat_interleave(batch.concepts.shape[1], dim=0)
    noise_hat = torch.where(unlabelled, noise, noise_hat)  # there the answer is taken for right
    noise_term, latent_term = loss_terms(schedule, noise_hat, noise, x_t, x0, t)
    parts = {"noise": noise_term.item(), "latent": latent_term.item()}
    return noise_term + LATENT_WEIGHT * latent_term, parts


def build(config: SDSegConfig, codec: Codec, vocabulary: Vocabulary, *, seed: int = 0) -> SDSeg:
    """A system whose network is untrained; its codec is as given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NoiseNetwork(config.preset, codec.channels, len(vocabulary.concepts), config.channels)
    return SDSeg(config, codec, vocabulary, network)


def loss_terms(
    schedule: Schedule, noise_hat: Tensor, noise: Tensor, x_t: Tensor, x0: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """L1 of the noise, and L1 of the clean latent that the noise estimate stands for; all (B, channels, h, w)."""
    return F.l1_loss(noise_hat, noise), F.l1_loss(schedule.to_x0(noise_hat, x_t, t), x0)


def make(
    preset: str,
    size: int,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    foundation: Path | None = None,
    channels: int = 3,
    **_: Any,
) -> SDSeg:
    """An untrained system, on the codec of a foundation from a folder, or else on the lossless one."""
    name, codec = "unshuffle", CODECS["unshuffle"](None)
    if foundation is not None:
        base = Foundation.load(foundation)
        name, codec = base.codec_name, base.codec
    return build(SDSegConfig(size, preset, name, channels), codec, vocabulary, seed=seed)


def train(system: SDSeg, bank: SliceBank, run: Run) -> SDSeg:
    """Train encoder and denoiser together, in one phase; an autoencoder's weights are not touched.

    An autoencoder's latents are first standardised on masks, as SDSeg scales them by the spread of its first batch.
    """
    if isinstance(system.codec, VaeCodec):
        system.codec.measure(bank.draw(MEASURED, 1, Generator().manual_seed(run.seed)).masks.to(system.device))
    train_phases(system.phases(bank), run)
    return system


def save(system: SDSeg, folder: Path) -> dict[str, Any]:
    """Write the weights; the configuration comes back."""
    save_weights(system.network, folder / "weights.safetensors")
    if isinstance(system.codec, VaeCodec):
        vae: Any = system.codec.vae
        vae.save_config(folder / "vae")
        save_weights(vae, folder / "vae" / "diffusion_pytorch_model.safetensors")
    return {**asdict(system.config), "codec_config": system.codec.config()}


def load(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> SDSeg:
    """What `save` wrote."""
    known = configured({k: v for k, v in config.items() if k != "codec_config"}, SDSegConfig, folder)
    numbers = config.get("codec_config", {})
    configured(numbers, CodecConfig, folder, below="codec_config")
    vae: Any = None
    if known.codec == "vae":
        read_json(folder / "vae" / "config.json", VaeConfig)
        shape: Any = AutoencoderKL.load_config(folder / "vae", local_files_only=True)
        vae = AutoencoderKL.from_config(shape)
        load_weights(vae, folder / "vae" / "diffusion_pytorch_model.safetensors")
    system = build(known, CODECS[known.codec](vae, **numbers), vocabulary)
    load_weights(system.network, folder / "weights.safetensors")
    return system
