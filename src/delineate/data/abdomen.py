"""The abdomen that phantoms show: organs drawn in millimetres, then rendered as CT or MR.

Coordinates are (left, back, up) in mm; (0, 0) is the middle of the trunk and height 0 about the first lumbar
vertebra. Positions and sizes are those of an adult to within a centimetre or two.
"""

import numpy as np
from scipy import ndimage

# Tissue: (CT in HU, portal venous phase; T2-weighted MR with fat suppressed, arbitrary units). Orders of
# magnitude as in textbooks; each phantom shifts each of them a little.
TISSUES: dict[str, tuple[float, float]] = {
    "air": (-1000, 0),
    "fat": (-100, 42),
    "muscle": (58, 65),
    "bone": (420, 25),
    "marrow": (190, 95),
    "cord": (30, 330),
    "lung": (-840, 10),
    "bowel": (55, 150),
    "fluid": (15, 330),
    "gas": (-900, 4),
    "spleen": (118, 230),
    "right kidney": (178, 250),
    "left kidney": (178, 250),
    "gallbladder": (8, 420),
    "liver": (108, 128),
    "stomach": (75, 170),
    "aorta": (165, 20),
    "inferior vena cava": (128, 40),
    "pancreas": (92, 150),
}
CODES = {name: code for code, name in enumerate(TISSUES)}


