"""Scans and label maps that clients send: read from a nameless place, and kept for a while, if at all, in memory."""

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO, TypeVar

import numpy as np

from delineate.errors import DelineateError, ScanError
from delineate.review.work import NotHere
from delineate.scans.flat_images import PICTURE_SUFFIXES, TIFF_SUFFIXES
from delineate.scans.nifti import NIFTI_SUFFIXES
from delineate.scans.nrrd import SEGMENTATION_SUFFIX
from delineate.scans.reading import read_labels, read_scan
from delineate.scans.scan import VOLUME_SUFFIXES, Scan, suffix_of

SUFFIXES = (
    *NIFTI_SUFFIXES,
    SEGMENTATION_SUFFIX,
    ".nrrd",
    ".mha",
    *PICTURE_SUFFIXES,
    *TIFF_SUFFIXES,
)  # files that are whole in themselves
MOST_VOXELS = 200_000_000  # numbers: 512 x 512 x 763, or 66 million pixels in colour; 0.8 GB as float32
SESSIONS_A_USER = 2
SESSION_SECONDS = 3600.0

Read = TypeVar("Read")


class UploadError(DelineateError):
    """What was sent is not a file that can be read."""


def suffix_sent(name: str | None, suffixes: Sequence[str] = SUFFIXES) -> str:
    """The suffix of a file that was sent, by which its format is told: all of its name that is used.

    Raises:
        UploadError: it is none of those that are taken.
    """
    suffix = next((s for s in sorted(suffixes, key=len, reverse=True) if (name or "").lower().endswith(s)), None)
    if suffix is None:
        raise UploadError(f"a file must be named like one of {', '.join(suffixes)}; send it as NIfTI")
    return suffix


def read_sent(file: BinaryIO, name: str | None, read: Callable[[Path], Read]) -> Read:
    """What `read` makes of a file that was sent, which is gone afterwards.

    Args:
        file: its bytes.
        name: as the client calls it. Its suffix tells the format, nothing else of it is used.
        read: told where the bytes lie.

    Raises:
        UploadError: the suffix is none of an image, or `read` refuses it.
    """
    suffix = suffix_sent(name)
    folder = Path(tempfile.mkdtemp(prefix="delineate-"))
    path = folder / f"sent{suffix}"
    try:
        with path.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        return read(path)
    except ScanError as error:
        raise UploadError(str(error).replace(str(path), "the file that was sent")) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def scan_sent(file: BinaryIO, name: str | None) -> Scan:
    """A scan that was sent. Raises `UploadError`; see `read_sent`."""

    def read(path: Path) -> Scan:
        colours = 1 if suffix_of(path) in VOLUME_SUFFIXES else 3
        return read_scan(path, max_voxels=MOST_VOXELS // colours)

    return read_sent(file, name, read)


def labels_sent(file: BinaryIO, name: str | None, like: Scan) -> np.ndarray:
    """A label map that was sent, on the grid of `like`: whole numbers (I, J, K).

    Raises:
        UploadError: see `read_sent`; or it has another grid.
    """
    labels = read_sent(file, name, lambda path: read_labels(path, max_voxels=max(1, like.voxels.size)))
    same_place = np.allclose(labels.affine, like.affine, rtol=1e-4, atol=1e-2)  # a hundredth of a mm
    if labels.shape != like.shape or (like.has_spacing and not same_place):
        raise UploadError(
            f"a label map must lie on the scan's own grid, {like.shape} voxels; this one has {labels.shape}"
            f"{'' if same_place else ' and lies elsewhere'}. Save it with the scan as its reference"
        )
    return labels.voxels


@dataclass
class Session:
    """A scan that a client sent, and when."""

    id: str
    scan: Scan
    made: float
    used: float


class Sessions:
    """The scans that users sent, each seen by its own user alone; the oldest goes when there are too many.

    They are held in memory, so that no copy of them is left on the disk whatever happens.
    """

    def __init__(
        self, most: int = SESSIONS_A_USER, seconds: float = SESSION_SECONDS, clock: Callable[[], float] = time.time
    ):
        """At most so many a user, forgotten so many seconds after their last use by `clock`."""
        self.most, self.seconds, self._clock = most, seconds, clock
        self._kept: dict[str, dict[str, Session]] = {}
        self._lock = Lock()

    def add(self, user: str, scan: Scan) -> Session:
        """A new session."""
        with self._lock:
            kept = self._present(user)
            while len(kept) >= self.most:
                del kept[min(kept, key=lambda name: kept[name].used)]
            now = self._clock()
            session = Session(secrets.token_hex(16), scan, now, now)
            kept[session.id] = session
            return session

    def get(self, user: str, session: str) -> Session:
        """A user's session, used now.

        Raises:
            NotHere: it is not this user's, or has ended.
        """
        with self._lock:
            found = self._present(user).get(session)
            if found is None:
                raise NotHere("no such session here, or it has ended; send the scan again")
            found.used = self._clock()
            return found

    def remove(self, user: str, session: str) -> Session:
        """Forget a user's session, and return it.

        Raises:
            NotHere: as `get`.
        """
        found = self.get(user, session)
        with self._lock:
            self._kept[user].pop(session, None)
        return found

    def _present(self, user: str) -> dict[str, Session]:
        oldest = self._clock() - self.seconds
        for name in list(self._kept):
            self._kept[name] = {id_: one for id_, one in self._kept[name].items() if one.used >= oldest}
        return self._kept.setdefault(user, {})
