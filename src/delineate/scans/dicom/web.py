"""DICOMweb: a series out of a PACS into a folder (WADO-RS), objects into a PACS (STOW-RS).

Nothing is sent anywhere but what `store` is told to, to the address that it is told. Who asks is known by a bearer
token in `DELINEATE_DICOMWEB_TOKEN`, or a name and password in `DELINEATE_DICOMWEB_LOGIN` ("name:password"): neither is
taken from a command line or from an address, where others can read them, and neither goes over an unencrypted network
or through a redirect.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from delineate.errors import ScanError
from delineate.storage.swapping import make_folder, swapping

if TYPE_CHECKING:
    from dicomweb_client.api import DICOMwebClient

TOKEN, LOGIN = "DELINEATE_DICOMWEB_TOKEN", "DELINEATE_DICOMWEB_LOGIN"
TIMEOUTS = (10.0, 60.0)  # seconds: to connect, and of silence
TRIES = 3
LONGEST_S = 3600.0  # of a series
MOST_BYTES = 8 << 30  # of a series: a billion voxels as floats, and their headers
MOST_INSTANCES = 50_000
MOST_SERIES = 500
LONGEST_HEAD = 1 << 16  # bytes before an instance, in a message of several
LOOPBACK = ("localhost", "127.0.0.1", "::1")
UID = r"[0-9]+(?:\.[0-9]+)*"
NOT_IMAGES = (
    "SEG",
    "RTSTRUCT",
    "RTPLAN",
    "RTDOSE",
    "RTRECORD",
    "SR",
    "KO",
    "PR",
    "DOC",
    "REG",
    "RWV",
    "ECG",
    "SM",
    "AU",
)


class WebError(ScanError):
    """A PACS cannot be reached, refuses, or answers something else than DICOM."""


@dataclass(frozen=True)
class Address:
    """Of a study, or of a series of it, in a PACS: the service's root, and the UIDs."""

    root: str
    study: str
    series: str | None = None

    @classmethod
    def of(cls, path: Path | str) -> "Address | None":
        """What `https://host/dicom-web/studies/UID[/series/UID]` names; None where `path` is no address.

        A path that went through `Path` has lost one of the two slashes; it is known all the same.

        >>> Address.of("https://pacs/dicom-web/studies/1.2/series/1.2.3")
        Address(root='https://pacs/dicom-web', study='1.2', series='1.2.3')

        Raises:
            WebError: an address, but of no study.
        """
        found = re.fullmatch(r"(https?):/{1,2}(.+)", str(path))
        if found is None:
            return None
        text = f"{found[1]}://{found[2]}".rstrip("/")
        named = re.fullmatch(rf"(.+?)/studies/({UID})(?:/series/({UID}))?", text)
        if named is None:
            raise WebError(
                f"{_shown(text)}: an address in a PACS names a study or a series of it, as "
                "https://host/dicom-web/studies/UID/series/UID"
            )
        if len(named[2]) > 64 or len(named[3] or "") > 64:
            raise WebError(f"{_shown(text)}: a UID has at most 64 characters; check the address")
        return cls(checked(named[1]), named[2], named[3])


def checked(root: str) -> str:
    """The root of a DICOMweb service, as it was given, without a slash at its end.

    Raises:
        WebError: it is no such address; it holds a password; or one that was given would go over an open network.
    """
    try:
        parts = urlsplit(root)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, named = urlsplit(""), False
    if not named or parts.query or parts.fragment or not root.isprintable():
        raise WebError(f"{_shown(root)}: a DICOMweb service has an address such as https://host/dicom-web")
    if parts.username or parts.password:
        raise WebError(f"{_shown(root)}: an address may hold no password, others can read it; set {LOGIN} instead")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK and (os.environ.get(TOKEN) or os.environ.get(LOGIN)):
        raise WebError(
            f"{_shown(root)}: a password would go over an open network; use https, or unset {TOKEN} and {LOGIN}"
        )
    return root.rstrip("/")


