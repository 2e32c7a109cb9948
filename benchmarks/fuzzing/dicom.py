"""Odd and broken DICOM: series that lack, repeat or contradict, and files that are cut."""

import shutil
from pathlib import Path
from random import Random

import numpy as np

from fuzzing import checks, oracles
from fuzzing.series import write_series
from fuzzing.trial import Check, Done, Trial, Verdict
from fuzzing.world import SMALL, World

TAGS = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient"),
    *("ImageOrientationPatient", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"),
    *("Modality", "SeriesNumber", "InstanceNumber", "SliceThickness", "SOPClassUID", "PatientName", "NumberOfFrames"),
)
VALUES = {
    "Rows": (0, 1, 65535),
    "Columns": (0, 1, 65535),
    "BitsAllocated": (0, 1, 8, 12, 32, 64),
    "BitsStored": (0, 1, 12, 17, 65535),
    "HighBit": (0, 7, 31),
    "PixelRepresentation": (0, 2),
    "SamplesPerPixel": (0, 3, 4),
    "PhotometricInterpretation": ("MONOCHROME1", "RGB", "PALETTE COLOR", "YBR_FULL", "", "\x1b[31m"),
    "RescaleSlope": (0, -1, 1e30, 1e-30, 2),
    "RescaleIntercept": (-1024, 1e30),
    "PixelSpacing": ([0, 0], [-1, 1], [1e30, 1e30], [1e-9, 1e-9], [1, 5]),
    "ImagePositionPatient": ([0, 0, 0], [1e30, 0, 0], [1, 1, 1e-30]),
    "ImageOrientationPatient": ([0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0.9, 0.4], [2, 0, 0, 0, 2, 0]),
    "Modality": ("", "XX", "SEG", "RTSTRUCT", "US", "\x1b[31mCT"),
    "SeriesNumber": (0, -1, 2**31 - 1),
    "InstanceNumber": (0, -5),
    "SliceThickness": (0, -1, 1e30),
    "SOPClassUID": ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.3", ""),
    "NumberOfFrames": (0, 3, 10**6),
    "PatientName": ("Müller^\x1b[2J", "x" * 60, "="),
}
DAMAGED = ("cut", "cut early", "empty", "rubbish")
OPTIONS = ("-p", "liver", *SMALL)
UIDS = ("1.2.3", "", "x", "1." * 40 + "1", "1.2.3\n4")


def trial(rng: Random, world: World, folder: Path) -> Trial:
    """A segmentation of a DICOM folder or file that is not as it should be."""
    series = folder / "series"
    arguments: list[str] = []
    if rng.random() < 0.45:
        whole = np.zeros((3, 30, 34)) + np.arange(3)[:, None, None] * 40
        tag = rng.choice(TAGS)
        value = rng.choice([None, *VALUES.get(tag, UIDS)])
        every = rng.random() < 0.6
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                write_series(series, whole, elements={tag: value} if every else {})
                if not every:
                    write_series(folder / "odd", whole, elements={tag: value})
                    shutil.copy(folder / "odd" / "001.dcm", series / "001.dcm")
                    shutil.rmtree(folder / "odd")
                what = f"{tag} is {value!r} in {'all' if every else 'one'}"
            except Exception as error:  # pydicom itself refuses to write it
                shutil.rmtree(series, ignore_errors=True)
                shutil.copytree(world["dicom"], series)
                (series / "001.dcm").write_bytes((series / "001.dcm").read_bytes()[:900])
                what = f"cut, since {tag} cannot be {value!r} ({type(error).__name__})"
    else:
        shutil.copytree(world["dicom"], series)
        what = _files(series, rng)
    target = "series"
    if rng.random() < 0.15 and (files := sorted(series.iterdir())):
        target = f"series/{rng.choice(files).name}"
    if rng.random() < 0.2:
        arguments += rng.choice((["--fill-gaps"], ["--series", "0"], ["--series", "\x1b[1m"], ["--volume", "1"]))
    if rng.random() < 0.3:
        arguments += ["--seg", rng.choice(("fractional", "none"))]
    return Trial(
        ["segment", target, "-p", "liver", *SMALL, *arguments, "-o", "out"],
        f"DICOM: {what}",
        [checks.cases_are_whole(folder / "out"), *([_is_told(folder / "out")] if what in DAMAGED else [])],
    )


