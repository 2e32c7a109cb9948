"""Named ways to vary training slices: one geometric map for scan and labels, then changes of grey for the scan alone.

`AUGMENTATIONS` holds what this package trains with ("default"), the single changes that DiffBoost is compared with
(Zhang et al. 2024, arXiv 2310.12868, numbers from its released code), a stack after nnU-Net (Isensee et al. 2021,
supplementary note 4, numbers from its code), the bias field of MR ("bias"), and nnU-Net's stack with more of
everything ("strong"), for a new scanner of which there is but a handful of scans. Map and grey are apart so that
several pictures of one slice, a scan and a synthetic one, can share the map.

In a volume left and right mean something ("left kidney"), so nothing but a slice that is marked as `mirrored` is ever
flipped; nor is it turned by more than 30°, as no patient lies on the scanner's table at 90°. A flat picture may be
mirrored left to right, and turned any way round where its kind has no top (`freedom`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from delineate.prompts import anatomy

Place = Callable[[Tensor, Generator], Tensor]  # mirrored (B,) to maps (B, 2, 3), as `F.affine_grid` takes them
Shade = Callable[[Tensor, Generator], Tensor]  # grey (B, 3, S, S) in [0, 1] to grey, about that range
Enhance = Callable[[Tensor, Tensor, Generator], Tensor]  # grey (B, 3, S, S) in [0, 1] and labels (B, S, S) to grey

UPRIGHT_DEGREES = 30.0  # the most that a slice with a left and a right is turned; nnU-Net's own limit in 3-D


@dataclass(frozen=True)
class Augmentation:
    """How structures stand out, where slices are put, and how their grey values change; None leaves them alone.

    >>> image, labels = torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.uint8)
    >>> flat = torch.tensor([True, True])
    >>> moved, moved_labels = AUGMENTATIONS["default"](image, labels, flat, Generator().manual_seed(0))
    >>> moved.shape, moved_labels.dtype
    (torch.Size([2, 3, 32, 32]), torch.uint8)
    """

    place: Place | None = None
    shade: Shade | None = None
    enhance: Enhance | None = None

    def __call__(self, image: Tensor, labels: Tensor, mirrored: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Slices and their labels, varied.

        Args:
            image: (B, 3, S, S) in [-1, 1].
            labels: (B, S, S) uint8; moved by the same map, nearest neighbour.
            mirrored: (B,) as `freedom` gives it; True is 1.
            generator: of every random number drawn here.
        """
        maps = self.maps(mirrored, generator)
        image = self.enhanced(image, labels, mirrored, generator)
        return self.picture(image, maps, generator), moved_labels(labels, maps)

    def enhanced(self, image: Tensor, labels: Tensor, mirrored: Tensor, generator: Generator) -> Tensor:
        """Slices of volumes with their structures brighter or darker, flat pictures as they are; before `picture`."""
        volumes = mirrored == 0
        if self.enhance is None or not volumes.any():
            return image
        image = image.clone()
        image[volumes] = 2 * self.enhance((image[volumes] + 1) / 2, labels[volumes], generator) - 1
        return image

    def maps(self, mirrored: Tensor, generator: Generator) -> Tensor | None:
        """A map for each slice, (B, 2, 3), to be shared by all pictures of it; None where nothing moves."""
        return None if self.place is None else self.place(mirrored, generator)

    def picture(self, image: Tensor, maps: Tensor | None, generator: Generator) -> Tensor:
        """Slices (B, 3, S, S) in [-1, 1], moved by `maps` and then changed in grey by draws of their own."""
        if maps is None and self.shade is None:
            return image
        grey = image + 1
        if maps is not None:  # zeros outside are air
            grid = F.affine_grid(maps, list(image.shape), align_corners=False)
            grey = F.grid_sample(grey, grid, mode="bilinear", align_corners=False)
        grey = grey / 2
        if self.shade is not None:
            grey = self.shade(grey, generator)
        return (2 * grey - 1).clamp(-1, 1)