def draw_abdomen(grid: np.ndarray, rng: np.random.Generator, absent: set[str]) -> np.ndarray:
    """The tissue of every point of an abdomen.

    Args:
        grid: float32 (3, I, J, K), left, back, up in mm.
        rng: Decides who it is.
        absent: Organs that this person lacks.

    Returns:
        uint8 (2, I, J, K): codes of `CODES`; and the organ each point belongs to, which differs where
        an organ holds gas, fluid or fat.
    """
    size = rng.uniform([0.93, 0.92, 0.94], [1.07, 1.08, 1.06]).astype(np.float32)
    bend = np.stack([waves(grid, rng, 170.0) for _ in range(3)]) * np.float32(5.0)
    bend[2] *= np.float32(1.5)
    at = (grid + bend) / size[:, None, None, None]
    x, y, z = at
    rough = [waves(at, rng, wavelength) for wavelength in (48.0, 34.0)]
    tissue = np.full(x.shape, CODES["air"], np.uint8)
    organ = np.zeros(x.shape, np.uint8)
    taken = np.zeros(x.shape, bool)

    def near(*centre, spread=4.0):
        return np.asarray(centre) + rng.normal(0, spread, 3).clip(-1.6 * spread, 1.6 * spread)

    def scaled(*semi_axes):
        return np.asarray(semi_axes) * rng.uniform(0.9, 1.12)

    def claim(name, level, gap=1.5, roughness=0.0):
        """Give the free points inside `level` to `name`, keep a rim of `gap` mm of fat around them."""
        if roughness:
            level = level + np.float32(roughness * rng.choice([-1, 1])) * rough[rng.integers(2)]
        mask = (level < 0) & ~taken
        if name not in absent:
            tissue[mask] = CODES[name]
            organ[mask] = CODES[name]
            np.logical_or(taken, level < gap, out=taken)
        return mask & (name not in absent)

    # The trunk: fat, muscle wall, cavity. Walls are superellipses; exponent 2.4 is between oval and box.
    fat_mm, wall_mm = rng.uniform(10, 30), rng.uniform(11, 16)
    half = np.array([156.0, 112.0]) + (fat_mm - 18) * 0.7

    def trunk(inset):
        a, b = half - inset
        return ((np.abs(x) / np.float32(a)) ** 2.4 + (np.abs(y) / np.float32(b)) ** 2.4) ** np.float32(1 / 2.4) - 1

    tissue[trunk(0) < 0] = CODES["fat"]
    outer, inner = trunk(fat_mm), trunk(fat_mm + wall_mm)
    tissue[(outer < 0) & (inner >= 0)] = CODES["muscle"]
    cavity = inner < -0.015
    costal = z > -20 - 0.5 * y  # the arch rises towards the front
    rib = (inner > 0.005) & (inner < 0.075) & (np.abs(x) > 40) & costal
    rib &= np.sin(2 * np.pi * (z - 0.55 * y + 0.12 * np.abs(x)) / 34) > 0.35
    tissue[rib] = CODES["bone"]
    tissue[rib & (inner > 0.025) & (inner < 0.055)] = CODES["marrow"]

    # Spine and the muscles beside it.
    for side in (-1, 1):
        tissue[(ellipsoid(at, (side * 34, 88, 0), (29, 17, 900)) < 0) & (outer < 0)] = CODES["muscle"]
    for side in (-1, 1):
        psoas = ellipsoid(at, (side * 37, 58, -110), (19, 20, 120), side * 20)
        tissue[(psoas < 0) & (outer < 0)] = CODES["muscle"]
        taken |= psoas < 1
    disc = np.cos(2 * np.pi * z / 36) > 0.82
    body = ellipsoid(at, (0, 56, 0), (23, 18, 2000))
    process = np.minimum(
        ellipsoid(at, (0, 94, 0), (4.5, 12, 2000)),
        np.maximum(ellipsoid(at, (0, 77, 0), (44, 5, 2000)), np.abs(np.cos(np.pi * z / 36)) * 16 - 10),
    )
    arch = ellipsoid(at, (0, 79, 0), (16, 14, 2000))
    tissue[(arch < 0) | (process < 0)] = CODES["bone"]
    tissue[body < 0] = CODES["bone"]
    tissue[body < -2.5] = CODES["marrow"]
    tissue[(body < -2) & disc] = CODES["muscle"]
    tissue[ellipsoid(at, (0, 79, 0), (9, 8, 2000)) < 0] = CODES["cord"]
    taken |= (np.minimum(np.minimum(body, process), arch) < 2) | ~cavity

    # Vessels in front of the spine: the aorta a little left, the inferior vena cava right.
    top, low = 130, -130
    sway = rng.uniform(-3, 3)
    claim("aorta", tube(at, [(9 + sway, 25, top), (5 + sway, 24, 0), (2, 24, low)], [11.5, 10, 8.5]))
    cava = at * np.array([1, 1.25, 1], np.float32)[:, None, None, None]
    points = [(-26, 8, top), (-23, 22, 40), (-21, 27, 0), (-18, 30, low)]
    claim("inferior vena cava", tube(cava, [(p, q * 1.25, r) for p, q, r in points], [13, 12.5, 12, 10.5]))

    # Kidneys: beans that lean with the psoas; the hollow, full of fat, faces the spine and a little forward.
    for name, side, height in (("right kidney", -1, -22), ("left kidney", 1, -8)):
        centre = near(side * 66, 46, height, spread=3.5)
        lean = at.copy()
        lean[0] += np.float32(side * 0.18) * (z - np.float32(centre[2]))
        semi = scaled(27, 30, 54)
        bean = ellipsoid(lean, centre, semi, side * 30)
        sinus = ellipsoid(lean, centre + np.array([-side * 19, -7, 0]), (19, 10, 23), side * 25)
        claim(name, np.maximum(bean, -sinus), gap=2.5, roughness=0.8)
        taken |= np.maximum(bean, sinus) < 0

    # Upper organs, clipped by the lungs' recess, which deepens at the back and the sides.
    dome = np.float32(128) - np.float32(0.0042) * (x * x + np.maximum(y + 10, 0) ** 2 * np.float32(1.4))
    lung = cavity & (z > dome + 4 * rough[0]) & (np.hypot(x, (y - 50) * 1.2) > 34)
    tissue[lung & ~taken] = CODES["lung"]
    taken |= lung
    bladder = tube(at, [near(-52, -44, 6, spread=3), near(-56, -58, -34, spread=4)], [9, rng.uniform(11, 16)])
    claim("gallbladder", bladder, gap=1.0)
    crescent = ellipsoid(at, near(100, 34, 46, spread=4), scaled(36, 56, 56), -25)
    hollow = ellipsoid(at, (66, 4, 46), (36, 44, 90), -25)
    claim("spleen", np.maximum(crescent, -hollow), roughness=1.5)
    joint = near(0, -10, 0, spread=4)
    head = near(-28, 3, -14, spread=3)
    pancreas = tube(
        at,
        [head + np.array([0, 4, -14]), head, joint, near(28, -2, 12), near(56, 14, 22), near(82, 30, 30)],
        [12, 15, 11, 12, 11, 9],
    )
    claim("pancreas", pancreas, gap=1.2, roughness=1.6)
    liver_at = at.copy()
    liver_at[0] += np.float32(0.22) * (30 - z)  # the lower liver keeps to the flank
    right_lobe = ellipsoid(liver_at, near(-78, 0, 34), scaled(80, 92, 84), 8)
    left_lobe = ellipsoid(at, near(-8, -54, 52), scaled(66, 36, 42), 12)
    fissure = ellipsoid(at, (-24, -34, 2), (15, 60, 30), -30)
    claim("liver", np.maximum(np.minimum(right_lobe, left_lobe), -fissure), gap=2.0, roughness=2.0)
    fundus = ellipsoid(at, near(58, -8, 68), scaled(38, 40, 38))
    belly = ellipsoid(at, near(60, -46, 34), scaled(38, 30, 42), -20)
    antrum = tube(at, [(58, -48, 14), near(28, -54, -2), near(-8, -46, 0), (-24, -34, 2)], [20, 18, 14, 9])
    level = np.minimum(np.minimum(fundus, belly), antrum)
    stomach = claim("stomach", level, gap=2.0, roughness=1.5)
    filled = stomach & (level + np.float32(1.5) * rough[0] < -5.5)
    tissue[filled] = CODES["fluid"]
    tissue[filled & (y < np.float32(rng.uniform(-66, -44)))] = CODES["gas"]
    draw_bowel(at, tissue, taken, rng)
    return np.stack([tissue, organ])


