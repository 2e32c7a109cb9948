import numpy as np
import pytest
from PIL import Image

from delineate.data.phantom import make_phantom_image


@pytest.fixture
def scans(tmp_path):
    """Three pictures, the second of them broken."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(3):
        voxels = make_phantom_image(number, shape=(40, 48)).voxels[0]
        grey = np.interp(voxels, (-150, 250), (0, 255)).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"case{number}.png")
    broken = folder / "case1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (folder / "notes.txt").write_text("not a scan")
    return folder