def moved_labels(labels: Tensor, maps: Tensor | None) -> Tensor:
    """Labels (B, S, S) uint8 moved by `maps` (B, 2, 3), nearest neighbour; background comes in from outside."""
    if maps is None:
        return labels
    grid = F.affine_grid(maps, [len(labels), 1, *labels.shape[1:]], align_corners=False)
    moved = F.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)
    return moved[:, 0].to(torch.uint8)


def freedom(flat: bool, modality: str | None) -> int:
    """How a picture may be moved beyond small turns: 0 not at all, 1 mirrored left to right, 2 turned any way round.

    Volumes are not; flat pictures are mirrored, and those of a kind without a top (`anatomy.TURNABLE`) turned.
    """
    code = anatomy.MODALITY_CODES.get((modality or "").lower(), modality)
    return int(flat) * (2 if code in anatomy.TURNABLE else 1)


# Where slices are put.


def similarities(degrees: Tensor, scale: Tensor, signs: Tensor, shift: Tensor) -> Tensor:
    """Maps (B, 2, 3) that turn, scale, flip and shift, from the picture that comes out to the one that goes in.

    Args:
        degrees: (B,).
        scale: (B,); above 1 things get smaller.
        signs: (B, 2) of ±1, for columns and rows.
        shift: (B, 2), in half-widths.
    """
    angle = degrees.deg2rad()
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    linear = rotation * scale[:, None, None] * signs[:, :, None]
    return torch.cat([linear, shift[:, :, None]], dim=2)


def _default_place(mirrored: Tensor, generator: Generator) -> Tensor:
    """Rotation ±20° (any where there is no top), scale 0.74 to 1.35, shift ±8 %, and flips, as `freedom` says."""
    count = len(mirrored)
    degrees = _uniform(count, -1, 1, generator) * torch.where(mirrored > 1, 180.0, 20.0)
    scale = (_uniform(count, -1, 1, generator) * math.log(1.35)).exp()
    may = torch.stack([mirrored > 0, mirrored > 1], dim=1)  # columns, rows
    signs = 1.0 - 2.0 * (may & (_chance(count, 2, generator=generator) < 0.5))
    shift = torch.stack([_uniform(count, -0.16, 0.16, generator) for _ in range(2)], dim=1)  # half-widths: ±8 %
    return similarities(degrees, scale, signs, shift)


def _placed(
    *,
    degrees: float = 0.0,
    upright: float = 0.0,
    turned: float = 1.0,
    zoom: Shade | None = None,
    mirror: float = 0.0,
    shift: float = 0.0,
) -> Place:
    """A `Place`: `degrees` either way (`upright` where left and right count) with probability `turned`, and so on.

    `zoom` draws scales for a tensor of slices; `mirror` is the probability that flips are drawn at all, each of the
    two then being made with probability 1/2 (batchgenerators' MirrorTransform); `shift` is the most either way, in
    half-widths.
    """

    def place(mirrored: Tensor, generator: Generator) -> Tensor:
        count = len(mirrored)
        most = torch.where(mirrored > 1, degrees, upright) * (_chance(count, generator=generator) < turned)
        angle = most * _uniform(count, -1, 1, generator)
        ones = torch.ones(count, device=mirrored.device)
        scale = ones if zoom is None else zoom(ones, generator)
        may = torch.stack([mirrored > 0, mirrored > 1], dim=1)  # columns, rows
        flips = may & (_chance(count, generator=generator) < mirror)[:, None]
        signs = 1.0 - 2.0 * (flips & (_chance(count, 2, generator=generator) < 0.5))
        moved = torch.zeros(count, 2, device=mirrored.device)
        if shift:
            moved = shift * (2 * _chance(count, 2, generator=generator) - 1)
        return similarities(angle, scale, signs, moved)

    return place


# How grey values change.


