import json

import numpy as np
import pytest
import typer
from PIL import Image
from tests.cli.test_app import one_line
from tests.jobs.test_synthesize import flat_images

from delineate.cli import app as cli
from delineate.data.dataset import open_dataset
from delineate.jobs import synthesize as synthesizing
from delineate.synthesis.synthesizer import Synthesizer

QUICK = ["--steps", 1, "--variants", 1, "--images", 10, "--device", "cpu", "--threads", 1]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return flat_images(tmp_path_factory.mktemp("images") / "flat", colour=True)


def test_the_help_names_every_option(delineate):
    code, out, err = delineate("synthesize", "--help")
    assert (code, err) == (0, "")
    shown = " ".join(out.split())
    for option in (
        *("--output", "--variants", "--foundation", "--edges", "--no-label-boundary", "--hed", "--steps", "--guidance"),
        *("--look", "--keep-all", "--preset", "--minutes", "--images", "--seed", "--target", "--modality", "--fold"),
        *("--threads", "--device", "--json"),
    ):
        assert option in shown, option
    command = typer.main.get_command(cli.app).commands["synthesize"]
    assert all(parameter.help for parameter in command.params if parameter.name != "help")
    assert "--edges" in delineate("pretrain", "--help")[1]


def test_a_set_is_enlarged_and_trained_on(delineate, images, edges_base, tmp_path):
    folder = tmp_path / "larger"
    arguments = ["synthesize", f"{images}=organ@ultrasound", "-o", folder, "--foundation", edges_base, *QUICK]
    code, out, err = delineate(*arguments, "--keep-all", "--edges", "canny", "--guidance", 2, "--look", 1)
    assert (code, err.strip()) == (0, "")
    assert "3 real training cases, 3 scans drawn, 3 kept; rejected: none" in out
    assert str(folder / "contact_sheet.png") in out.replace("\n", "")
    told = json.loads((folder / "provenance.json").read_text())
    assert told["settings"]["drawing"] == {
        "variants": 1,
        "edges": "canny",
        "label_boundary": True,
        "steps": 1,
        "guidance": 2.0,
        "look": 1.0,
        "keep_all": True,
    }
    assert open_dataset(folder).modality == "US"
    assert delineate("check", folder)[0] == 0
    training = ["train", "unet", folder, "-o", tmp_path / "model", "--images", 16, "--device", "cpu", "--threads", 1]
    code, out, err = delineate(*training)
    assert code == 0, err
    assert json.loads((tmp_path / "model" / "config.json").read_text())["training"]["variants"] == 3

    code, _, err = delineate(*arguments)
    assert code == 2
    assert "exists and is not empty" in one_line(err)
    code, _, err = delineate("synthesize", folder, "-o", tmp_path / "again", "--foundation", edges_base, *QUICK)
    assert code == 5
    assert "holds synthetic scans already" in one_line(err)


def test_json_for_scripts_is_the_summary(delineate, images, edges_base, tmp_path):
    arguments = ["synthesize", f"{images}=organ", "-o", tmp_path / "out", "--foundation", edges_base, *QUICK, "--json"]
    code, out, err = delineate(*arguments, "--edges", "none", "--look", 0)
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert summary == json.loads((tmp_path / "out" / "provenance.json").read_text())["summary"]
    assert summary["drawn"] == summary["kept"] + sum(summary["rejected"].values()) == 3


def test_a_base_is_pretrained_with_edges(delineate, phantom_dataset, tmp_path):
    arguments = ["pretrain", phantom_dataset, "-o", tmp_path / "base", "--edges", "--images", 16, "--target", "liver"]
    code, out, err = delineate(*arguments, "--device", "cpu", "--threads", 1)
    assert code == 0, err
    assert str(tmp_path / "base") in out.replace("\n", "")
    base = Synthesizer.load(tmp_path / "base")
    assert (base.colours, base.preset) == (3, "tiny")


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--edges", "none", "--no-label-boundary"], 2, "neither edges nor label boundaries"),
        (["--edges", "sobel"], 2, "edges are one of scharr, canny, hed, none; got 'sobel'"),
        (["--edges", "hed"], 2, "name it with --hed"),
        (["--hed", "."], 2, "--hed is for edges 'hed'"),
        (["--edges", "hed", "--hed", "nowhere"], 6, "one .safetensors file, found 0"),
        (["--foundation", "nowhere"], 6, "not a Stable Diffusion folder"),
        (["--fold", "3"], 2, "a fold is NUMBER/OF"),
        (["--target", "polyp"], 2, "named twice, after = and by --target"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_told_in_one_line(delineate, images, edges_base, tmp_path, more, code, words):
    foundation = [] if "--foundation" in more else ["--foundation", edges_base]
    got, out, err = delineate("synthesize", f"{images}=organ", "-o", tmp_path / "out", *foundation, *QUICK, *more)
    assert got == code
    assert words in one_line(err)
    assert out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more",
    [
        ["--variants", 0],
        ["--variants", 101],
        ["--steps", 0],
        ["--guidance", -1],
        ["--look", 2],
        ["--preset", "huge"],
        ["--minutes", 1],
        ["--device", "abacus"],
    ],
    ids=lambda more: " ".join(map(str, more)),
)
def test_2_wrong_usage(delineate, images, tmp_path, more):
    code, _, err = delineate("synthesize", f"{images}=organ", "-o", tmp_path / "out", *QUICK, *more)
    assert code == 2
    assert "Traceback" not in err
    assert err.strip()
    assert not list(tmp_path.iterdir())


def test_5_masks_of_an_unnamed_target(delineate, images, edges_base, tmp_path):
    code, _, err = delineate("synthesize", images, "-o", tmp_path / "out", "--foundation", edges_base, *QUICK)
    assert code == 5
    assert "does not say what its masks show" in one_line(err)


def test_3_a_training_scan_that_cannot_be_read(delineate, edges_base, tmp_path):
    root = flat_images(tmp_path / "flat", colour=False)
    (root / "images" / "p1.png").write_bytes(b"damaged")
    code, _, err = delineate("synthesize", f"{root}=organ", "-o", tmp_path / "out", "--foundation", edges_base, *QUICK)
    assert code == 3
    assert "p1.png" in one_line(err)


def test_75_asked_to_stop_it_goes_on_with_the_same_command(delineate, images, edges_base, tmp_path, monkeypatch):
    arguments = ["synthesize", f"{images}=organ", "-o", tmp_path / "out", "--foundation", edges_base, *QUICK]

    def stops(*given, **more):
        raise synthesizing.Interrupted("stopped after 1 of 3 scans; the same command goes on from there")

    with monkeypatch.context() as patch:
        patch.setattr(synthesizing.Artist, "draw", stops)
        code, _, err = delineate(*arguments, "--json")
    assert code == 75
    assert "the same command goes on" in one_line(err)
    code, _, err = delineate(*arguments, "--seed", 1, "--json")
    assert code == 2
    assert "unfinished training with other settings" in one_line(err)
    assert delineate(*arguments, "--json")[0] == 0
    sheet = np.asarray(Image.open(tmp_path / "out" / "contact_sheet.png"))
    assert sheet.ndim == 3
