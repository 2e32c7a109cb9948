"""Two systems that draw proposals from a latent of a few numbers: the Probabilistic U-Net, and PULASki.

**Probabilistic U-Net** (Kohl et al. 2018, NeurIPS, arXiv 1806.05034). A prior network reads off a slice what the latent
z could be, a posterior network does so off a slice and the labels that a rater drew, and 1×1 convolutions make logits
of the U-Net's features and z. Trained by the evidence lower bound with one rater's labels at a time:

    L = R(labels, U(x, z)) + β KL(q(z | x, labels) || p(z | x)),    z ~ q

A proposal takes z from the prior: one pass of the U-Net a slice, then three 1×1 convolutions a proposal.

**PULASki** (Chatterjee et al. 2025, Medical Image Analysis, arXiv 2312.15686). The same network; R is a distance
between two *sets*, the maps of K latents and the masks of all raters, each map one point. The K latents are from q of a
single rater's labels, as published: no latent stands for one rater alone. Its Fréchet distances (FID, FRD) compare
features of another trained network and are not here.

Decided:

* **β** is in the units of the papers' code, where R is a sum over the pixels of a slice (ELBO, β = 10) or a distance of
  maps that are not divided by the number of pixels (PULASki, β = 1). R here is a mean over pixels, so the divergence is
  divided alike (`ProbUNetConfig.divergence_weight`) and the ratio is kept.
* **R of the bound** is cross entropy plus Dice (`segmentation_loss`), as for every other system here.
* **R of a set distance** has cross entropy of the mean of the K maps beside it, weighted by `pixel`. PULASki has the
  distance alone. The best mean map of either is the raters' mean, so the two do not pull apart.
* **A scan has one draw**: proposal k takes mean + σ ε_k with the same ε_k on every slice, whatever else is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Generator, Tensor, nn

from delineate.data.slices import NO_RATER, Batch, SliceBank
from delineate.diffusion.seeds import seed_of
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.storage.memory import at_once
from delineate.storage.schema import Channels, Side, SliceChannels, Widths
from delineate.systems.latent.probabilistic import ProbabilisticUNet
from delineate.systems.parts import configured, filled, save, train
from delineate.systems.system import Asked, Clue, Drawn, OnShare
from delineate.training.loop import Loss, Phase, Step
from delineate.training.losses import (
    energy_distance,
    gaussian_divergence,
    log_shares,
    segmentation_loss,
    sinkhorn_divergence,
)

__all__ = ["BETAS", "SIZES", "ProbUNet", "ProbUNetConfig", "build", "latent_loss", "load", "make", "save", "train"]

SIZES = {"tiny": ((32, 64, 128, 256), 16), "base": ((64, 128, 256, 512, 512), 32)}  # widths and features of a preset
BETAS = {"elbo": 10.0, "energy": 1.0, "sinkhorn": 1.0}  # as published, in the units of `divergence_weight`
DISTANCES = {"energy": energy_distance, "sinkhorn": sinkhorn_divergence}
PAIRS_AT_ONCE = 16  # (slice, proposal) pairs in one go: bounds memory, changes nothing but rounding


@dataclass(frozen=True)
class ProbUNetConfig:
    """What a model folder must say beside its weights.

    Attributes:
        size: pixels along a side of the working grid, a multiple of 2^(levels - 1).
        widths: channels at each level of the trunk, finest first.
        features: channels of the trunk's answer, and of the layers that read the latent beside it.
        latent: numbers in the latent.
        objective: a key of `BETAS`: "elbo" is the Probabilistic U-Net's, the others are PULASki's.
        beta: weight of the divergence of the posterior from the prior; see `divergence_weight`.
        samples: K, the maps of a slice that a set distance compares with its raters.
        pixel: weight of the cross entropy of their mean beside a set distance.
        channels: of the slices that it sees (`delineate.scans.grid.stack_of`).
    """

    size: Side = 128
    widths: Widths = (32, 64, 128, 256)
    features: Channels = 16
    latent: Annotated[int, Interval(ge=1, le=1024)] = 6
    objective: str = "elbo"
    beta: Annotated[float, Interval(ge=0, le=1e6)] = 10.0
    samples: Annotated[int, Interval(ge=1, le=64)] = 4
    pixel: Annotated[float, Interval(ge=0, le=1e6)] = 1.0
    channels: SliceChannels = 3

    def __post_init__(self):
        if self.objective not in BETAS:
            raise ValueError(f"objective is one of {', '.join(BETAS)}; got '{self.objective}'")
        if self.size % (multiple := 2 ** (len(self.widths) - 1)):
            raise ValueError(f"{len(self.widths)} levels need a size that is a multiple of {multiple}; got {self.size}")
        if any(width % 16 for width in self.widths):
            raise ValueError(f"widths are multiples of 16; got {self.widths}")

    @classmethod
    def preset(cls, objective: str, preset: str, size: int, channels: int = 3) -> "ProbUNetConfig":
        """That of a key of `BETAS` and one of `SIZES`, on a working grid of `size` pixels."""
        widths, features = SIZES[preset]
        return cls(size, widths, features, objective=objective, beta=BETAS[objective], channels=channels)

    @property
    def divergence_weight(self) -> float:
        """What KL in nats, a mean over slices, is multiplied with beside a reconstruction that is a mean over pixels.

        β over what takes the published reconstruction to ours: the number of pixels P for a sum over them and for ½|·|²
        of maps, ½ √P for geomloss's kernel norm, half the energy distance of maps that are not divided by √P.
        """
        return self.beta * (2 / self.size if self.objective == "energy" else 1 / self.size**2)


@dataclass(frozen=True, eq=False)
class SlicePrior:
    """What was seen of slices once: features (S, features, size, size), mean and sigma of the prior (S, latent)."""

    features: Tensor
    mean: Tensor
    sigma: Tensor


class ProbUNet:
    """A network and its vocabulary: channel 0 is background, channel 1 + i is concept i."""

    accepts: frozenset[Clue] = frozenset()
    open_words = False
    about = ""
    decoder = r"^network\.(head\b|model\..*\b2\b)"  # of each of the trunk's levels: 0 down, 1 below, 2 up

    def __init__(self, config: ProbUNetConfig, vocabulary: Vocabulary, network: ProbabilisticUNet):
        self.config = config
        self.vocabulary = vocabulary
        self.network = network.eval()

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        return self.config.size

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "ProbUNet":
        """Itself, moved."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def see(self, view: View) -> SlicePrior:
        """Features and prior of slices, made once for any number of prompts and proposals."""
        chunks = [chunk.to(self.device) for chunk in view.stack.split(at_once(PAIRS_AT_ONCE))]
        features = torch.cat([self.network.see(chunk) for chunk in chunks])
        mean, log_sigma = (torch.cat(part) for part in zip(*map(self.network.prior, chunks), strict=True))
        return SlicePrior(features, mean, log_sigma.exp())

    @torch.no_grad()
    def propose(
        self, seen: SlicePrior, asked: Asked, n: int, seed: int, on_step: OnShare = lambda share: None
    ) -> Drawn:
        """N probability volumes (N, S, size, size) of one target; proposal k depends on (seed, k) alone."""
        channel = 1 + self.vocabulary.index(asked.name)
        noise = latent_noise(n, self.config.latent, seed).to(self.device)
        out = torch.zeros(n, len(seen.features), self.size, self.size)
        done, slices_at_once = 0, max(1, PAIRS_AT_ONCE // n)
        for slices in torch.arange(len(seen.features)).split(slices_at_once):
            at = slice(int(slices[0]), int(slices[-1]) + 1)
            for proposals in torch.arange(n).split(at_once(PAIRS_AT_ONCE)):
                z = seen.mean[at, None] + seen.sigma[at, None] * noise[proposals.to(self.device)]
                logits = self.network.head(seen.features[at], z)
                share = (logits[:, channel] - logits.logsumexp(dim=1)).exp()  # the target's part of the softmax
                out[proposals, at] = share.unflatten(0, z.shape[:2]).transpose(0, 1).cpu()
                done += len(slices) * len(proposals)
                on_step(done / (n * len(seen.features)))
        return Drawn(out.clamp_(max=1))

    @property
    def learnt(self) -> Vocabulary:
        """The vocabulary."""
        return self.vocabulary

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The network."""
        return {"network": self.network}

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "ProbUNet":
        """The same with another network, one channel for each name of `vocabulary`."""
        network = parts["network"]
        assert isinstance(network, ProbabilisticUNet)
        return ProbUNet(self.config, vocabulary, network)

    def widen(self, names: Sequence[str], *, seed: int = 0) -> tuple[str, nn.Module]:
        """The path, within `parts`, of the layer that answers, and an untrained one like it for more names."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return "network.head.out", nn.Conv2d(self.config.features, len(names), 1)

    def phases(self, bank: SliceBank) -> list[Phase]:
        """One: trunk, prior, posterior and head together."""
        return [Phase("network", self.network, bank.stream(0, self.device), latent_loss, self)]


def latent_loss(system: ProbUNet, batch: Batch, step: Step) -> Loss:
    """Reconstruction plus the divergence of the posterior: the Probabilistic U-Net's bound, or PULASki's distance."""
    config, network = system.config, system.network
    of_set = DISTANCES.get(config.objective)
    prior, (mean, log_sigma) = network.prior(batch.image), network.read(batch.image, batch.labels.clamp(min=0))
    divergence = gaussian_divergence(mean, log_sigma, *prior).mean()
    noise = torch.randn(len(mean), config.samples if of_set else 1, config.latent, generator=step.generator)
    z = mean[:, None] + log_sigma.exp()[:, None] * noise.to(system.device)
    logits = network.head(network.see(batch.image), z)
    known = batch.possible.repeat_interleave(len(logits) // len(batch.possible), dim=0)
    log_probability = log_shares(logits, known, batch.lumped)
    parts = {"divergence": divergence.item()}
    if of_set is None:
        rebuilt = segmentation_loss(log_probability, batch.labels)
    else:
        readings = _readings(batch)
        entropy = mixture_entropy(log_probability.unflatten(0, z.shape[:2]), readings)
        distance = of_set(*as_sets(log_probability.unflatten(0, z.shape[:2]), readings, batch.known)).mean()
        parts |= {"distance": distance.item(), "entropy": entropy.item()}
        rebuilt = distance + config.pixel * entropy
    return rebuilt + config.divergence_weight * divergence, parts


def latent_noise(n: int, latent: int, seed: int) -> Tensor:
    """Standard normal numbers (n, latent) for n proposals; row k depends on (seed, k) and on nothing else."""
    generators = [Generator().manual_seed(seed_of(seed, k)) for k in range(n)]
    return torch.stack([torch.randn(latent, generator=generator) for generator in generators])


def as_sets(log_probability: Tensor, readings: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a set distance compares: maps (B, K, C, S, S), masks (B, M, C, S, S), and which masks there are (B, M).

    Args:
        log_probability: (B, K, 1 + C, S, S), background first, which is left out: it follows from the others.
        readings: (B, M, S, S) labels, `NO_RATER` throughout for a rater who is not there.
        known: (B, 1, S, S) bool, the pixels that somebody labelled; the others are 0 in all maps and masks.
    """
    concepts = torch.arange(1, log_probability.shape[2], device=readings.device)
    masks = (readings[:, :, None] == concepts[:, None, None]) & known[:, :, None]
    maps = log_probability[:, :, 1:].exp() * known[:, :, None]
    return maps, masks.to(maps.dtype), readings[:, :, 0, 0] != NO_RATER


def mixture_entropy(log_probability: Tensor, readings: Tensor) -> Tensor:
    """Cross entropy of the mean of K maps against every rater's labels: the mean over pixels, then over all raters.

    Unlike that of each map by itself, it does not mind how the maps differ. Shapes are those of `as_sets`.
    """
    mean = log_probability.logsumexp(dim=1) - log_probability.new_tensor(log_probability.shape[1]).log()
    entropy = -mean.gather(1, readings.clamp(min=0))
    counts = readings >= 0
    return entropy.masked_fill(~counts, 0).sum() / counts.sum().clamp(min=1)


def _readings(batch: Batch) -> Tensor:
    """What every rater drew, (B, M, S, S); the labels of a bank without raters are those of its only one."""
    return batch.labels[:, None] if batch.readings is None else batch.readings


def build(config: ProbUNetConfig, vocabulary: Vocabulary, *, seed: int = 0) -> ProbUNet:
    """An untrained system for this vocabulary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        concepts = len(vocabulary.concepts)
        network = ProbabilisticUNet(config.widths, config.features, config.latent, concepts, config.channels)
    return ProbUNet(config, vocabulary, network)


def make(
    preset: str,
    size: int,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    objective: str = "elbo",
    channels: int = 3,
    **_: Any,
) -> ProbUNet:
    """An untrained system of a preset, for one of `BETAS`."""
    return build(ProbUNetConfig.preset(objective, preset, size, channels), vocabulary, seed=seed)


def load(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> ProbUNet:
    """What `save` wrote."""
    return filled(build(configured(config, ProbUNetConfig, folder), vocabulary), folder)