def fetch(address: Address, folder: Path) -> Path:
    """Put the images of a series, or of all image series of a study, into `folder`, and return the folder to read.

    A series comes to `folder/<its UID>`, whole or not at all; an older one of that name is replaced.

    Raises:
        WebError: in one line: the PACS cannot be reached, refuses, has no such series, sends less than it says that
            there is or more than is read.
    """
    with _client(address.root) as client:
        told = list(client.search_for_series(address.study, fields=["NumberOfSeriesRelatedInstances"]))
        counts = {
            _value(one, "0020000E"): (_value(one, "00080060"), _value(one, "00201209")) for one in told[:MOST_SERIES]
        }
        if address.series is not None:
            wanted = [address.series]
        else:
            wanted = [
                uid for uid, (kind, _) in counts.items() if kind not in NOT_IMAGES and re.fullmatch(UID, uid or "")
            ]
        if (address.series is None and len(told) > MOST_SERIES) or not wanted:
            found = f"more than {MOST_SERIES} series" if wanted else "no series of images"
            raise WebError(f"{address.root}: found {found} in study {address.study}; name a series")
        make_folder(folder)
        for uid in wanted:
            with swapping(folder / uid) as building:
                number = _series(client, address, uid, building)
                said = counts.get(uid, ("", ""))[1]
                if said.isdigit() and int(said) > number:
                    raise WebError(f"{address.root}: series {uid} has {said} instances, but {number} came; ask again")
    return folder / address.series if address.series is not None else folder


def store(root: str, files: Sequence[Path]) -> int:
    """Send DICOM files that were made here to a PACS, and return how many it has taken.

    Raises:
        WebError: in one line: it cannot be reached, or does not take one of them. The files stay where they are.
    """
    import pydicom

    root = checked(root)
    with _client(root) as client:
        for number, file in enumerate(files):
            answer = client.store_instances([pydicom.dcmread(file)])
            if failed := answer.get("FailedSOPSequence"):
                reason = int(failed[0].get("FailureReason", 0) or 0)
                raise WebError(
                    f"{root}: does not take {file.name} (reason {reason:#06x} of PS3.4, after {number} others); it "
                    "is kept"
                )
    return len(files)


def _series(client: "DICOMwebClient", address: Address, uid: str, folder: Path) -> int:
    """Write every instance of a series, byte by byte as it is sent, and return how many there are."""
    kind = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    url = f"{address.root}/studies/{address.study}/series/{uid}"
    began, number, file, size = time.monotonic(), 0, None, 0
    session: Any = client._session  # its parts would come as datasets; files are kept as they were stored
    with session.get(url, headers={"Accept": kind}, stream=True, timeout=TIMEOUTS) as answer:
        answer.raise_for_status()
        try:
            for piece in parts_of(address.root, answer.headers.get("Content-Type", ""), answer.iter_content(1 << 20)):
                if piece is None:
                    if file is not None:
                        file.close()
                    number += 1
                    file = (folder / f"{number:06d}.dcm").open("wb")
                elif file is not None:
                    size += len(piece)
                    file.write(piece)
                if size > MOST_BYTES or number > MOST_INSTANCES or time.monotonic() - began > LONGEST_S:
                    raise WebError(
                        f"{address.root}: series {uid} is more than is fetched ({number} instances, {size >> 20} MiB, "
                        f"{time.monotonic() - began:.0f} s so far); export it as files"
                    )
        finally:
            if file is not None:
                file.close()
    if number == 0:
        raise WebError(f"{address.root}: series {uid} came without an instance; check the UIDs")
    return number