def _default_shade(grey: Tensor, generator: Generator) -> Tensor:
    """Gamma 0.71 to 1.4, contrast ±20 %, brightness ±0.1 and noise to 0.05 of the range of greys; some are softer."""
    count, shape = len(grey), (-1, 1, 1, 1)
    grey = grey.clamp(0, 1) ** (_uniform(count, -1, 1, generator) * math.log(1.4)).exp().view(shape)
    grey = 0.5 + (grey - 0.5) * _uniform(count, 0.8, 1.2, generator).view(shape)
    grey = grey + _uniform(count, -0.1, 0.1, generator).view(shape)
    noise = _normal(*grey.shape, generator=generator) * _uniform(count, 0, 0.05, generator).view(shape)
    low = F.interpolate(F.avg_pool2d(grey, 2), scale_factor=2, mode="bilinear", align_corners=False)
    soft = (_chance(count, generator=generator) < 0.2) * _chance(count, generator=generator)
    return torch.lerp(grey, low, soft.view(shape)) + noise


def _contrast_agent(chance: float, spread: float) -> Enhance:
    """Each labelled structure brighter or darker by a normal number, as at another second after contrast was given.

    Of a slice that is chosen (with probability `chance`) every structure moves by a number of its own, `spread` of the
    range of greys wide, over an edge of three pixels; what has no label, and air, stays.
    """

    def enhance(grey: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        count = len(grey)
        offset = spread * _normal(count, 256, generator=generator)
        offset[:, 0] = 0
        offset = offset * (_chance(count, 1, generator=generator) < chance)
        field = offset.gather(1, labels.flatten(1).long()).view(count, 1, *labels.shape[1:])
        field = F.avg_pool2d(field, 3, stride=1, padding=1)
        return (grey + field * (grey > 0.05)).clamp(0, 1)

    return enhance


def _contrast(grey: Tensor, generator: Generator) -> Tensor:
    """×0.75 to 1.25 about the slice's mean, within its own range."""
    factor = _about_one(len(grey), 0.75, 1.25, generator).view(-1, 1, 1, 1)
    low, high = grey.amin((1, 2, 3), keepdim=True), grey.amax((1, 2, 3), keepdim=True)
    mean = grey.mean((1, 2, 3), keepdim=True)
    return (mean + (grey - mean) * factor).clamp(low, high)


def _multiplied(grey: Tensor, generator: Generator) -> Tensor:
    """Grey ×0.75 to 1.25, air staying black."""
    return grey * _uniform(len(grey), 0.75, 1.25, generator).view(-1, 1, 1, 1)


def _brightness(grey: Tensor, generator: Generator) -> Tensor:
    """A normal offset of 0.5 of the slice's standard deviation of grey: one for each slice."""
    offset = 0.5 * _normal(len(grey), generator=generator)
    return grey + offset.view(-1, 1, 1, 1) * grey.std((1, 2, 3), keepdim=True)


def _gamma(grey: Tensor, generator: Generator) -> Tensor:
    """The power 0.7 to 1.5, as often below 1 as above."""
    return grey.clamp(0, 1) ** _about_one(len(grey), 0.7, 1.5, generator).view(-1, 1, 1, 1)


def _steady_gamma(grey: Tensor, generator: Generator) -> Tensor:
    """`_gamma`, with the slice's mean and standard deviation put back as they were (nnU-Net's `retain_stats`)."""
    changed = _gamma(grey, generator)
    mean, spread = changed.mean((1, 2, 3), keepdim=True), changed.std((1, 2, 3), keepdim=True)
    was, wide = grey.mean((1, 2, 3), keepdim=True), grey.std((1, 2, 3), keepdim=True)
    return was + (changed - mean) * (wide / (spread + 1e-8))


def _inverted_gamma(grey: Tensor, generator: Generator) -> Tensor:
    """`_steady_gamma` of the negative."""
    return 1 - _steady_gamma(1 - grey, generator)


def _noise(variance: float) -> Shade:
    """Gaussian noise of a variance between 0 and `variance`, in units of the slice's own variance of grey."""

    def shade(grey: Tensor, generator: Generator) -> Tensor:
        width = _uniform(len(grey), 0, variance, generator).sqrt().view(-1, 1, 1, 1) * grey.std((1, 2, 3), keepdim=True)
        return grey + width * _normal(*grey.shape, generator=generator)

    return shade


def _blur(low: float, high: float) -> Shade:
    """A Gaussian blur of `low` to `high` pixels."""

    def shade(grey: Tensor, generator: Generator) -> Tensor:
        sigma, reach = _uniform(len(grey), low, high, generator), math.ceil(3 * high)
        kernel = (-0.5 * (torch.arange(-reach, reach + 1, device=sigma.device) / sigma[:, None]) ** 2).exp()
        kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(grey.shape[1], dim=0)[:, None, None]
        flat = F.pad(grey.flatten(0, 1)[None], (reach,) * 4, mode="replicate")
        rows = F.conv2d(flat, kernel, groups=len(kernel))
        return F.conv2d(rows, kernel.transpose(2, 3), groups=len(kernel)).view_as(grey)

    return shade


def _low_resolution(grey: Tensor, generator: Generator) -> Tensor:
    """Half to all of the pixels, by nearest neighbour, and back by cubic interpolation."""
    side, shares = grey.shape[-1], _uniform(len(grey), 0.5, 1, generator).tolist()
    coarse = [
        F.interpolate(g[None], max(1, round(side * z)), mode="nearest-exact") for g, z in zip(grey, shares, strict=True)
    ]
    return torch.cat([F.interpolate(c, side, mode="bicubic", align_corners=False) for c in coarse])


def bias_fields(count: int, side: int, most: float, generator: Generator) -> Tensor:
    """Smooth random fields to multiply slices by, (B, 1, S, S), of a strength drawn from 0 to `most`.

    As in `delineate.scans.bias`: the geometric mean is 1 and the greatest value (1 + strength) / (1 - strength) times
    the smallest. The logarithm is a 4×4 grid of normal numbers, interpolated by cubics.
    """
    coarse = _normal(count, 1, 4, 4, generator=generator)
    pattern = F.interpolate(coarse, side, mode="bicubic", align_corners=True)
    pattern = pattern - pattern.mean((2, 3), keepdim=True)
    extent = pattern.amax((2, 3), keepdim=True) - pattern.amin((2, 3), keepdim=True)
    strength = _uniform(count, 0, most, generator).view(-1, 1, 1, 1)
    return (pattern * (2 * strength.atanh() / extent)).exp()  # 2 atanh s = log((1 + s) / (1 - s))


def _bias(most: float) -> Shade:
    """The bias field of MR coils, of a strength of 0 to `most`; a slice's brightest grey stays, as do black and air."""

    def shade(grey: Tensor, generator: Generator) -> Tensor:
        shaded = grey * bias_fields(len(grey), grey.shape[-1], most, generator)
        brightest = [picture.amax((1, 2, 3), keepdim=True) for picture in (grey, shaded)]
        return shaded * (brightest[0] / brightest[1].clamp(min=1e-6))

    return shade


def _curve(inverted: float) -> Shade:
    """Grey through a random Bézier curve from black to black and white to white, the other way round with a chance.

    After Models Genesis (Zhou et al. 2021, MedIA 67:101840), with control points at even distances: half of the
    curves rise all the way, the others need not. `inverted` is the probability of the negative.
    """

    def shade(grey: Tensor, generator: Generator) -> Tensor:
        count, grey = len(grey), grey.clamp(0, 1)
        inner = _chance(count, 4, generator=generator)
        rising = _chance(count, 1, generator=generator) < 0.5
        inner = torch.where(rising, inner.sort(dim=1).values, inner)
        heights = F.pad(F.pad(inner, (1, 0)), (0, 1), value=1.0)
        flipped = _chance(count, 1, generator=generator) < inverted
        heights = torch.where(flipped, 1 - heights, heights)
        curve, degree = torch.zeros_like(grey), heights.shape[1] - 1
        for k, height in enumerate(heights.unbind(1)):  # weighs Bernstein's polynomials
            curve = curve + height.view(-1, 1, 1, 1) * math.comb(degree, k) * grey**k * (1 - grey) ** (degree - k)
        return curve

    return shade


def _sometimes(chance: float, shade: Shade) -> Shade:
    """`shade` on each slice with probability `chance`."""

    def shaded(grey: Tensor, generator: Generator) -> Tensor:
        chosen = _chance(len(grey), generator=generator) < chance
        if not chosen.any():
            return grey
        grey = grey.clone()
        grey[chosen] = shade(grey[chosen], generator)
        return grey

    return shaded


def _one_after_another(*shades: Shade) -> Shade:
    def shaded(grey: Tensor, generator: Generator) -> Tensor:
        for shade in shades:
            grey = shade(grey, generator)
        return grey

    return shaded


def _nnunet_shade(times: float = 1.0) -> Shade:
    """nnU-Net's changes of grey, each `times` as likely."""
    return _one_after_another(
        _sometimes(times * 0.1, _noise(0.1)),
        _sometimes(times * 0.2 * 0.5, _blur(0.5, 1.0)),
        _sometimes(times * 0.15, _multiplied),
        _sometimes(times * 0.15, _contrast),
        _sometimes(times * 0.25 * 0.5, _low_resolution),
        _sometimes(times * 0.1, _inverted_gamma),
        _sometimes(times * 0.3, _steady_gamma),
    )


def _chance(*shape: int, generator: Generator) -> Tensor:
    """Even numbers in [0, 1), on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)


def _normal(*shape: int, generator: Generator) -> Tensor:
    """Standard normal numbers, on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device)


