import csv
import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.jobs.test_segment import REQUEST, Bright, run

from delineate.jobs.parts import Part
from delineate.jobs.statistics import COLUMNS, cell, write_table
from delineate.scans.reading import read_labels, read_scan

VOLUMES = replace(REQUEST, modality="CT")


@pytest.fixture
def system():
    return Bright()


def table(folder):
    with (folder / "statistics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_s_figures_are_those_of_the_files(system, phantom_dataset, tmp_path):
    images = sorted((phantom_dataset / "imagesTr").glob("*.nii.gz"))[:2]
    for image in images:
        run(system, image, tmp_path, VOLUMES)
    rows = table(tmp_path)
    assert len(rows) == 6
    assert list(rows[0]) == list(COLUMNS)
    for image in images:
        case = image.name.removesuffix("_0000.nii.gz")
        liver, spleen, unknown = (row for row in rows if row["case"] == case)
        scan = read_scan(image, modality="CT")
        for row in (liver, spleen):
            mask = read_labels(tmp_path / case / f"{row['target']}.nii.gz").voxels > 0
            assert float(row["volume_ml"]) == pytest.approx(mask.sum() * np.prod(scan.spacing_mm) / 1000, abs=1e-3)
            assert float(row["volume_ml_low"]) <= float(row["volume_ml"]) <= float(row["volume_ml_high"])
            assert float(row["mean_grey"]) == pytest.approx(scan.voxels[mask].mean(dtype=float), abs=1e-3)
            slices = np.flatnonzero(mask.any(axis=(0, 1)))
            assert row["slice_axis"] == "2"
            assert [int(row["first_slice"]), int(row["last_slice"])] == [slices[0], slices[-1]]
            assert (row["outcome"], row["area_pixels"], row["model_sha256"]) == ("found", "", "abc")
        assert (unknown["target"], unknown["prompt"], unknown["outcome"]) == ("", "livr3x", "unknown prompt")
        assert unknown["volume_ml"] == unknown["components"] == ""
        beside = json.loads((tmp_path / case / "statistics.json").read_text())["targets"]
        assert [one["prompt"] for one in beside] == ["liver", "spleen", "livr3x"]
        assert all(liver[name] == str(cell(value)) for name, value in beside[0].items())


def test_the_table_is_whole_after_going_on(system, scans, tmp_path):
    run(system, scans / "case2.png", tmp_path)
    run(system, scans, tmp_path, resume=True)
    first = (tmp_path / "statistics.csv").read_bytes()
    assert [row["case"] for row in table(tmp_path)] == ["case0"] * 3 + ["case2"] * 3
    (tmp_path / "statistics.csv").unlink()
    asked = system.asked
    run(system, scans, tmp_path, resume=True)
    assert system.asked == asked
    assert (tmp_path / "statistics.csv").read_bytes() == first


def test_parts_leave_one_table_of_all(scans, tmp_path):
    for number in (3, 1, 2):
        run(Bright(), scans, tmp_path, part=Part(number, 3))
    assert {row["case"] for row in table(tmp_path)} == {"case0", "case2"}


def test_who_writes_last_finds_what_the_others_wrote(scans, tmp_path):
    run(Bright(), scans, tmp_path)
    expected = (tmp_path / "statistics.csv").read_bytes()
    writers = [threading.Thread(target=write_table, args=(tmp_path,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "statistics.csv").read_bytes() == expected
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_flat_picture_is_measured_in_pixels(system, scans, tmp_path):
    run(system, scans / "case0.png", tmp_path)
    liver = table(tmp_path)[0]
    pixels = np.count_nonzero(read_labels(tmp_path / "case0" / "liver.png").voxels)
    assert (liver["area_pixels"], liver["volume_ml"], liver["longest_axial_diameter_mm"]) == (
        f"{float(pixels)}",
        "",
        "",
    )
    assert 0 < float(liver["longest_diameter_pixels"]) <= np.hypot(40, 48)


@pytest.mark.parametrize("name", ["=1+1", "@SUM(A1)", "+cmd", "-2", "'quoted"])
def test_no_name_of_a_file_becomes_a_formula(system, scans, tmp_path, name):
    (scans / "case0.png").rename(scans / f"{name}.png")
    run(system, scans / f"{name}.png", tmp_path)
    assert {row["case"] for row in table(tmp_path)} == {f"'{name}"}
    assert all(
        not line.startswith(("=", "+", "-", "@")) for line in (tmp_path / "statistics.csv").read_text().split(",")
    )


def test_numbers_stay_numbers():
    assert cell(-3.5) == -3.5
    assert cell("left kidney") == "left kidney"


def test_a_case_of_an_older_release_has_the_figures_that_it_told(system, scans, tmp_path):
    run(system, scans / "case0.png", tmp_path)
    file = tmp_path / "case0" / "case.json"
    told = json.loads(file.read_text())
    for target in told["targets"]:
        target.pop("measured")
    file.write_text(json.dumps(told))
    write_table(tmp_path)
    liver = table(tmp_path)[0]
    assert float(liver["area_pixels"]) > 0
    assert liver["components"] == ""


def test_a_case_called_as_the_table_gets_another_folder(system, scans, tmp_path):
    Image.new("L", (40, 48)).save(scans / "statistics.csv.png")
    assert run(system, scans / "statistics.csv.png", tmp_path)["cases"][0]["case"] == "statistics.csv_"
