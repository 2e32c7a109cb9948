"""Zips of DICOM files, as an archive exports a series: unpacked to a bound, under names of ours.

Names in a zip lead anywhere, sizes in it may be lies, and kilobytes can unpack to a disk's worth. So no name of it is
used, what comes out is counted as it comes, and only what begins as DICOM does is kept.
"""

import shutil
import zipfile
import zlib
from pathlib import Path

from delineate.review.uploads import UploadError
from delineate.scans.archives import Bounded
from delineate.scans.dicom.source import begins_as_dicom

ZIP = ".zip"
MOST_FILES = 20_000
START = 132  # bytes that tell DICOM
_DAMAGED = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, ValueError, NotImplementedError, OSError)


def unpack_dicom(file: Path, folder: Path, most_bytes: int) -> None:
    """Put the DICOM files of a zip into a new folder, flat, in the zip's order.

    Args:
        file: the zip.
        folder: to be made.
        most_bytes: that may come out, together.

    Raises:
        UploadError: it is damaged, locked, holds too much or too many, or no DICOM.
    """
    folder.mkdir()
    left, kept = most_bytes, 0
    try:
        with Bounded(file) as opened, zipfile.ZipFile(opened) as packed:
            entries = [entry for entry in packed.infolist() if not entry.is_dir()]
            if len(entries) > MOST_FILES:
                raise UploadError(f"a zip may hold {MOST_FILES:,} files, found {len(entries):,}; send one series")
            for entry in entries:
                if entry.flag_bits & 1:
                    raise UploadError("a zip must not be locked with a password, this one is; send it without")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UploadError("a zip must be packed in the usual way (deflate); pack it again")
                with packed.open(entry) as source:
                    start = source.read(START)
                    left -= len(start)
                    if not begins_as_dicom(start):
                        continue
                    kept += 1
                    with (folder / f"{kept:06d}.dcm").open("wb") as target:
                        target.write(start)
                        while piece := source.read(1 << 20):
                            left -= len(piece)
                            if left < 0:
                                raise UploadError(
                                    f"a zip may unpack to {most_bytes >> 20:,} MiB, this one to more; send one series"
                                )
                            target.write(piece)
    except UploadError:
        raise
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:  # of our own disk, not of what was sent
            raise
        raise UploadError("the zip is damaged or cut short; pack it again") from error
    if not kept:
        shutil.rmtree(folder)
        raise UploadError("a zip must hold DICOM files, this one has none; send a scan of another format by itself")
