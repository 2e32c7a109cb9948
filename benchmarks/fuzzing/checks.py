"""What is asked after a trial, of any kind: did it write where it may, is what it wrote whole, is it told."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from fuzzing.trial import Check, Done, Verdict, printable

OBEYED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def digest(path: Path) -> str:
    """The SHA-256 of a file; where a link leads, for a link; "" for what is neither."""
    if path.is_symlink():
        return f"-> {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def digests(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """The SHA-256 of every file below a folder, those in the folders `leave_out` and pipes left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if parts[0] not in leave_out and (path.is_symlink() or path.is_file()):
            found["/".join(parts)] = digest(path)
    return found


def nothing_else_changed(folder: Path, touches: tuple[str, ...], adds_anywhere: bool = False) -> Check:
    """Whether files of a trial's folder that the command has no business with are as they were; made before it runs."""
    before = digests(folder, (*touches, ".log"))

    def check(done: Done) -> Verdict | None:
        after = digests(folder, (*touches, ".log"))
        if gone := sorted(name for name, was in before.items() if after.get(name) != was):
            return "lost", f"{printable(gone[0])} was changed or is gone"
        if not adds_anywhere and (more := sorted(after.keys() - before.keys())):
            return "silent wrong", f"wrote {printable(more[0])}, outside its output"
        return None

    return check


def terminal_is_plain(done: Done) -> Verdict | None:
    """Whether what is printed holds nothing that a terminal obeys."""
    found = OBEYED.search(done.out + done.err)
    return ("silent wrong", f"{found.group()!r} reaches the terminal") if found else None


def strict_json(text: str) -> Any:
    """JSON without NaN and infinity. Raises ValueError."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def json_is_json(done: Done) -> Verdict | None:
    """Whether what `--json` prints can be read."""
    if done.code == 0:
        try:
            strict_json(done.out)
        except ValueError as error:
            return "silent wrong", f"--json printed what is not JSON: {str(error)[:100]}"
    return None


def case_is_whole(case: Path) -> str | None:
    """What is wrong with a finished case folder; None where all that `case.json` names is there and as it says."""
    try:
        entry = strict_json((case / "case.json").read_text())
        written = entry["written"]
        names = list(written)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"case.json cannot be read: {type(error).__name__}: {str(error)[:80]}"
    for name in names:
        file = case / name
        if not file.is_file() or not file.stat().st_size:
            return f"{name} is missing or empty"
        if isinstance(written, dict) and isinstance(written[name], str) and digest(file) != written[name]:
            return f"{name} is not what case.json says"
    return None


def cases_are_whole(output: Path) -> Check:
    """Whether every case of an output folder that counts as finished is."""

    def check(done: Done) -> Verdict | None:
        for file in sorted(output.glob("*/case.json")) if output.is_dir() else ():
            if wrong := case_is_whole(file.parent):
                return "silent wrong", f"{printable(file.parent.name)[:40]}: {wrong}"
        return None

    return check


def each_scan_has_a_case(output: Path, count: int) -> Check:
    """Whether a run that says all is done left a case folder a scan."""

    def check(done: Done) -> Verdict | None:
        found = len(list(output.glob("*/case.json"))) if output.is_dir() else 0
        if done.code == 0 and found != count:
            return "silent wrong", f"exit code 0, {count} scans, {found} finished cases"
        return None

    return check


def answers_kept(output: Path) -> Check:
    """Whether cases that were finished before are what they were, or whole new ones; made before the command runs."""
    before = {file.parent: digests(file.parent) for file in sorted(output.glob("*/case.json"))}
    before = {case: files for case, files in before.items() if case_is_whole(case) is None}

    def check(done: Done) -> Verdict | None:
        for case, files in before.items():
            if digests(case) == files:
                continue
            if not (case / "case.json").is_file():
                return "lost", f"the finished case {printable(case.name)[:40]} is gone"
            if wrong := case_is_whole(case):
                return "lost", f"the finished case {printable(case.name)[:40]}: {wrong}"
        return None

    return check


def model_kept(folder: Path) -> Check:
    """Whether a sealed folder (model, adapter) that was whole still is, by its manifest."""

    def check(done: Done) -> Verdict | None:
        wrong = sealed_wrong(folder)
        return ("lost", f"{folder.name}: {wrong}") if wrong else None

    return check


def sealed_wrong(folder: Path) -> str | None:
    """What is wrong with a sealed folder; None where every file is as its manifest says."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        return f"no manifest ({type(error).__name__})"
    for name, expected in manifest.items():
        if not (folder / name).is_file() or digest(folder / name) != expected:
            return f"{name} is missing or not what the manifest says"
    return None


def must_be_refused(why: str) -> Check:
    """Complains if the command succeeds all the same."""
    return lambda done: ("silent wrong", f"exit code 0 although {why}") if done.code == 0 else None