def parts_of(name: str, kind: str, pieces: Iterable[bytes]) -> Iterator[bytes | None]:
    """The parts of a message of several (RFC 2046) as they come: None before each, then its bytes, head left out.

    Args:
        name: what messages begin with.
        kind: the header Content-Type.
        pieces: of the body, cut anywhere.

    Raises:
        WebError: it is no such message, has a head without an end, or ends before its end.
    """
    found = re.search(r'boundary="?([^";,]+)"?', kind)
    if not kind.lower().startswith("multipart/related") or found is None:
        raise WebError(
            f"{name}: a PACS answers with multipart/related, this one with '{_shown(kind)}'; check the address"
        )
    mark, held, inside = b"\r\n--" + found[1].encode(), b"\r\n", False
    for piece in pieces:
        held += piece
        while True:
            at = held.find(mark)
            if at < 0:
                break
            if inside and at:
                yield held[:at]
            rest = held[at + len(mark) :]
            if rest.startswith(b"--"):
                return
            head = rest.find(b"\r\n\r\n")
            if head < 0:
                held, inside = held[at:], False
                break
            held, inside = rest[head + 4 :], True
            yield None
        if inside and len(held) > len(mark):
            yield held[: -len(mark)]
            held = held[-len(mark) :]
        elif not inside and len(held) > LONGEST_HEAD:
            raise WebError(f"{name}: a part of the answer begins without end; ask again")
    raise WebError(f"{name}: the answer was cut off; ask again")


@contextmanager
def _client(root: str) -> Iterator["DICOMwebClient"]:
    """A client of a service; what goes wrong with it is one line."""
    try:
        import requests
        from dicomweb_client.api import DICOMwebClient
        from requests.adapters import HTTPAdapter
        from urllib3.util.retry import Retry
    except ImportError as error:
        raise WebError(f"{root}: a PACS needs {error.name}; install it with: pip install 'delineate[pacs]'") from error
    with requests.Session() as session:
        session.auth = _Signed()
        session.max_redirects = 0
        again = {"status_forcelist": (429, 502, 503, 504), "allowed_methods": ("GET",), "raise_on_status": False}
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=Retry(TRIES, redirect=False, backoff_factor=0.3, **again)))
        try:
            client = DICOMwebClient(root, session=session, timeout=TIMEOUTS)
            client.set_http_retry_params(retry=False)
            yield client
        except requests.exceptions.SSLError as error:
            raise WebError(
                f"{root}: its certificate is not trusted ({_reason(error)}); name your hospital's with "
                "REQUESTS_CA_BUNDLE"
            ) from error
        except requests.exceptions.TooManyRedirects as error:
            raise WebError(f"{root}: redirects elsewhere, which is not followed; give the address itself") from error
        except requests.exceptions.HTTPError as error:
            code = 0 if error.response is None else error.response.status_code
            hint = f"; set {TOKEN} or {LOGIN}" if code in (401, 403) else "; check the address" if code == 404 else ""
            raise WebError(f"{root}: refuses with HTTP {code}{hint}") from error
        except requests.exceptions.JSONDecodeError as error:
            raise WebError(f"{root}: answers with something else than DICOMweb; check the address") from error
        except (requests.exceptions.RequestException, ConnectionError, TimeoutError) as error:
            raise WebError(f"{root}: cannot be asked ({_reason(error)}); check address and network") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # what the library makes of odd answers
            raise WebError(f"{root}: answers with something else than DICOMweb; check the address") from error


class _Signed:
    """Signs a request. An object, for otherwise requests would look for passwords in ~/.netrc."""

    def __call__(self, request: Any) -> Any:
        if token := os.environ.get(TOKEN):
            request.headers["Authorization"] = f"Bearer {token}"
        elif login := os.environ.get(LOGIN):
            from requests.auth import HTTPBasicAuth

            name, _, password = login.partition(":")
            return HTTPBasicAuth(name.encode(), password.encode())(request)
        return request


def _value(told: Mapping[str, Any], tag: str) -> str:
    """The first value of an element of DICOM JSON, as a text; "" where it is not there."""
    values = told.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _reason(error: BaseException) -> str:
    inner = error.args[0] if error.args and isinstance(error.args[0], BaseException) else error
    return _shown(
        str(getattr(inner, "reason", None) or inner).rpartition(": ")[2].strip("')\"") or type(error).__name__
    )


def _shown(text: str, most: int = 120) -> str:
    """A text of others on one line, without a password that may be in it."""
    plain = "".join(c if c.isprintable() else " " for c in re.sub(r"//[^/@\s]*@", "//…@", text))
    return " ".join(plain.split())[:most]