def _uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * _chance(count, generator=generator)


def _about_one(count: int, low: float, high: float, generator: Generator) -> Tensor:
    """From `low` to `high`, below 1 as often as above (batchgenerators draws contrast, gamma and scale so)."""
    below = _chance(count, generator=generator) < 0.5
    share = _chance(count, generator=generator)
    return torch.where(below, low + (1 - low) * share, 1 + (high - 1) * share)


def _zoom(low: float, high: float, chance: float = 1.0) -> Shade:
    """Scales drawn by `_about_one`, with probability `chance`, for a tensor of ones."""
    return _sometimes(chance, lambda ones, generator: _about_one(len(ones), low, high, generator))


AUGMENTATIONS = {
    "none": Augmentation(),
    # A scan's own range is taken out before a network sees it (`delineate.scans.preparation`): only curves and the
    # agent show it what another second after contrast was given, or another scanner, would.
    "default": Augmentation(
        _default_place,
        _one_after_another(_sometimes(0.3, _curve(0.0)), _default_shade),
        _contrast_agent(0.5, 0.1),
    ),
    # What DiffBoost's own diffusion model is trained with (and flips): a generator must not learn changed greys.
    "diffboost": Augmentation(_placed(degrees=20, upright=20, zoom=_zoom(0.75, 1.05), mirror=1.0)),
    # What DiffBoost is compared with: one change each.
    "contrast": Augmentation(shade=_contrast),
    "gamma": Augmentation(shade=_gamma),
    "brightness": Augmentation(shade=_brightness),
    "noise": Augmentation(shade=_noise(0.05)),
    "blur": Augmentation(shade=_sometimes(0.5, _blur(0.5, 1.5))),
    "mirror": Augmentation(_placed(mirror=0.75)),
    "rotation": Augmentation(_placed(degrees=5, upright=5)),
    "scale": Augmentation(_placed(zoom=_zoom(0.95, 1.05))),
    "nnunet": Augmentation(
        _placed(degrees=180, upright=UPRIGHT_DEGREES, turned=0.2, zoom=_zoom(0.7, 1.4, 0.2), mirror=1.0),
        _nnunet_shade(),
    ),
    # Coils of MR, alone; and much of everything, which a network that has seen few scans of a kind bears well.
    "bias": Augmentation(shade=_bias(0.6)),
    "strong": Augmentation(
        _placed(degrees=180, upright=15, turned=0.5, zoom=_zoom(0.7, 1.4, 0.5), mirror=1.0, shift=0.16),
        _one_after_another(_sometimes(0.3, _curve(0.1)), _sometimes(0.5, _bias(0.6)), _nnunet_shade(2)),
    ),
}
