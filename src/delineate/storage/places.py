"""Where what is made of a scan is kept: under the scan's name, and never under that of another scan.

A name is what people call a scan by; what it is, its SHA-256 says. `case.json` of `delineate segment` holds that, and
`scan.json` of every review. A place that holds another scan's work is left alone, and the scan gets one of its own.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from delineate.errors import BusyError, ScanError
from delineate.storage.files import TEMPORARY, safe_name, sha256_of
from delineate.storage.hidden import HIDDEN
from delineate.storage.schema import read_json
from delineate.storage.swapping import WHOLE, is_locked

CASE = "case.json"
SCAN = "scan.json"
REVIEWS = "review"
LARGEST = 64 << 20  # bytes of a record
LONGEST = 100  # bytes of a name: what is put before and behind it fits into the 255 of a file system
OURS = re.compile(
    r"(run(-\d+-of-\d+)?\.jsonl?|case\.json|scan\.json|review|statistics\.(csv|json))(\..*)?", re.IGNORECASE
)
NOT_MASKS = ("labels", "montage")  # what else in a case's folder may end as masks do
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows opens these whatever the folder


def case_folder_name(text: str) -> str:
    """`text` as the name of one folder: no path, nothing that a terminal obeys, none that is used here or by Windows.

    >>> case_folder_name("Patient 7 (T2)"), case_folder_name(".."), case_folder_name("run.json")
    ('Patient 7 (T2)', 'scan', 'run.json_')
    """
    name = "".join(_plain(one) for one in unicodedata.normalize("NFC", text)).strip(" .") or "scan"
    if OURS.fullmatch(name) or DEVICES.fullmatch(name):
        name += "_"
    if len(name.encode()) > LONGEST:
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
        name = name.encode()[: LONGEST - 9].decode(errors="ignore").rstrip(" .") + f"-{digest}"
    return name


def _plain(one: str) -> str:
    return "_" if one in '<>:"/\\|?*' or unicodedata.category(one) in HIDDEN else one


def mask_stems(names: Sequence[str]) -> list[str]:
    """What the files of a case's targets are called, in the order asked, without what comes behind.

    >>> mask_stems(["left kidney", "liver", "left kidney", "labels"])
    ['left_kidney', 'liver', 'left_kidney_2', 'labels_2']
    """
    taken: list[str] = [*NOT_MASKS]
    for name in names:
        stem, number = safe_name(name), 1
        while (own := stem if number == 1 else f"{stem}_{number}") in taken:
            number += 1
        taken.append(own)
    return taken[len(NOT_MASKS) :]


def place_for(parent: Path, name: str, sha256: str) -> Path:
    """The folder for a scan: `parent/name`; where that holds another scan's work, `parent/name-<first of its hash>`."""
    place = Path(parent) / name
    if set(scans_of(place)) - {sha256}:
        return place.with_name(f"{name}-{sha256[:8]}")
    return place


def scans_of(place: Path) -> Iterator[str]:
    """The SHA-256 of the scans whose work is kept at a place: one, or none where nobody says."""
    for record in (place / CASE, *sorted((place / REVIEWS).glob(f"*/{SCAN}"))):
        told = _record(record)
        if told is not None and isinstance(told.get("sha256"), str):
            yield told["sha256"]


def read_case(place: Path) -> dict[str, Any] | None:
    """What `delineate segment` says of a case; None where it is missing, damaged or of an older release."""
    told = _record(place / CASE)
    kinds = {"case": str, "file": str, "sha256": str, "written": dict, "targets": list}
    if told is None or not all(isinstance(told.get(name), kind) for name, kind in kinds.items()):
        return None
    plain = all(name == Path(name).name for name in told["written"])  # no path out of the folder
    return told if plain and all(isinstance(digest, str) for digest in told["written"].values()) else None


def keep_of_people(place: Path) -> dict[str, str]:
    """What of a case's folder is not ours, by name, and what it is to be called in the next one.

    That is whatever `delineate segment` did not write, and what it wrote and somebody changed since.
    """
    if not place.is_dir():
        return {}
    told = read_case(place)
    written = {} if told is None else told["written"]
    kept = {}
    for path in sorted(place.iterdir()):
        name = path.name
        if name in (CASE, WHOLE) or name.startswith(TEMPORARY):
            continue
        if name not in written:
            kept[name] = name
        elif path.is_file() and path.stat().st_size and sha256_of(path) != written[name]:
            stem, dot, suffixes = name.partition(".")
            kept[name] = f"{stem}-changed{dot}{suffixes}"
    return kept


def refuse_if_reviewed(place: Path) -> None:
    """See that nobody has the case open in `delineate review`: answers would change under their eyes.

    Raises:
        BusyError: somebody has.
    """
    for log in (place / REVIEWS).glob("*/events.jsonl"):
        if is_locked(log):
            raise BusyError(f"{place}: is open in a review by '{log.parent.name}'; end that one, and do it again")


def _record(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return read_json(path, dict[str, Any], error=ScanError, most_bytes=LARGEST)
    except (ScanError, OSError):
        return None
