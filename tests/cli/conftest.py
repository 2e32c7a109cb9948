"""What tests of commands share: a small model, two pictures, and `delineate` itself."""

import sys

import numpy as np
import pytest
from PIL import Image
from tests.progress import without_progress

from delineate.cli import app as cli
from delineate.data.phantom import make_phantom_image
from delineate.model_folder import save_model


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "unet"
    save_model(folder, trained["unet"], "unet", training={}, card="card")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        voxels = make_phantom_image(number, shape=(40, 48)).voxels[0]
        grey = np.interp(voxels, (-150, 250), (0, 255)).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"case{number}.png")
    return folder


@pytest.fixture
def delineate(monkeypatch, capsys):
    """Runs `delineate <arguments>` and gives (exit code, standard output, standard error without progress)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["delineate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, without_progress(captured.err)

    return run
