"""The script of the page on other viewers shows every file of a case folder in one orientation."""

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.review_world import SHAPE, Bright, write_picture, write_volume

from delineate.scans.reading import read_scan
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "viewers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["volume", "grey", "colour"])
def test_the_napari_script_shows_a_case_folder(kind, tmp_path, monkeypatch):
    file = (
        write_volume(tmp_path / "s.nii.gz") if kind == "volume" else write_picture(tmp_path / "s.png", kind == "colour")
    )
    proposals = Segmenter(Bright())(read_scan(file, modality="MR"), ["liver", "spleen"], n=2)
    written = proposals.save(tmp_path / "case", maps=True)
    (tmp_path / "case" / "montage.png").write_bytes(b"not a mask")
    write_json(tmp_path / "case" / "case.json", {"file": str(file)})

    layers = {}

    def add(data, name, **how):
        layers[name] = data, how

    viewer = SimpleNamespace(add_image=add, add_labels=add)
    monkeypatch.setitem(sys.modules, "napari", SimpleNamespace(Viewer=lambda: viewer, run=lambda: None))
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "case")])
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "script.py").write_text(code)
    runpy.run_path(str(tmp_path / "script.py"))

    assert set(layers) == {path.name.split(".")[0] for path in written} | {"scan"}
    assert {name for name, (_, how) in layers.items() if not how.get("visible", True)} == {
        name for name in layers if re.search("_proposal_|_doubt|_probability|^labels$", name)
    }
    shape = (SHAPE[2], SHAPE[1], SHAPE[0]) if kind == "volume" else (1, 24, 30)
    assert {data.shape[:3] for data, _ in layers.values()} == {shape}
    assert {how["scale"] for _, how in layers.values()} == {(5, 3, 2) if kind == "volume" else (1, 1, 1)}
    scan, how = layers["scan"]
    assert how["rgb"] == (kind == "colour")
    assert scan.dtype == np.uint8 or kind != "colour"
    if kind == "volume":  # the ramp rises to the patient's left, which is drawn on the right
        assert scan[:, :, -1].mean() > scan[:, :, 0].mean()
        liver = layers["liver"][0] != 0
        assert scan[liver].mean() > scan[~liver].mean()