def same_trial(rng: Random, world: World, folder: Path) -> Trial:
    """A good series with its files in another order, under other names, or read under `ulimit -v`."""
    series = folder / "series"
    shutil.copytree(world["dicom"], series)
    how = rng.choice(("other order", "no suffix", ".IMA", "text beside", "limited addresses", "a copy of one"))
    files = sorted(series.iterdir())
    for number, file in enumerate(files):
        if how == "other order":
            file.rename(series / f"x{(number * 2 + 1) % len(files)}.dcm")
        elif how in ("no suffix", ".IMA"):
            file.rename(series / f"IM.1.2.{number}{'.IMA' if how == '.IMA' else ''}")
    if how == "text beside":
        (series / "README.txt").write_text("hello")
    elif how == "a copy of one":
        shutil.copy(files[1], series / "again.dcm")
    output = folder / "out"
    return Trial(
        ["segment", "series", *OPTIONS, "-o", "out"],
        f"the same DICOM series, {how}",
        [
            checks.cases_are_whole(output),
            lambda done: ("silent wrong", "a good series is refused") if done.code else None,
            oracles.same_volumes(output, usual_volumes(world)),
        ],
        hard_limit=how == "limited addresses",
    )


def _is_told(output: Path) -> Check:
    """Whether an answer from fewer files than there are says so."""

    def check(done: Done) -> Verdict | None:
        if done.code == 0 and not oracles.notes(output, done):
            return "silent wrong", "a damaged file of the series is left out, and nothing is said"
        return None

    return check


def usual_volumes(world: World) -> dict[str, float]:
    """What the series is answered as it is."""
    output = world.root / "usual_dicom"
    if not (output / "run.json").exists():
        world.do("segment", world["dicom"], *OPTIONS, "-o", output)
    return oracles.volumes(output)


def _files(series: Path, rng: Random) -> str:
    files = sorted(series.iterdir())
    one = rng.choice(files)
    data = bytearray(one.read_bytes())
    ways = (
        *(
            "cut",
            "cut early",
            "empty",
            "bits flipped",
            "no preamble",
            "one gone",
            "twice",
            "text beside",
            "folder beside",
        ),
        *(
            "only one",
            "another series beside",
            "rubbish",
            "no pixels",
            "NIfTI beside",
            "link in a circle",
            "names of odd",
        ),
    )
    how = rng.choice(ways)
    if how == "cut":
        one.write_bytes(data[: rng.randrange(200, len(data))])
    elif how == "cut early":
        one.write_bytes(data[: rng.randrange(200)])
    elif how == "empty":
        one.write_bytes(b"")
    elif how == "bits flipped":
        for _ in range(rng.choice((1, 5, 50))):
            data[rng.randrange(128, rng.choice((1000, len(data))))] ^= 1 << rng.randrange(8)
        one.write_bytes(data)
    elif how == "no preamble":
        for file in files:
            file.write_bytes(file.read_bytes()[132:])
    elif how == "one gone":
        files[1].unlink()
    elif how == "twice":
        shutil.copy(one, series / "again.dcm")
    elif how == "text beside":
        (series / "README.txt").write_text("hello")
    elif how == "folder beside":
        shutil.copytree(series, series / "below")
    elif how == "only one":
        for file in files[1:]:
            file.unlink()
    elif how == "another series beside":
        other = series.parent / "other"
        write_series(other, np.zeros((3, 20, 20)), elements={"SeriesInstanceUID": "1.2.3.4.5", "SeriesNumber": 0})
        for file in sorted(other.iterdir()):
            file.rename(series / f"other-{file.name}")
        other.rmdir()
    elif how == "rubbish":
        one.write_bytes(data[:132] + rng.randbytes(3000))
    elif how == "no pixels":
        at = data.rfind(b"\xe0\x7f\x10\x00")
        one.write_bytes(data[:at])
    elif how == "NIfTI beside":
        (series / "x.nii.gz").write_bytes(b"no")
    elif how == "link in a circle":
        (series / "loop.dcm").symlink_to("loop.dcm")
    elif how == "names of odd":
        one.rename(series / rng.choice(("a\nb.dcm", "\x1b[31m.dcm", "é.dcm", "..dcm", "-o.dcm")))
    return how
