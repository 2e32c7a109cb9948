"""Build hook: puts NiiVue, which draws scans on the review page, into the package.

It comes from npm, at one version, and is checked against the digest below. Without npm an editable installation goes on
without it (`delineate review` then says what to do); a wheel must have it.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "@niivue/niivue@0.69.0"
MEMBER = "package/dist/niivue.umd.js"
SHA512 = "YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="  # of the package
PLACE = "src/delineate/review/static/vendor/niivue.umd.js"


class NiiVueHook(BuildHookInterface):
    """Fetches the viewer once; what is there already is kept."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before anything is packed."""
        place = Path(self.root) / PLACE
        if place.is_file():
            return
        try:
            fetch(place)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            if version != "editable":
                raise
            self.app.display_warning(f"the review page will lack its viewer, {PACKAGE}: {error}")


def fetch(place: Path) -> None:
    """Write the viewer to `place`, whole or not at all."""
    if shutil.which("npm") is None:
        raise OSError("npm is not installed; install it and run the installation again")
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--ignore-scripts", PACKAGE]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=300)
        archive = next(Path(folder).glob("*.tgz"))
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != SHA512:
            raise ValueError(f"npm delivered {PACKAGE} with another digest ({digest[:16]}…)")
        with tarfile.open(archive) as packed:
            member = packed.extractfile(MEMBER)
            if member is None:
                raise ValueError(f"{PACKAGE} has no {MEMBER}")
            place.parent.mkdir(parents=True, exist_ok=True)
            unfinished = place.with_suffix(".writing")
            unfinished.write_bytes(member.read())
            unfinished.replace(place)


if __name__ == "__main__":
    fetch(Path(__file__).parent / PLACE)
