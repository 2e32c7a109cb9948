"""What is asked of other packages: no release with a known hole, and nothing that what is installed does not fulfil."""

import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ASKED = {
    requirement.name: requirement
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in map(Requirement, group)
    if requirement.name != PROJECT["name"]
}
MENDED = {  # the first release without the holes that the project file names
    "h11": "0.16",
    "monai": "1.6",
    "pillow": "12.3",
    "pydicom": "3.0.2",
    "python-multipart": "0.0.30",
    "starlette": "1.3.1",
    "torch": "2.10",
    "transformers": "5.3",
}


@pytest.mark.parametrize("name", MENDED)
def test_no_release_with_a_known_hole_is_accepted(name):
    (floor,) = [one for one in ASKED[name].specifier if one.operator == ">="]
    assert Version(floor.version) >= Version(MENDED[name])


@pytest.mark.parametrize("name", ASKED)
def test_what_is_installed_is_what_is_asked(name):
    try:
        found = version(name)
    except PackageNotFoundError:
        pytest.skip("not installed")
    assert ASKED[name].specifier.contains(found, prereleases=True)


def test_the_packages_of_the_page_agree_on_starlette():
    (asked,) = [r for r in map(Requirement, requires("fastapi") or ()) if r.name == "starlette" and r.marker is None]
    assert asked.specifier.contains(version("starlette"))
