"""What the Dockerfile says, read line by line: docker itself is not needed. A linter (hadolint) is run where it is there."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from delineate.cli.app import app

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = [
    tuple(line.split(maxsplit=1))
    for line in re.sub(r"\\\n\s*", "", "\n".join(x for x in TEXT.splitlines() if not x.startswith("#"))).splitlines()
    if line.strip()
]


def of(name: str) -> list[str]:
    return [rest for word, rest in INSTRUCTIONS if word == name]


def test_every_line_is_an_instruction_and_stages_build_on_stages_before():
    known = {"FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "VOLUME", "EXPOSE", "USER", "STOPSIGNAL"}
    assert {word for word, _ in INSTRUCTIONS} <= known | {"HEALTHCHECK", "ENTRYPOINT", "CMD"}
    stages: list[str] = []
    for base, _, name in (re.fullmatch(r"(\S+)( AS (\S+))", one).groups() for one in of("FROM")):
        assert base in stages or base == "python:${PYTHON}"
        stages.append(name)
    assert stages[-1] == "cpu"  # what is built where nobody names a target
    assert "cuda" in stages
    assert all(one.split()[0].removeprefix("--from=") in stages for one in of("COPY") if one.startswith("--from"))


def test_what_is_copied_is_there_and_let_through_to_the_builder():
    let = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [name for one in of("COPY") if not one.startswith("--") for name in one.split()[:-1]]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert name in let


def test_the_command_and_its_options_are_there():
    (start,), (command,) = of("ENTRYPOINT"), of("CMD")
    assert json.loads(start) == ["delineate"]
    name, *words = json.loads(command)
    known = {o for parameter in get_command(app).commands[name].params for o in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert words[words.index("--results") + 1] in json.loads(of("VOLUME")[0])
    assert words[words.index("--port") + 1] == of("EXPOSE")[0]
    (probe,) = of("HEALTHCHECK")
    code = json.loads(probe.partition("CMD ")[2])[-1]
    compile(code, "HEALTHCHECK", "exec")
    assert f"127.0.0.1:{of('EXPOSE')[0]}/health" in code


def test_nobody_runs_as_root_and_no_secret_is_in_it():
    (user,) = of("USER")
    assert all(int(number) > 0 for number in user.split(":"))
    after = [word for word, _ in INSTRUCTIONS]
    assert "RUN" not in after[after.index("USER") :]
    named = " ".join(of("ENV") + of("ARG"))
    assert not re.search(r"token|secret|password|key", named, re.IGNORECASE)


def test_torch_is_the_one_of_the_makefile():
    (torch,) = re.findall(r"torch==[\d.]+", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert f"TORCH={torch}" in of("ARG")
    extras = re.search(r"'\.\[(.+?)\]'", " ".join(of("RUN"))).group(1).split(",")
    told = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", told, re.MULTILINE) for extra in extras)


def test_the_linter_has_nothing_to_say():
    if (linter := shutil.which("hadolint")) is None:
        pytest.skip("it needs hadolint, which is not installed")
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
