"""Proposals as HTML for notebooks: a line and four small pictures a target; no script, nothing from elsewhere."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from delineate.prompts.colours import CONSENSUS, DISTINCT
from delineate.proposals.reasons import why
from delineate.proposals.target import Outcome, TargetProposals
from delineate.scans.geometry import Orientation, canonical_spacing, orientation_of, to_canonical
from delineate.scans.intensity import intensity_range, normalise
from delineate.scans.scan import Scan
from delineate.storage.hidden import without_hidden

MOST_BYTES = 300_000  # of a page: what a stored notebook can bear many of
SIDES = {2: 240, 5: 176, 10: 128}  # pixels of a picture's longer side, with so many targets at most
SMALLEST = 96
SHADES = 64  # colours of a picture beside that of an outline
MOST_WORDS = 300  # characters of whatever others wrote
CARD = "margin:0.5em 0;border-left:4px solid {colour};padding-left:0.7em"
OUTLINED = "margin:0 8px 4px 0;display:inline-block;vertical-align:top;text-align:center;font-size:85%"


def page(scan: Scan, targets: Sequence[TargetProposals]) -> str:
    """HTML of at most `MOST_BYTES`, whatever was asked: outcome, volumes and why; of what was drawn, pictures.

    These show the slice with most of the consensus: the consensus, two distinct proposals, the doubt. Where there are
    too many targets even for the smallest, the last ones go without, and that is said. Names and words, which others
    may have written, are escaped.
    """
    head = f'<div style="font-family:sans-serif"><p style="margin:0.3em 0">{words(repr(scan))}</p>'
    foot = "<p>Nothing was asked.</p></div>" if not targets else "</div>"
    drawn = sum(target.drawn is not None for target in targets)
    side = next((side for most, side in SIDES.items() if drawn <= most), SMALLEST)
    look = Look.of(scan) if drawn else None
    left, cards = MOST_BYTES - len(head) - 1000, []
    for target in targets:
        line = told(target, scan)
        seen = pictures(target, look, side) if look is not None and target.drawn is not None else ""
        colour = CONSENSUS if target.outcome is Outcome.FOUND else "#888888"
        card = f'<div style="{CARD.format(colour=colour)}"><p style="margin:0.2em 0">{line}</p>{seen}</div>'
        if len(card) > left:
            card = f'<div style="{CARD.format(colour=colour)}"><p>{line} (no room for pictures)</p></div>'
        if len(card) > left:
            cards.append("<p>… and more targets than there is room for.</p>")
            break
        left -= len(card)
        cards.append(card)
    return head + "".join(cards) + foot


def words(text: str) -> str:
    """Text of others as HTML: escaped, cut where it is very long, without characters that are not seen."""
    seen = without_hidden(text[: 4 * MOST_WORDS])
    return escape(seen if len(seen) <= MOST_WORDS else seen[: MOST_WORDS - 1] + "…")


def told(target: TargetProposals, scan: Scan) -> str:
    """A target in a few lines of HTML."""
    text = f"<b>{words(target.name or target.prompt.text)}</b>: {words(target.outcome.value)}"
    aside = "".join(f"; {words(more)}" for more in (target.said, target.misfit) if more)
    aside += f"; nearest: {words(', '.join(target.nearest))}" if target.nearest else ""
    if target.drawn is None:
        return text + aside
    unit = 1.0 if scan.is_flat else abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
    name, sizes = "pixels" if scan.is_flat else "ml", target.sizes() * unit
    text += f", {written(target.size() * unit, scan)} {name}"
    if len(target) > 1:
        low, high = written(float(sizes.min()), scan), written(float(sizes.max()), scan)
        text += f" ({len(target)} proposals of {low} to {high})"
    if (expected := target.expected()) is not None:
        text += f"; Dice {expected.dice:.2f} expected, {expected.level:.0%}: {expected.low:.2f} to {expected.high:.2f}"
    return f'{text}{aside}<br><span style="opacity:0.75">{words(why(target, scan))}</span>'


def written(volume: float, scan: Scan) -> str:
    """A volume as people write it: whole pixels, ml with as many digits as mean something."""
    return f"{volume:,.0f}" if scan.is_flat or volume >= 100 else f"{volume:.3g}"


@dataclass(frozen=True, eq=False)
class Look:
    """How the slices of a scan are looked at.

    Attributes:
        slices: (S, H, W) or (S, H, W, 3), as people look at them.
        modality: of the scan.
        ends: the grey values that are black and white.
        orientation: how the scan's own axes become these.
        size_mm: width and height of a slice.
    """

    slices: np.ndarray
    modality: str | None
    ends: tuple[float, float]
    orientation: Orientation
    size_mm: tuple[float, float]

    @classmethod
    def of(cls, scan: Scan) -> "Look":
        """That of a scan; of several channels the first is shown."""
        shown, orientation = scan.shown, orientation_of(scan.affine)
        slices = to_canonical(shown.voxels, orientation)
        _, row_mm, column_mm = canonical_spacing(scan.affine, orientation)
        size_mm = (slices.shape[2] * column_mm, slices.shape[1] * row_mm)
        return cls(slices, shown.modality, intensity_range(shown.voxels, shown.modality), orientation, size_mm)

    def picture(self, k: int, side: int) -> Image.Image:
        """Slice k with so many pixels along its longer side, of `SHADES` colours."""
        grey = (normalise(self.slices[k], self.modality, self.ends) + 1) * 127.5
        wide, tall = (max(1, round(length * side / max(self.size_mm))) for length in self.size_mm)
        image = Image.fromarray(grey.astype(np.uint8)).resize((wide, tall), Image.Resampling.BILINEAR)
        return image.convert("RGB").quantize(SHADES, dither=Image.Dither.NONE)


def pictures(target: TargetProposals, look: Look, side: int) -> str:
    """The pictures of a target that was drawn, each with its caption: consensus, two distinct proposals, doubt."""
    (k, index), axis = target.fullest(look.orientation), look.orientation.order[0]
    base, here = look.picture(k, side), target.sliced(axis, index)

    def seen(array: np.ndarray) -> np.ndarray:
        return to_canonical(array, look.orientation)[0]

    where = f", slice {k + 1} of {len(look.slices)}" if len(look.slices) > 1 else ""
    parts = [figure(outlined(base, seen(target.consensus_in(axis, index)), CONSENSUS), f"consensus{where}")]
    for one, colour in zip(target.distinct(), DISTINCT, strict=False):
        caption = f"proposal {one.k}, for {one.weight:.0%} of {len(target)}"
        parts.append(figure(outlined(base, seen(here.choose(one.k)), colour), caption))
    doubt = Image.fromarray((seen(here.disagreement()) * (SHADES - 1)).astype(np.uint8)).resize(base.size)
    doubt.putpalette((colormaps["magma"](np.linspace(0, 1, SHADES))[:, :3] * 255).astype(np.uint8).tobytes())
    return "".join((*parts, figure(doubt, "doubt (0 to 1 bit)")))


def outlined(picture: Image.Image, mask: np.ndarray, colour: str) -> Image.Image:
    """A picture of few colours with the edge of a mask in one more; of small things a quarter of a pixel counts."""
    share = np.array(Image.fromarray(mask.astype(np.float32)).resize(picture.size, Image.Resampling.BOX))
    inside = np.pad(share >= 0.25, 2)
    edge = np.not_equal(binary_dilation(inside), binary_erosion(inside))[2:-2, 2:-2]
    pixels = np.array(picture)
    pixels[edge] = SHADES
    out = Image.fromarray(pixels)
    palette = (picture.getpalette() or [])[: 3 * SHADES]
    out.putpalette([*palette, *[0] * (3 * SHADES - len(palette)), *(round(255 * part) for part in to_rgb(colour))])
    return out


def figure(picture: Image.Image, caption: str) -> str:
    """A picture of few colours in the page itself, as PNG."""
    held = BytesIO()
    picture.save(held, "PNG", optimize=True)
    text, data = words(caption), b64encode(held.getvalue()).decode()
    image = f'<img alt="{text}" width="{picture.width}" src="data:image/png;base64,{data}">'
    return f'<figure style="{OUTLINED}">{image}<figcaption>{text}</figcaption></figure>'
