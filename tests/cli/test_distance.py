import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tests.progress import without_progress

from delineate.cli import app as cli
from delineate.data.phantom import make_phantom_image


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """Two folders of twelve flat images: site "a", and site "b" of half the contrast."""
    folder = tmp_path_factory.mktemp("sites")
    for site, low, high in (("a", 0, 255), ("b", 64, 191)):
        (folder / site / "images").mkdir(parents=True)
        for number in range(12):
            voxels = make_phantom_image(number, shape=(40, 48)).voxels[0]
            grey = np.interp(voxels, (-150, 250), (low, high))
            grey[0, :2], grey[1, :2] = 0, 255  # keeps the percentiles of both where they are
            Image.fromarray(grey.astype(np.uint8)).save(folder / site / "images" / f"case{number:02d}.png")
    synthetic = {"synthetic": {f"case{k:02d}": {} for k in range(9)}}
    (folder / "b" / "provenance.json").write_text(json.dumps(synthetic))
    return folder


@pytest.fixture
def distance(monkeypatch, capsys):
    """Runs `delineate distance <arguments>` and gives (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["delineate", "distance", *map(str, arguments), "--size", "48"])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, without_progress(captured.err)

    return run


def test_the_table_says_distance_floor_groups_and_features(distance, sites):
    code, out, err = distance(sites / "a", sites / "b")
    assert code == 0
    assert "distance " in out.splitlines()[0]
    assert "floor " in out.splitlines()[0]
    assert "12 reference images, 12 others" in out.splitlines()[0]
    for words in ("original", "wavelet-HH", "glcm", "differs most", "sd "):
        assert words in out
    assert "delineate: the reference set has 12 images; below 50 sampling noise is large" in err


def test_json_and_files_hold_the_same(distance, sites, tmp_path):
    code, out, err = distance(sites / "a", sites / "b", "--json", "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told == json.loads((tmp_path / "out" / "distance.json").read_text())
    assert told["distance"] > 0
    assert len(told["warnings"]) == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["distance.json", "distance.png"]
    assert json.loads(distance(sites / "a", sites / "a", "--json")[1])["distance"] == 0


def test_synthetic_cases_alone_and_a_limit(distance, sites):
    told = json.loads(distance(sites / "a", sites / "b", "--other-cases", "synthetic", "--json")[1])
    assert (told["n_reference"], told["n_other"]) == (12, 9)
    told = json.loads(distance(sites / "a", sites / "b", "--limit", "10", "--json")[1])
    assert (told["n_reference"], told["n_other"]) == (10, 10)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("a", "nowhere"), 3, "no such file or folder"),
        (("a", "b", "--other-cases", "real"), 5, "the other set must have 8 images at least"),
        (("a", "b", "--reference-cases", "real"), 5, "there must be a provenance.json"),
    ],
)
def test_bad_input_ends_in_one_line(distance, sites, arguments, code, words):
    first, second, *options = arguments
    got, out, err = distance(sites / first, sites / second, *options)
    assert got == code
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.strip()]
    assert line.startswith("delineate: ")
    assert words in line


def test_an_unknown_choice_is_wrong_usage(distance, sites):
    code, _, err = distance(sites / "a", sites / "b", "--other-cases", "fake")
    assert code == 2
    assert "--other-cases is one of all, real, synthetic; got 'fake'" in " ".join(err.split())


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['delineate', 'distance', '--help']\n"
        "from delineate.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
