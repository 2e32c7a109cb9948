import re

import numpy as np
import pytest

from delineate.prompts.anatomy import STRUCTURES
from delineate.prompts.colours import COLOURS, colour_of

WITHOUT = {  # what people see without green and without red cones, of linear sRGB: Machado, Oliveira, Fernandes 2009
    "nobody": np.eye(3),
    "deuteranopia": np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
    "protanopia": np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
}
XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])


def cielab(linear):
    xyz = linear @ XYZ.T / XYZ.sum(1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), (903.3 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def test_every_structure_of_the_anatomy_has_a_colour_and_none_has_another_s():
    assert set(COLOURS) == {structure.name for structure in STRUCTURES}
    assert len(set(COLOURS.values())) == len(COLOURS)


@pytest.mark.parametrize(("eyes", "apart"), [("nobody", 14), ("deuteranopia", 10), ("protanopia", 10)])
def test_colours_are_told_apart_also_without_red_or_green(eyes, apart):
    srgb = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in COLOURS.values()]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = cielab((linear @ WITHOUT[eyes].T).clip(0, 1))
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1e3 * np.eye(len(seen))
    assert distances.min() > apart


@pytest.mark.parametrize("name", ["left thumb", "", "\ud800", "=cmd()"])
def test_any_name_has_a_colour_that_stays(name):
    assert re.fullmatch("#[0-9A-F]{6}", colour_of(name))
    assert colour_of(name) == colour_of(name)


def test_names_of_others_are_spread_over_the_colours():
    assert len({colour_of(f"organ {n}") for n in range(400)}) == len(COLOURS)
