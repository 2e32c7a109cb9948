"""Model folders to and from the Hugging Face Hub. Nothing is fetched but what `hf://` names; nothing is sent unasked.

    hf://ORGANISATION/NAME              the newest state of a repository
    hf://ORGANISATION/NAME@REVISION     a branch, a tag or a commit

What comes is data: the files that the manifest names, each compared with its hash before it is read.
"""

import re
import shutil
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from delineate.errors import ModelError
from delineate.hub.readme import readme
from delineate.model_folder import check_free, check_model, found_model
from delineate.storage.files import write_text
from delineate.storage.sealed import MANIFEST, README, read_manifest
from delineate.storage.swapping import swapping

SCHEME = "hf://"
ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
FAULTS = (OSError, ValueError, HTTPError, EntryNotFoundError)  # of the library, and of its client


def fetch(address: str, *, token: str | bool | None = None) -> Path:
    """The folder, in the library's cache, with a model of the Hub; fetched where it is not there yet.

    Args:
        address: as above.
        token: of an account, for private repositories; None for the one that `hf auth login` stored.

    Raises:
        ModelError: no address, nothing there, nothing that may be seen, no connection, or no model.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise ModelError(
            f"'{address}': a repository of the Hugging Face Hub is written hf://ORGANISATION/NAME[@REVISION]"
        )
    repository, revision = found["repository"], found["revision"]
    try:
        manifest = Path(hf_hub_download(repository, MANIFEST, revision=revision, token=token))
        commit = manifest.parent.name  # a branch may move meanwhile
        names = [escape(name) for name in read_manifest(manifest.parent, "model")]
        return Path(snapshot_download(repository, revision=commit, token=token, allow_patterns=[*names, MANIFEST]))
    except FAULTS as error:
        raise ModelError(f"{address}: {_told(error)}") from error


def place_of(name: Path | str, *, token: str | bool | None = None) -> Path:
    """The model folder that a name means: a folder, the one in a MONAI bundle of ours, or what `fetch` fetches.

    Raises:
        ModelError: there is none.
    """
    if str(name).startswith(SCHEME):
        return fetch(str(name), token=token)
    folder = found_model(Path(name))
    if not folder.is_dir():
        hint = f"; a repository of the Hugging Face Hub is named hf://{name}" if str(name).count("/") == 1 else ""
        raise ModelError(f"{name}: no such model folder{hint}")
    return folder


def publish(folder: Path, repository: str, *, private: bool = True, token: str | bool | None = None) -> str:
    """Send a folder that `write_repository` wrote to the Hub, and return the address of the page.

    Args:
        folder: the one.
        repository: ORGANISATION/NAME; made where there is none.
        private: whether a repository that is made is to be seen by its owners alone.
        token: as in `fetch`.

    Raises:
        ModelError: a name that is none, no connection, or no right to write there.
    """
    if ADDRESS.fullmatch(f"{SCHEME}{repository}") is None or "@" in repository:
        raise ModelError(f"'{repository}': a repository to write to is named ORGANISATION/NAME")
    try:
        page = HfApi(token=token).create_repo(repository, private=private, exist_ok=True)
        HfApi(token=token).upload_folder(
            repo_id=repository, folder_path=folder, commit_message="A model of delineate", ignore_patterns=".*"
        )
    except FAULTS as error:
        raise ModelError(f"{SCHEME}{repository}: {_told(error)}") from error
    return str(page)


def write_repository(model: Path | None, output: Path, *, licence: str | None = None) -> Path:
    """Write a checked model folder as the Hub shows one, whole or not at all: the same files, and a README.md.

    It stays a model folder with the same fingerprint: `delineate segment -m` takes it, adapters of the model fit it.

    Args:
        model: the folder; None for the model that ships.
        output: where to; an older model there is replaced.
        licence: of the model, as the Hub names it ("apache-2.0", "cc-by-4.0"); None where nobody says.

    Raises:
        ModelError: as `check_model`; or `output` holds something else, or is the model itself.
    """
    folder, config = check_model(model)
    output = Path(output)
    if output.exists() and output.samefile(folder):
        raise ModelError(f"{output}: is the model itself; choose another folder")
    check_free(output)
    text = readme(folder, config, licence)
    with swapping(output) as building:
        copy_files(folder, building)
        write_text(building / README, text)
    return output


def write_model(folder: Path, output: Path) -> Path:
    """Write a checked model folder again, its own files alone, whole or not at all.

    Raises:
        ModelError: as `write_repository`.
    """
    folder, _ = check_model(folder)
    check_free(Path(output))
    with swapping(Path(output)) as building:
        copy_files(folder, building)
    return Path(output)


def copy_files(folder: Path, target: Path) -> None:
    """Copy what a model's manifest names, and the manifest, into a folder that is there."""
    for name in (*read_manifest(folder, "model"), MANIFEST):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)


def _told(error: BaseException) -> str:
    """What went wrong between here and the Hub, and what to do, in a line."""
    if isinstance(error, GatedRepoError):
        return "its owners ask for consent on its page first; give it there, and log in with: hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository, or a private one; check the name, or log in with: hf auth login"
    if isinstance(error, RevisionNotFoundError):
        return "has no such revision; name a branch, a tag or a commit that its page lists"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"holds no model of delineate (no {MANIFEST}); check the name"
    said = " ".join(str(error).split()) or type(error).__name__
    return f"the Hugging Face Hub cannot be reached or refuses ({said:.200}); check the connection, or hf auth login"
