import numpy as np
import pytest
from PIL import Image

from delineate.data import open_dataset
from delineate.data.chase import write_chase
from delineate.errors import DatasetError


@pytest.fixture
def source(tmp_path):
    """Both eyes of five children, 8 x 9 pixels; the second observer sees one column more."""
    folder = tmp_path / "chase"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for child in range(1, 6):
        for eye in "LR":
            stem = f"Image_{child:02d}{eye}"
            Image.fromarray(np.full((8, 9, 3), 20 * child, np.uint8)).save(folder / "images" / f"{stem}.jpg")
            for width, observer in ((2, "1stHO"), (3, "2ndHO")):
                mask = np.zeros((8, 9), np.uint8)
                mask[:, :width] = 255
                Image.fromarray(mask).convert("1").save(folder / "masks" / f"{stem}_{observer}.png")
    return folder


def test_both_observers_and_splits_by_child(source, tmp_path):
    dataset = open_dataset(write_chase(source, tmp_path / "out" / "chase"))
    assert (dataset.modality, dataset.labels) == ("fundus", {"retinal vessels": 1})
    assert len(dataset.cases) == 10
    case = dataset.cases[0]
    assert [int(r.sum()) for r in dataset.read_raters(case)] == [16, 24]
    assert int((dataset.read(case)[1] == 1).sum()) == 16  # the first observer's is the customary truth
    assert {len(dataset.split(name)) % 2 for name in ("train", "val", "test")} == {0}
    assert sorted(sum(dataset.splits.values(), ())) == ["01", "02", "03", "04", "05"]


def test_an_image_without_an_observer_is_refused_and_nothing_is_left(source, tmp_path):
    (source / "masks" / "Image_03R_2ndHO.png").unlink()
    with pytest.raises(DatasetError, match=r"Image_03R_2ndHO\.png is missing"):
        write_chase(source, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    with pytest.raises(DatasetError, match=r"holds no Image_\*\.jpg"):
        write_chase(tmp_path, tmp_path / "out")


def test_the_set_itself(shared_data, tmp_path):
    dataset = open_dataset(write_chase(shared_data / "chase_db1", tmp_path / "chase"))
    assert len(dataset.cases) == 28
    first, second = dataset.read_raters(dataset.cases[0])
    assert first.shape == (1, 960, 999)
    assert 0.6 < 2 * (first & second).sum() / (first.sum() + second.sum()) < 0.95
