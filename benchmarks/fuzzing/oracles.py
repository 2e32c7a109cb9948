"""What the answer to a scan must be, as another library knows it, or the same scan kept otherwise."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing import server
from fuzzing.trial import Check, Done, Verdict

SAME_SHARE = 0.03  # of a volume; interpolation of what was turned costs less
SAME_LEAST_ML = 1.5
SAME_LEAST_PIXELS = 60.0
MOST_ML = 1e6  # a cubic metre
FAR_MM = 0.05  # how far the corner of a mask may lie from that of its scan


def volumes(output: Path) -> dict[str, float]:
    """The volume (ml, or pixels) of each target of the only finished case; {} where there is none."""
    found = {}
    for file in sorted(output.glob("*/case.json"))[:1]:
        for target in json.loads(file.read_text())["targets"]:
            size = target.get("consensus_ml", target.get("consensus_pixels"))
            if size is not None:
                found[str(target["target"])] = float(size)
    return found


def plausible(output: Path) -> Check:
    """Whether the volumes that are told could be of anything in the world."""

    def check(done: Done) -> Verdict | None:
        for name, size in volumes(output).items() if done.code == 0 else ():
            if not size <= MOST_ML:
                return "silent wrong", f"{name} of {size:.3g} ml"
        return None

    return check


def notes(output: Path, done: Done) -> list[str]:
    """What was said of how the scan was taken, in `case.json` and on standard error."""
    said = [line for line in done.err.splitlines() if line.startswith("delineate:")]
    for file in sorted(output.glob("*/case.json"))[:1]:
        said += json.loads(file.read_text()).get("notes", [])
    return said


def differ(found: dict[str, float], expected: dict[str, float], flat: bool = False) -> str | None:
    """How two answers' volumes differ by more than rounding; None where they do not."""
    least = SAME_LEAST_PIXELS if flat else SAME_LEAST_ML
    for name, was in expected.items():
        now = found.get(name)
        if now is None or not abs(now - was) <= max(least, SAME_SHARE * abs(was)):
            told = "nothing" if now is None else f"{now:.5g}"
            return f"{name} {told}, where it is {was:.5g}"
    return None


def same_volumes(output: Path, expected: dict[str, float], flat: bool = False) -> Check:
    """For a scan kept in another way: whether the answer is what it was."""

    def check(done: Done) -> Verdict | None:
        if done.code == 0 and (wrong := differ(volumes(output), expected, flat)):
            return "silent wrong", f"the same scan kept otherwise: {wrong}"
        return None

    return check


def geometry_fits(scan: Path, output: Path) -> Check:
    """Whether SimpleITK opens every mask where it opens the scan, and finds it in the same place.

    Where a note tells that the scan's two forms differ, each may go by another.
    """

    def check(done: Done) -> Verdict | None:
        masks = sorted(p for p in output.glob("*/*.nii.gz") if (p.parent / "case.json").is_file())
        if done.code != 0 or not masks:
            return None
        answer = server.aside(lambda: _compare(scan, masks[:2]))
        if answer is None:
            return "silent wrong", "a library died of a mask or its scan"
        told = any("sform used" in note or "the sform is used" in note for note in notes(output, done))
        return ("silent wrong", answer["wrong"]) if answer.get("wrong") and not told else None

    return check


def _compare(scan: Path, masks: Sequence[Path]) -> dict[str, str]:
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        there = sitk.ReadImage(str(scan))
    except RuntimeError:
        there = None
    for mask in masks:
        try:
            here = sitk.ReadImage(str(mask))
        except RuntimeError as error:
            if there is None:
                continue
            return {
                "wrong": f"{mask.name}: SimpleITK opens the scan, not the mask: {str(error).splitlines()[-1][:150]}"
            }
        if there is None:
            continue
        count = min(3, there.GetDimension())
        if list(here.GetSize())[:count] != list(there.GetSize())[:count]:
            return {"wrong": f"{mask.name}: size {here.GetSize()}, the scan's is {there.GetSize()}"}
        if there.GetDimension() == 3 and here.GetDimension() == 3:
            end = [n - 1 for n in there.GetSize()]
            for corner in ([0, 0, 0], end):
                one, other = (np.array(i.TransformIndexToPhysicalPoint(corner)) for i in (here, there))
                apart = float(np.abs(one - other).max())
                if not apart <= FAR_MM + 1e-5 * float(np.abs(other).max()):
                    return {"wrong": f"{mask.name}: lies {apart:.4g} mm from its scan, as SimpleITK sees both"}
    return {}


def true_to_content(scan: Path, output: Path, options: Sequence[str], usual: Sequence[str] = ()) -> Check:
    """Whether the answer to an odd NIfTI is the one to a plain file that holds what SimpleITK reads in it.

    What is told in a note that the scan as it was does not have (`usual`) is not silent.
    """

    def check(done: Done) -> Verdict | None:
        if done.code != 0 or any(note not in usual for note in notes(output, done)):
            return None
        folder = output.parent / "clean"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        plain = folder / "clean.nii.gz"
        told = server.aside(lambda: _rewrite(scan, plain))
        try:
            if not told or not plain.is_file():
                return None
            again = server.run(["segment", str(plain), *options, "-o", "answer"], folder, folder / ".log")
            if again.code == 0 and (wrong := differ(volumes(output), volumes(folder / "answer"))):
                return "silent wrong", f"{wrong} for SimpleITK, which reads {told}; nothing is said"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return None

    return check


def _rewrite(scan: Path, plain: Path) -> Any:
    """Write what SimpleITK reads as a plain file; size and spacing, or None where it does not read it."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(str(scan))
    except RuntimeError:
        return None
    if image.GetNumberOfComponentsPerPixel() > 1 or image.GetDimension() not in (2, 3):
        return None
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    if array.size > 3e7:
        return None
    clean = sitk.GetImageFromArray(np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0))
    clean.CopyInformation(image)
    sitk.WriteImage(clean, str(plain))
    return {"size": image.GetSize(), "spacing": [round(s, 4) for s in image.GetSpacing()]}


def picture_fits(scan: Path, output: Path) -> Check:
    """Whether masks of a flat image have its size, or that of the image turned as its EXIF says."""

    def check(done: Done) -> Verdict | None:
        masks = sorted(
            p for p in output.glob("*/*.png") if p.name != "montage.png" and (p.parent / "case.json").is_file()
        )
        if done.code != 0 or not masks:
            return None
        answer = server.aside(lambda: _sizes(scan, masks[0]))
        if answer and answer["mask"] not in (answer["scan"], answer["scan"][::-1]):
            return "silent wrong", f"the mask is {answer['mask']}, the picture {answer['scan']}"
        return None

    return check


def _sizes(scan: Path, mask: Path) -> Any:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(scan) as image:
            size = list(image.size)
    except (OSError, ValueError, SyntaxError):
        return None
    with Image.open(mask) as image:
        return {"scan": size, "mask": list(image.size)}
