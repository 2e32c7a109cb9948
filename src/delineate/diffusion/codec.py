"""Mask ↔ what diffusion works on.

A codec's `encode` takes masks (B, 1, H, W) in [0, 1] and gives latents (B, channels, H/8, W/8); `decode` gives
masks back as values that are probabilities once clamped to [0, 1]. H and W must be multiples of `STRIDE`. Scans
in [-1, 1] go through the same latents, grey or in colour (`encode_picture`, `decode_picture`); `colours` says how many
channels come back. `noise` is what
a codec's latents are noised with, and `posterior` what can be said of them without a network.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Bool, Float, Num
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from delineate.diffusion.seeds import seed_of

STEEP = 4.0  # log-odds of what an autoencoder reads back as 1
STRIDE = 8  # of Stable Diffusion's autoencoder; the lossless codec uses the same grid so that either serves one control

Picture = Float[Tensor, "batch 1 height width"]
Scans = Float[Tensor, "batch colours height width"]
Latent = Float[Tensor, "batch channels h w"]


class PixelUnshuffleCodec(nn.Module):
    """Lossless: every block of stride × stride pixels of the ±1 mask becomes channels, multiplied by `scale`.

    With three `colours` a mask or a grey scan fills all three alike, and a mask is read back as their mean.

    Its noise is a pyramid: white noise of several grain sizes, added up to unit variance. With white noise alone a
    network averages over the pixels and sees every shape far too early in the schedule, and proposals that differ by
    white noise differ by specks instead of by shape. A share of the variance, `level`, is one value for the whole
    picture, which makes some proposals generous and others strict: what people who outline differ by most.
    """

    def __init__(
        self,
        scale: float = 1.0,
        stride: int = STRIDE,
        grains: Sequence[int] = (1, 2, 4, 8, 16),
        smooth: bool = False,
        colours: int = 1,
        level: float = 0.0,
    ):
        """A codec; its noise has `grains` of so many pixels with equal shares of the variance: (1,) is white.

        Grains are squares, or with `smooth` Gaussian bells of that standard deviation: masks that part by smooth noise
        part by smooth outlines. They share what of the variance `level` leaves.
        """
        if not 0 <= level <= 1:
            raise ValueError(f"level is a share of the noise's variance, from 0 to 1; got {level}")
        super().__init__()
        self.scale, self.stride, self.grains, self.smooth = scale, stride, tuple(grains), smooth
        self.colours, self.level = colours, level
        self.channels = colours * stride**2

    def encode_picture(self, picture: Scans) -> Latent:
        """Latents of pictures (B, 1 or colours, H, W) in [-1, 1]."""
        return F.pixel_unshuffle(picture.expand(-1, self.colours, -1, -1), self.stride) * self.scale

    def decode_picture(self, latent: Latent) -> Scans:
        """Pictures (B, colours, H, W), unclamped."""
        return F.pixel_shuffle(latent / self.scale, self.stride)

    def encode(self, mask: Scans) -> Latent:
        """Latents of masks (B, 1, H, W), or pictures (B, colours, H, W), in [0, 1]."""
        return self.encode_picture(2 * mask - 1)

    def decode(self, latent: Latent) -> Picture:
        """Masks (B, 1, H, W), unclamped."""
        return (self.decode_picture(latent).mean(dim=1, keepdim=True) + 1) / 2

    def of_field(self, field: Picture, own: Callable[[], Latent]) -> Latent:
        """Noise for latents that is the same as a `field` on pixels, (B, 1, H, W) and standard normal."""
        return F.pixel_unshuffle(field.expand(-1, self.colours, -1, -1), self.stride)

    def on_pixels(self, latent: Latent, field: Picture) -> Picture:
        """What a noisy latent says of every pixel, (B, 1, H, W), in units of a mask of ±1."""
        return self.decode_picture(latent).mean(dim=1, keepdim=True)

    def changed(self, odds: Picture, by: Latent) -> Picture:
        """Log-odds (B, 1, H, W), changed `by` what a network says on the latent grid."""
        return odds + self.decode_picture(by).mean(dim=1, keepdim=True)

    def places(self, where: Bool[Tensor, "batch 1 height width"]) -> Bool[Tensor, "batch channels h w"]:
        """Which values of a latent hold the pixels `where` (B, 1, H, W)."""
        return F.pixel_unshuffle(where.expand(-1, self.colours, -1, -1), self.stride)

    def noise(self, shape: torch.Size | tuple[int, ...], generator: Generator, levels: Tensor | None = None) -> Latent:
        """Noise for latents of this shape (B, channels, h, w): every value is standard normal, neighbours are alike.

        The value that is one for the whole picture is drawn too, unless `levels` (B,) gives it.
        """
        batch, _, h, w = shape
        rows, columns = h * self.stride, w * self.stride
        total = torch.zeros(batch * self.colours, 1, rows, columns)
        for grain in self.grains:
            total += (_bells if self.smooth else _squares)(len(total), rows, columns, grain, generator)
        total = total.view(batch, self.colours, rows, columns)
        total = total * ((1 - self.level) / len(self.grains)) ** 0.5
        if self.level > 0:
            drawn = torch.randn(batch, generator=generator) if levels is None else levels
            total = total + self.level**0.5 * drawn.view(-1, 1, 1, 1)
        return F.pixel_unshuffle(total, self.stride)

    def posterior(self, estimate: Latent, x_t: Latent, signal: Tensor, noise: Tensor) -> Latent:
        """The clean latent to expect at x_t if each pixel were a coin of its own, `estimate` giving the odds.

        With x_t = a x0 + σ ε and x0 = ±s, Bayes' rule in log-odds adds 2 a s x_t / σ² to the pixel's prior, and the
        mean of ±s under log-odds L is s tanh(L / 2). DDIM on this alone maps noise to masks monotonically, pixel by
        pixel, so that each pixel is foreground in as many proposals as its probability says.

        Args:
            estimate: encoded probabilities, in [-s, s].
            x_t: the noisy latent.
            signal: a, broadcast against `x_t`.
            noise: σ, likewise.
        """
        prior = torch.atanh((estimate / self.scale).clamp(-0.9999, 0.9999))
        return self.scale * torch.tanh(prior + signal * self.scale * x_t / noise.clamp(min=1e-3).square())

    def config(self) -> dict[str, float]:
        """What `CODECS` needs to build a foundation's codec again; stride and grains are always the defaults there."""
        return {"scale": self.scale} | ({"level": self.level} if self.level else {})