def draw_bowel(at: np.ndarray, tissue: np.ndarray, taken: np.ndarray, rng: np.random.Generator) -> None:
    """Fill what is left of the cavity with a colon, a duodenum and loops of small bowel (in place)."""

    def lay(level, wall_mm, gas_above):
        mask = (level < 0) & ~taken
        tissue[mask] = CODES["bowel"]
        hollow = mask & (level < -wall_mm)
        tissue[hollow] = CODES["stomach"]
        tissue[hollow & (at[1] < gas_above)] = CODES["gas"]
        np.logical_or(taken, level < 2.0, out=taken)

    lay(tube(at, [(-98, 0, -130), (-100, 4, -60), (-84, -26, -48)], [23, 22, 20]), 3.5, rng.uniform(-14, 4))
    lay(tube(at, [(108, 22, -130), (112, 20, -40), (100, 4, 2)], [15, 15, 17]), 3.0, rng.uniform(-2, 18))
    middle = (rng.uniform(-15, 15), -74, rng.uniform(-70, -40))
    lay(tube(at, [(-80, -40, -46), middle, (82, -40, -4)], [19, 17, 17]), 3.0, rng.uniform(-78, -62))
    lay(tube(at, [(-40, -28, -2), (-50, 6, -24), (-36, 12, -52), (10, 6, -56)], [12, 12, 12, 11]), 3.0, -90)
    for _ in range(44):
        centre = rng.uniform((-75, -62, -130), (85, 14, 4))
        turn = rng.uniform(-90, 90)
        lay(
            ellipsoid(at, centre, rng.uniform((18, 10, 11), (34, 14, 18)), turn),
            3.5,
            rng.choice([-99, centre[1] - 5]),
        )


