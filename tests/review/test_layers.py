"""Masks of others as layers: once each, under names that are free, and as any other layer from then on."""

import nibabel
import numpy as np
import pytest
from tests.dicom_series import answer_here, write_series
from tests.review_world import AFFINE, SHAPE, Client, desk_for, write_volume

from delineate.errors import ScanError
from delineate.review import layers
from delineate.review.layers import put_layers, read_layers
from delineate.review.runs import mask_of, toggles_of
from delineate.scans.dicom import objects, regions, series
from delineate.scans.dicom.rtstruct import write_rtstruct


@pytest.fixture
def labels(tmp_path):
    values = np.zeros(SHAPE, np.uint8)
    values[2:6, 2:5, 1:3], values[9:12, 9:12, 3] = 1, 4
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "drawn.nii.gz")
    return tmp_path / "drawn.nii.gz", values


def masks_in(place):
    return {layer.name: mask_of(layer.toggles, place.work.shape) for layer in place.work.layers}


def test_a_label_map_becomes_a_layer_a_value_once(tmp_path, labels):
    path, values = labels
    desk = desk_for(write_volume(tmp_path / "s.nii.gz"), tmp_path / "out")
    place = desk.place("ann", "c0")
    named, _ = read_layers(path, place.case.scan())
    assert put_layers(place, path, named) == ["drawn 1", "drawn 4"]
    for name, mask in masks_in(place).items():
        assert np.array_equal(mask, values == int(name[-1]))
    assert put_layers(place, path, named) == []  # the very same file again
    client = Client(desk)
    assert client.act("remove_layer", layer=place.work.layers[0].id).status_code == 200
    assert put_layers(place, path, named) == []  # what a person took away stays away
    assert [event["text"] for event in client.work()["history"]][:2] == [
        "new layer drawn 1 from drawn.nii.gz (+24 -0)",
        "new layer drawn 4 from drawn.nii.gz (+9 -0)",
    ]
    desk.close()
    again = desk_for(tmp_path / "s.nii.gz", tmp_path / "out").place("ann", "c0")
    assert list(masks_in(again)) == ["drawn 4"]  # from the log
    assert put_layers(again, path, named) == []
    again.close()


def test_contours_become_layers_by_their_names(tmp_path, monkeypatch):
    for module in (series, objects, regions):
        monkeypatch.setattr(module, "ask_child", answer_here)
    write_series(tmp_path / "s", np.random.default_rng(0).integers(0, 99, (4, 8, 9)).astype(np.int16))
    desk = desk_for(tmp_path / "s", tmp_path / "out")
    place = desk.place("ann", "c0")
    scan = place.case.scan()
    mask = np.zeros(scan.shape, bool)
    mask[1:3, 2:6, 3:7] = True
    path = write_rtstruct(tmp_path / "rt.dcm", {"liver": mask, "GTV <b>": ~mask}, scan, algorithm="t")
    Client(desk).act("add_layer", name="liver")
    assert put_layers(place, path, read_layers(path, scan)[0]) == ["liver 2", "GTV <b>"]
    assert np.array_equal(masks_in(place)["liver 2"], mask)
    saved = (
        Client(desk).post("/api/cases/c0/save", json={"layers": [place.work.layers[1].id], "format": "nifti"}).json()
    )
    assert saved["files"][0]["name"] == "liver_2.nii.gz"
    desk.close()


def test_what_cannot_be_a_layer_is_refused(tmp_path, labels, monkeypatch):
    path, values = labels
    desk = desk_for(write_volume(tmp_path / "s.nii.gz"), tmp_path / "out")
    place = desk.place("ann", "c0")
    scan = place.case.scan()
    nibabel.save(nibabel.Nifti1Image(values[:-1], AFFINE), tmp_path / "other.nii.gz")
    with pytest.raises(ScanError, match="must lie on the scan's own grid"):
        read_layers(tmp_path / "other.nii.gz", scan)
    nibabel.save(nibabel.Nifti1Image(values * 0, AFFINE), tmp_path / "none.nii.gz")
    with pytest.raises(ScanError, match="holds 1 to 200 masks, found 0"):
        read_layers(tmp_path / "none.nii.gz", scan)
    monkeypatch.setattr(layers, "MOST_LAYERS", 1)
    with pytest.raises(ScanError, match="found 2"):
        read_layers(path, scan)
    with pytest.raises(ScanError, match="1 layers at most"):
        put_layers(place, path, [("a", toggles_of(values == 1)), ("b", toggles_of(values == 4))])
    assert place.work.layers == []
    desk.close()