def _squares(batch: int, rows: int, columns: int, grain: int, generator: Generator) -> Picture:
    """Squares of `grain` pixels, standard normal each."""
    # One extra grain and a random start, or the blocks of all samples would share their borders.
    blocks = torch.randn(batch, 1, rows // grain + 2, columns // grain + 2, generator=generator)
    blocks = blocks.repeat_interleave(grain, dim=2).repeat_interleave(grain, dim=3)
    top, left = torch.randint(grain, (2,), generator=generator).tolist()
    return blocks[:, :, top : top + rows, left : left + columns]


def _bells(batch: int, rows: int, columns: int, grain: int, generator: Generator) -> Picture:
    """White noise blurred by a Gaussian of `grain` pixels, with unit variance again."""
    reach = torch.arange(-3 * grain, 3 * grain + 1).float()
    bell = torch.exp(-reach.square() / (2 * grain**2))
    bell = bell / bell.square().sum().sqrt()
    white = torch.randn(batch, 1, rows + 6 * grain, columns + 6 * grain, generator=generator)
    return F.conv2d(F.conv2d(white, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))


class VaeCodec(nn.Module):
    """The latents of a frozen autoencoder of Stable Diffusion's kind, standardised by statistics of *mask* latents.

    The mask is given as a ±1 RGB picture, encoded by the posterior's mode, and read back as the mean of the
    three channels. Mask latents differ from picture latents in mean and spread, hence `shift` and `scale`
    (`measure` finds them) instead of the folder's `scaling_factor`.
    """

    def __init__(self, vae: AutoencoderKL, shift: float = 0.0, scale: float | None = None):
        super().__init__()
        self.level = 0.0  # of one value for the whole picture there is nothing in its noise
        self.vae = vae.requires_grad_(False).eval()
        self.colours = 3
        self.channels = int(vae.config["latent_channels"])
        self.shift = shift
        self.scale = float(vae.config["scaling_factor"]) if scale is None else scale

    def measure(self, masks: Picture) -> None:
        """Set `shift` and `scale` so that the latents of `masks` (B, 1, H, W) have mean 0 and variance 1."""
        self.shift, self.scale = 0.0, 1.0
        latent = self.encode(masks)
        self.shift, self.scale = latent.mean().item(), 1 / max(latent.std().item(), 1e-6)

    @torch.no_grad()
    def encode_picture(self, picture: Scans) -> Latent:
        """Latents of pictures (B, 1 or 3, H, W) in [-1, 1]."""
        posterior = self.vae.encode(picture.expand(-1, 3, -1, -1)).latent_dist  # type: ignore[union-attr]
        return (posterior.mode() - self.shift) * self.scale

    def encode(self, mask: Scans) -> Latent:
        """Latents of masks (B, 1, H, W), or pictures (B, colours, H, W), in [0, 1]."""
        return self.encode_picture(2 * mask - 1)

    def decode_picture(self, latent: Latent) -> Scans:
        """Pictures (B, 3, H, W), unclamped."""
        return self.vae.decode(latent / self.scale + self.shift).sample  # type: ignore[union-attr]

    def decode(self, latent: Latent) -> Picture:
        """Masks (B, 1, H, W), unclamped; differentiable in `latent`."""
        return (self.decode_picture(latent).mean(dim=1, keepdim=True) + 1) / 2

    def of_field(self, field: Picture, own: Callable[[], Latent]) -> Latent:
        """White noise of its `own`: on this codec's grid a field of pixels says nothing."""
        return own()

    def on_pixels(self, latent: Latent, field: Picture) -> Picture:
        """The `field` that goes along with a latent: of single pixels the latent itself says nothing."""
        return field

    def changed(self, odds: Picture, by: Latent) -> Picture:
        """Log-odds (B, 1, H, W) of the mask that they make, changed `by` what a network says in latents, read back.

        To the log-odds gradients go as if coding were lossless.
        """
        return STEEP * (2 * self.decode(self.encode(odds.sigmoid()) + by) - 1) + odds - odds.detach()

    def noise(self, shape: torch.Size | tuple[int, ...], generator: Generator, levels: Tensor | None = None) -> Latent:
        """White noise, as Stable Diffusion was trained on."""
        return torch.randn(shape, generator=generator)

    def posterior(self, estimate: Latent, x_t: Latent, signal: Tensor, noise: Tensor) -> Latent:
        """`estimate` as it is: pixels of a latent are no coins, and Bayes' rule has no closed form."""
        return estimate

    def config(self) -> dict[str, float]:
        """What `CODECS` needs, beside the autoencoder, to build this codec again."""
        return {"shift": self.shift, "scale": self.scale}


Codec = PixelUnshuffleCodec | VaeCodec
CODECS: dict[str, Callable[..., Codec]] = {
    "unshuffle": lambda vae, **config: PixelUnshuffleCodec(**config),
    # For scans, whose textures white noise suits: a pyramid looks like what it should uncover, and is kept.
    "unshuffle-rgb": lambda vae, **config: PixelUnshuffleCodec(colours=3, grains=(1,), **config),
    "vae": lambda vae, **config: VaeCodec(vae, **config),
}


def noise_fields(
    codec: Codec, n: int, shape: tuple[int, ...], seed: int, *, antithetic: bool = False
) -> Callable[[int], Tensor]:
    """Noise of a step for each of n proposals: step to (n, *shape).

    Field k of a step depends on (seed, k, step) and on nothing else, to the bit on one processor. A step's
    fields are made when first asked for.
    With `antithetic` every odd field is the even one before it, negated: each is normal still, and the mean of a few
    proposals comes closer to the mean of many. A codec whose noise has a level always has it so, and the levels of the
    pairs are spread evenly (`_levels`), for few of them drawn at random leave wide gaps.
    """
    paired = antithetic or codec.level > 0

    @cache
    def of(step: int) -> Tensor:
        drawn = range((n + 1) // 2) if paired else range(n)
        seeds = [seed_of(seed, k, step) for k in drawn]
        levels = _levels(len(drawn), seed, step)
        fields = torch.cat(
            [
                codec.noise((1, *shape), Generator().manual_seed(s), level[None])
                for s, level in zip(seeds, levels, strict=True)
            ]
        )
        return torch.stack([fields, -fields], dim=1).flatten(0, 1)[:n] if paired else fields

    return of


def _levels(count: int, seed: int, step: int) -> Tensor:
    """Standard normal values (count,) of which the first few, with their negatives, are as evenly spread as many.

    Half the van der Corput sequence, shifted by the seed, gives the probability of the tail; the signs alternate. Value
    j depends on (seed, step, j) alone.
    """
    sequence = [sum(((j >> bit) & 1) / 2 ** (bit + 1) for bit in range(j.bit_length())) for j in range(count)]
    shift = torch.rand((), generator=Generator().manual_seed((seed * 1009 + step) * 2 % 2**63), dtype=torch.float64)
    tail = ((torch.tensor(sequence, dtype=torch.float64) + shift) % 1 / 2).clamp(min=1e-6)
    sign = 1 - 2 * (torch.arange(count) % 2)
    return (torch.special.ndtri(tail) * sign).float()


@torch.no_grad()
def ceiling(codec: Codec, masks: Num[np.ndarray, "n h w"] | Bool[np.ndarray, "n h w"], batch: int = 32) -> float:
    """The best Dice that any model on this codec can reach: of decode(encode(masks)) against masks.

    Args:
        codec: the codec.
        masks: (N, H, W) in {0, 1}, H and W multiples of 8; at least one voxel set. Counted over all N together,
            as the slices of one volume are.
        batch: how many masks are coded at once.
    """
    both = total = 0.0
    for start in range(0, len(masks), batch):
        mask = torch.from_numpy(masks[start : start + batch]).float()[:, None]
        back = (codec.decode(codec.encode(mask)) > 0.5).float()
        both += (back * mask).sum().item()
        total += (back.sum() + mask.sum()).item()
    return 2 * both / total