def render(
    grid: np.ndarray,
    tissue: np.ndarray,
    lesions: np.ndarray,
    modality: str,
    spacing_mm: tuple[float, ...],
    rng: np.random.Generator,
) -> np.ndarray:
    """A float32 scan (I, J, K) of drawn tissue: contrast, texture, vessels, blur, bias field (MR), noise."""
    column = 0 if modality == "CT" else 1
    values = np.array([pair[column] for pair in TISSUES.values()], np.float32)
    spread = 6.0 if modality == "CT" else 0.07 * np.abs(values)
    values = values + (rng.uniform(-1, 1, values.size) * spread).astype(np.float32)
    scan = values[tissue]

    liver = tissue == CODES["liver"]
    f, g = waves(grid, rng, 62.0), waves(grid, rng, 62.0)
    vessels = liver & (f * f + g * g < np.float32(0.045))  # where two smooth sheets cross there is a curve
    scan[vessels] += np.float32(42 if modality == "CT" else -60)
    cortex = np.isin(tissue, [CODES["right kidney"], CODES["left kidney"]])
    scan[cortex] += (waves(grid, rng, 17.0) * np.float32(14 if modality == "CT" else 18))[cortex]
    solid = (tissue != CODES["air"]) & (tissue != CODES["gas"]) & (tissue != CODES["lung"])
    mottle = waves(grid, rng, 22.0, terms=8)
    scan[solid] += mottle[solid] * np.float32(5 if modality == "CT" else 7)
    mixed = (tissue == CODES["bowel"]) | (tissue == CODES["fluid"])
    scan[mixed] += mottle[mixed] * np.float32(9 if modality == "CT" else 30)
    if lesions.any():
        amount = -55.0 if modality == "CT" else 85.0
        scan += ndimage.gaussian_filter((lesions > 0).astype(np.float32) * np.float32(amount), 0.4)

    # Partial volume: a point spread of about 2.5 mm in the slice.
    sigma = [0.25 if n > 1 else 0.0 for n in scan.shape[:1]] + [min(1.0, max(0.45, 1.8 / mm)) for mm in spacing_mm[1:]]
    scan = ndimage.gaussian_filter(scan, sigma)
    noise = rng.standard_normal((2, *scan.shape), dtype=np.float32)
    if modality == "CT":
        noise = ndimage.gaussian_filter(noise[0], (0, 0.5, 0.5))
        return (scan + noise * np.float32(rng.uniform(14, 24))).clip(-1024, 3071)
    bias = np.exp(np.float32(0.22) * waves(grid, rng, 420.0, terms=3))
    noise = noise * np.float32(rng.uniform(6, 11))
    return np.hypot(scan.clip(0) * bias + noise[0], noise[1])


# Shapes: distance to the surface in mm, roughly, negative inside. `at` is (3, ...): left, back, up.


def ellipsoid(at, centre, semi_axes, tilt_degrees=0.0):
    """An ellipsoid turned by `tilt_degrees` in the axial plane (positive turns left towards back)."""
    left, back, up = (at[axis] - np.float32(centre[axis]) for axis in range(3))
    cos, sin = np.float32(np.cos(np.radians(tilt_degrees))), np.float32(np.sin(np.radians(tilt_degrees)))
    a, b, c = (np.float32(semi) for semi in semi_axes)
    radius = np.sqrt(((cos * left + sin * back) / a) ** 2 + ((cos * back - sin * left) / b) ** 2 + (up / c) ** 2)
    return (radius - 1) * np.float32(min(semi_axes))


def tube(at, points, radii):
    """A tube through `points` whose radius runs linearly from point to point."""
    levels = []
    for start, end, r0, r1 in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
        start, along = np.asarray(start, np.float32), np.subtract(end, start, dtype=np.float32)
        offset = [at[axis] - start[axis] for axis in range(3)]
        share = np.clip(sum(o * d for o, d in zip(offset, along, strict=True)) / (along @ along), 0, 1)
        apart = np.sqrt(sum((o - share * d) ** 2 for o, d in zip(offset, along, strict=True)))
        level = apart - (np.float32(r0) + share * np.float32(r1 - r0))
        levels.append(level)
    return np.minimum.reduce(levels)


def waves(at, rng, wavelength_mm, terms=6):
    """A smooth random field of about unit variance: a few plane waves, the same at any resolution."""
    total = np.zeros(at.shape[1:], np.float32)
    for _ in range(terms):
        direction = rng.normal(size=3)
        k = 2 * np.pi * direction / np.linalg.norm(direction) / (wavelength_mm * rng.uniform(0.8, 1.4))
        k, phase = k.astype(np.float32), np.float32(rng.uniform(0, 2 * np.pi))
        total += np.cos(k[0] * at[0] + k[1] * at[1] + k[2] * at[2] + phase)
    return total * np.float32(np.sqrt(2 / terms))
