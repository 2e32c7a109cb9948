import numpy as np
import pytest
from PIL import Image

from delineate.pictures import new_figure, write_figure
from delineate.synthesis.contact_sheet import contact_sheet

GREEN = np.tile(np.array([0.0, 1.0, 0.0]), (12, 16, 1))


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def green(array):
    return (array[..., 1] > 200) & (array[..., [0, 2]] < 60).all(axis=-1)


def test_a_sheet_is_a_png_and_shows_every_picture(tmp_path):
    rows = [("a", [GREEN] * 3), ("b", [GREEN] * 4)]
    array = pixels(contact_sheet(rows, tmp_path / "sheet.png"))
    found = green(array)
    starts = np.diff(np.pad(found, ((0, 0), (1, 0))).astype(int), axis=1) == 1
    lines = np.flatnonzero(found.any(axis=1))
    counts = {int(starts[line].sum()) for line in lines}
    assert counts == {3, 4}  # three pictures in one row, four in the other
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


def test_more_cases_make_a_higher_sheet_and_more_variants_a_wider_one(tmp_path):
    def shape(rows, columns):
        return pixels(contact_sheet([("x", [GREEN] * columns)] * rows, tmp_path / "sheet.png")).shape[:2]

    assert shape(3, 2)[0] > shape(1, 2)[0]
    assert shape(1, 5)[1] > shape(1, 2)[1]


@pytest.mark.parametrize("name", ["$x_1$", "a\\b", "患者", "a" * 60, "100 %"])
def test_any_name_can_be_written(tmp_path, name):
    contact_sheet([(name, [GREEN, GREEN])], tmp_path / "sheet.png")


def test_a_case_whose_variants_were_all_rejected_has_its_row(tmp_path):
    contact_sheet([("a", [GREEN, GREEN]), ("b", [GREEN, GREEN, GREEN])], tmp_path / "some.png")
    contact_sheet([("a", [GREEN, GREEN])], tmp_path / "none.png")


def test_a_figure_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    figure = new_figure(2, 1)
    assert write_figure(figure, path) == path
    assert pixels(path).shape == (100, 200, 3)
    path.write_bytes(b"old")

    class Broken:
        def savefig(self, file, **more):
            file.write_bytes(b"half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_figure(Broken(), path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
