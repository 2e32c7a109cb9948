import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.rounding import assert_same_up_to_rounding

from delineate.scans import grid
from delineate.scans.geometry import FLAT_AFFINE
from delineate.scans.grid import (
    CT_WINDOW_HU,
    Fit,
    canonical_fit,
    intensity_range,
    normalise,
    stack_of,
    to_scan_grid,
    with_neighbours,
)
from delineate.scans.scan import Scan

ORIENTATIONS = ["SPL", "RAS", "LPS", "LAS", "PIR", "ASL", "RSA", "ILP", "IPR", "ARI"]
MM_PER_VOXEL = {"S": 5.0, "A": 1.5, "R": 2.0}  # along superior-inferior, anterior-posterior, right-left
VOXELS_ALONG = {"S": 12, "A": 40, "R": 32}
WORLD = {"R": "R", "L": "R", "A": "A", "P": "A", "S": "S", "I": "S"}
CENTRE_MM = {"R": 7.0, "A": -20.0, "S": 300.0}


def dice(a, b):
    return 2 * (a * b).sum() / (a.sum() + b.sum())


def scan_towards(codes, place_mm=(0, 0, 0), radius_mm=(11, 9, 12)):
    """A scan whose array axes grow towards `codes`, its field of view always the same box around CENTRE_MM.

    It shows one bright ellipsoid at `place_mm` (right, anterior, superior) from the centre, drawn in world mm.
    """
    affine, shape = np.zeros((4, 4)), []
    affine[3, 3] = 1
    centre = np.array([CENTRE_MM[w] for w in "RAS"])
    for axis, code in enumerate(codes):
        world = WORLD[code]
        affine["RAS".index(world), axis] = MM_PER_VOXEL[world] * (1 if code in "RAS" else -1)
        shape.append(VOXELS_ALONG[world])
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    world = np.einsum("wa,aijk->wijk", affine[:3, :3], np.indices(shape)) + affine[:3, 3].reshape(3, 1, 1, 1)
    away = (world - (centre + place_mm).reshape(3, 1, 1, 1)) / np.array(radius_mm).reshape(3, 1, 1, 1)
    voxels = ((away**2).sum(0) < 1).astype(np.float32)
    return Scan(voxels, affine, "MR"), centre + place_mm


def world_centroid(scan, values):
    index = np.array([(values * grid).sum() / values.sum() for grid in np.indices(values.shape)])
    return scan.affine[:3, :3] @ index + scan.affine[:3, 3]


# intensities


def test_ct_in_hounsfield_units_is_windowed():
    low, high = CT_WINDOW_HU
    voxels = np.array([-1000, low, (low + high) / 2, high, 3000], np.float32).reshape(1, 1, 5)
    assert normalise(voxels, "CT").ravel() == pytest.approx([-1, -1, 0, 1, 1])


def test_ct_does_not_depend_on_what_else_is_in_the_scan():
    one = np.linspace(-900, 900, 1000, dtype=np.float32).reshape(10, 10, 10)
    two = one.copy()
    two[5:] = 3000
    assert np.array_equal(normalise(one, "CT")[:5], normalise(two, "CT")[:5])


@pytest.mark.parametrize(("modality", "low"), [("CT", 0), ("MR", -1000), (None, -1000)])
def test_everything_else_is_clipped_at_percentiles(modality, low):
    voxels = np.linspace(low, 1000, 1001, dtype=np.float32).reshape(7, 11, 13)
    voxels[0, 0, 0], voxels[-1, -1, -1] = low - 100 * (low < 0), 1e6  # one hot vessel
    scaled = normalise(voxels, modality)
    middle = (low + 1000) / 2
    assert (scaled.min(), scaled.max()) == (-1, 1)
    assert scaled.ravel()[500] == pytest.approx(0, abs=0.01)
    quarter = scaled.ravel()[250]
    assert quarter == pytest.approx((voxels.ravel()[250] - middle) / (0.99 * (1000 - middle)), abs=0.01)
    assert np.mean(scaled == 1) == pytest.approx(0.005, abs=0.002)


def test_the_unit_of_mr_does_not_matter():
    voxels = np.random.default_rng(0).gamma(2, size=(8, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(normalise(voxels, "MR"), normalise(voxels * 37 + 5, "MR"), atol=1e-5)


def test_a_mask_like_image_whose_percentiles_agree_still_has_contrast():
    voxels = np.zeros((1, 100, 100), np.float32)
    voxels[0, 3, 4] = 1
    scaled = normalise(voxels, "MR")
    assert scaled[0, 3, 4] == 1
    assert (np.delete(scaled.ravel(), 304) == -1).all()


@pytest.mark.parametrize("value", [-1000.0, 0.0, 40.0, 1e9])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_constant_image_is_black(value, modality):
    assert (normalise(np.full((2, 3, 4), value), modality) == -1).all()


@given(
    arrays(np.float32, (2, 3, 4), elements=st.floats(-1e6, 1e6, width=32)), st.sampled_from(["CT", "MR", "US", None])
)
@example(np.array([0, 1e-40] * 12, np.float32).reshape(2, 3, 4), "MR")
@example(np.array([1e6, 1e6 + 0.0625] * 12, np.float32).reshape(2, 3, 4), "MR")
def test_normalised_intensities_are_in_range_and_in_order(voxels, modality):
    scaled = normalise(voxels, modality)
    assert scaled.dtype == np.float32
    assert scaled.shape == voxels.shape
    assert ((scaled >= -1) & (scaled <= 1)).all()  # NaN would not be
    order = np.argsort(voxels, axis=None)
    assert (np.diff(scaled.ravel()[order]) >= 0).all()


def test_whole_numbers_and_the_array_given_are_left_alone():
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    before = voxels.copy()
    normalise(voxels, "MR")
    assert np.array_equal(voxels, before)


# the square grid


@pytest.mark.parametrize(
    ("shape", "spacing", "inner"),
    [
        ((512, 512), (0.7, 0.7), (64, 64)),
        ((80, 40), (1.0, 2.0), (64, 64)),  # anisotropic, but square in mm
        ((80, 40), (1.0, 1.0), (64, 32)),
        ((40, 80), (1.0, 1.0), (32, 64)),
        ((100, 100), (0.5, 2.0), (16, 64)),
        ((30, 30), (1.0, 1.0), (64, 64)),  # small images are enlarged
        ((1000, 1), (1.0, 1.0), (64, 1)),
    ],
)
def test_the_longer_side_in_mm_fills_the_grid(shape, spacing, inner):
    assert Fit.of(shape, spacing, 64).inner == inner


@given(
    st.tuples(st.integers(1, 600), st.integers(1, 600)),
    st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)),
    st.sampled_from([64, 128]),
)
def test_pixels_are_square_to_within_rounding(shape, spacing, size):
    inner = Fit.of(shape, spacing, size).inner
    extents = [n * mm for n, mm in zip(shape, spacing, strict=True)]
    assert max(inner) == size
    assert min(inner) >= 1
    for pixels, extent in zip(inner, extents, strict=True):
        assert pixels == pytest.approx(max(1, extent / max(extents) * size), abs=0.5 + 1e-6)


def test_images_that_are_not_square_are_padded_evenly_with_the_fill():
    fit = Fit.of((30, 61), (1.0, 1.0), 64)
    grid = fit.to_grid(torch.ones(2, 3, 30, 61), fill=-0.5)
    rows = torch.nonzero((grid[0, 0] == 1).all(dim=1)).flatten()
    assert grid.shape == (2, 3, 64, 64)
    assert grid.unique().tolist() == [-0.5, 1]
    assert abs(rows[0].item() - (63 - rows[-1].item())) <= 1
    assert len(rows) == fit.inner[0]


@pytest.mark.parametrize("shape", [(128, 128), (100, 60), (60, 100), (40, 40), (64, 63)])
def test_a_smooth_image_comes_back(shape):
    y, x = torch.meshgrid(*(torch.linspace(0, 3, n) for n in shape), indexing="ij")
    image = (torch.sin(y) * torch.cos(1.3 * x))[None, None]
    fit = Fit.of(shape, (1.0, 1.0), 64)
    back = fit.from_grid(fit.to_grid(image))
    assert back.shape == image.shape
    assert (back - image).abs().max() < 0.06
    assert (back - image)[..., 4:-4, 4:-4].abs().max() < 0.01


@pytest.mark.parametrize("shape", [(128, 128), (100, 60), (60, 100), (200, 180)])
def test_the_mask_of_a_big_disc_comes_back(shape):
    y, x = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    disc = ((y - shape[0] / 2.1) ** 2 + (x - shape[1] / 2.2) ** 2 < (min(shape) / 3) ** 2).float()
    fit = Fit.of(shape, (1.0, 1.0), 64)
    on_grid = fit.labels_to_grid((disc[None] * 5).to(torch.uint8), [5])
    assert set(on_grid.unique().tolist()) == {0, 5}
    back = fit.from_grid((on_grid == 5).float()[:, None])[0, 0] > 0.5
    assert dice(back.float(), disc) > 0.97
    assert on_grid.dtype == torch.uint8


def test_a_circle_in_mm_is_a_circle_on_the_grid():
    scan, _ = scan_towards("RAS", radius_mm=(20, 20, 20))
    stack = stack_of(scan, 64)[VOXELS_ALONG["S"] // 2, 1] + 1
    rows, columns = (stack.sum(d) for d in (1, 0))
    across = [(p > 0.5 * p.max()).sum().item() for p in (rows, columns)]
    assert across[0] == pytest.approx(across[1], abs=2)
    assert across[0] > 25


def test_labels_share_the_place_of_the_image():
    labels = torch.zeros(1, 90, 70, dtype=torch.uint8)
    labels[0, 20:50, 10:30] = 2
    labels[0, 20:50, 30:55] = 7
    fit = Fit.of((90, 70), (1.0, 1.0), 64)
    on_grid = fit.labels_to_grid(labels, [2, 7])
    for label in (2, 7):
        image = fit.to_grid((labels == label).float()[:, None], fill=0.0)[:, 0] > 0.5
        assert dice((on_grid == label).float(), image.float()) > 0.98
    assert on_grid[0, :, : (64 - fit.inner[1]) // 2].max() == 0  # padding is background


def test_touching_labels_leave_no_gap_between_them():
    labels = torch.ones(1, 100, 100, dtype=torch.uint8)
    labels[0, :, 43:] = 2
    assert Fit.of((100, 100), (1.0, 1.0), 64).labels_to_grid(labels, [1, 2]).min() == 1


def share_kept(pixels, width):
    """How much of a line `width` pixels wide stays on a grid of 64, over all its places, and the worst of them."""
    fit, shares = Fit.of((pixels, pixels), (1.0, 1.0), 64), []
    for start in range(10, pixels - 10 - width):
        line = torch.zeros(1, pixels, pixels, dtype=torch.uint8)
        line[:, :, start : start + width] = 9
        shares.append((fit.labels_to_grid(line, [9]) == 9).sum().item() / 64)
    return np.mean(shares) / (width * 64 / pixels), min(shares)


@pytest.mark.parametrize(("pixels", "width"), [(128, 2), (100, 2), (96, 2), (256, 4), (64, 1), (40, 1)])
def test_a_line_as_wide_as_a_pixel_of_the_grid_is_never_lost(pixels, width):
    mean, worst = share_kept(pixels, width)
    assert worst >= 1
    assert mean == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("pixels", [80, 96])
def test_of_a_line_thinner_than_a_pixel_of_the_grid_as_much_stays_as_there_was(pixels):
    mean, _ = share_kept(pixels, 1)
    assert mean == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("pixels", [64, 100, 128, 200, 30])
def test_a_big_structure_keeps_its_area(pixels):
    y, x = torch.meshgrid(torch.arange(pixels), torch.arange(pixels), indexing="ij")
    disc = ((y - pixels / 2) ** 2 + (x - pixels / 2.2) ** 2 < (pixels / 3.3) ** 2).to(torch.uint8)[None]
    on_grid = Fit.of((pixels, pixels), (1.0, 1.0), 64).labels_to_grid(disc, [1])
    assert on_grid.float().mean().item() == pytest.approx(disc.float().mean().item(), rel=0.03)


# stacks


def test_a_grey_slice_sees_its_neighbours_and_at_the_ends_itself():
    slices = torch.arange(4.0).view(4, 1, 1).expand(4, 2, 2)
    assert with_neighbours(slices)[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
    assert with_neighbours(slices[:1])[:, :, 0, 0].tolist() == [[0, 0, 0]]


def test_the_first_channel_is_the_slice_below():
    scan, _ = scan_towards("LPI", place_mm=(0, 0, 12))
    stack = (stack_of(scan, 64) + 1).sum(dim=(2, 3))
    heights = torch.arange(len(stack))  # slices of a stack go up
    below, here, above = (stack * heights[:, None]).sum(0) / stack.sum(0)
    assert (below - here).item() == pytest.approx(1, abs=1e-4)  # a blob is "below" one slice further up
    assert (here - above).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_stack_shows_the_same_body_the_same_way_however_it_was_stored(codes):
    place = (-14.0, 9.0, -10.0)  # to the left, to the front, down
    scan, _ = scan_towards(codes, place)
    stack = stack_of(scan, 64)
    assert stack.shape == (VOXELS_ALONG["S"], 3, 64, 64)
    assert stack.dtype == torch.float32
    assert (stack.min(), stack.max()) == (-1, 1)
    assert torch.equal(stack, stack_of(scan_towards("SPL", place)[0], 64))

    shown = stack[:, 1].double() + 1
    weights = [shown.sum(dim=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    at = [(w * torch.arange(len(w))).sum() / w.sum() for w in weights]
    # both sides are 60 and 64 mm long, so a pixel has 1 mm; rows go to the back, columns to the left
    assert at[0].item() == pytest.approx((VOXELS_ALONG["S"] - 1) / 2 + place[2] / MM_PER_VOXEL["S"], abs=0.2)
    assert at[1].item() == pytest.approx(31.5 - place[1], abs=0.5)
    assert at[2].item() == pytest.approx(31.5 - place[0], abs=0.5)


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("place", [(0, 0, 0), (-14, 9, -10), (16, -12, 15)])
def test_what_was_found_on_the_grid_lies_at_its_place_in_the_scan(codes, place):
    scan, where_mm = scan_towards(codes, place)
    values = torch.zeros(1, VOXELS_ALONG["S"], 64, 64)
    middle = (VOXELS_ALONG["S"] - 1) / 2 + place[2] / MM_PER_VOXEL["S"]
    s, y, x = torch.meshgrid(torch.arange(VOXELS_ALONG["S"]), torch.arange(64), torch.arange(64), indexing="ij")
    away = ((s - middle) * 5 / 12) ** 2 + ((y - 31.5 + place[1]) / 9) ** 2 + ((x - 31.5 + place[0]) / 11) ** 2
    values[0] = (away < 1).float()  # drawn as a reader would: up, to the back, to the left
    found = to_scan_grid(values, scan)[0].astype(np.float64)
    assert found.shape == scan.shape
    assert world_centroid(scan, found) == pytest.approx(where_mm, abs=0.6)
    assert dice(found > 0.5, scan.voxels) > 0.9


@pytest.mark.parametrize("codes", ORIENTATIONS[:4])
def test_a_scan_comes_back_from_its_stack(codes):
    scan, _ = scan_towards(codes, (-14, 9, -10))
    back = to_scan_grid((stack_of(scan, 64)[None, :, 1] + 1) / 2, scan)[0]
    assert dice(back > 0.5, scan.voxels) > 0.97


def test_every_proposal_comes_back_on_its_own_and_between_zero_and_one():
    scan, _ = scan_towards("LPS")
    values = torch.stack([torch.full((VOXELS_ALONG["S"], 64, 64), v) for v in (-3.0, 0.25, 7.0)])
    back = to_scan_grid(values, scan)
    assert back.dtype == np.float16
    assert back.shape == (3, *scan.shape)
    assert [float(np.unique(b)[0]) for b in back] == [0, 0.25, 1]
    assert all(len(np.unique(b)) == 1 for b in back)


def test_a_colour_image_keeps_its_colours():
    pixels = np.zeros((1, 50, 40, 3), np.uint8)
    pixels[0, :25, :, 0], pixels[0, 25:, :, 1], pixels[0, :, :20, 2] = 255, 255, 255
    stack = stack_of(Scan(pixels, FLAT_AFFINE, "photograph", has_spacing=False), 64)
    assert stack.shape == (1, 3, 64, 64)
    inside = canonical_fit(Scan(pixels, FLAT_AFFINE), 64)
    assert inside.inner == (64, 51)
    top_left, bottom_right = stack[0, :, 10, 15], stack[0, :, 50, 50]
    assert top_left.tolist() == [1, -1, 1]
    assert bottom_right.tolist() == [-1, 1, -1]


def test_a_flat_image_is_a_stack_of_one_as_it_lies():
    pixels = np.zeros((1, 48, 96), np.float32)
    pixels[0, :12, :24] = 1  # top left
    scan = Scan(pixels, FLAT_AFFINE, "US", has_spacing=False)
    stack = stack_of(scan, 64)
    assert stack.shape == (1, 3, 64, 64)
    assert torch.equal(stack[0, 0], stack[0, 1])
    assert torch.equal(stack[0, 2], stack[0, 1])
    assert (stack[0, 1, 17:23, 1:15] == 1).all()  # 16 rows of padding above
    assert stack[0, 1].mean() < -0.9
    back = to_scan_grid((stack[None, :, 1] + 1) / 2, scan)[0]
    assert dice(back > 0.5, pixels) > 0.97


def test_many_slices_are_treated_like_few():
    rng = np.random.default_rng(0)
    voxels = rng.random((70, 24, 24), dtype=np.float32)
    whole = stack_of(Scan(voxels, FLAT_AFFINE, "MR"), 64)
    one = Fit.of((24, 24), (1.0, 1.0), 64).to_grid(torch.from_numpy(normalise(voxels, "MR"))[66, None, None])
    assert_same_up_to_rounding(whole[66, 1], one[0, 0])


# What becomes -1 and 1


@pytest.mark.parametrize(
    ("voxels", "modality", "expected"),
    [
        (np.linspace(-1000, 1000, 1001), "CT", CT_WINDOW_HU),
        (np.linspace(0, 1000, 1001), "CT", (5, 995)),  # windowed before it came here
        (np.linspace(-1000, 1000, 1001), "MR", (-990, 990)),
        (np.linspace(0, 1, 1001), None, (0.005, 0.995)),
        (np.full(8, 3.0), None, (3, 3)),
        ([0.0] * 999 + [7.0], None, (0, 7)),  # percentiles agree, values do not
    ],
    ids=["HU", "windowed CT", "MR", "unknown", "constant", "speck"],
)
def test_the_range_of_intensities(voxels, modality, expected):
    assert intensity_range(np.array(voxels, np.float32), modality) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("modality", ["CT", "MR", None])
@pytest.mark.parametrize("lowest", [-1000, 0])
def test_normalising_takes_the_range_to_one_and_back(modality, lowest):
    voxels = np.random.default_rng(0).uniform(lowest, 900, (4, 5, 6)).astype(np.float32)
    low, high = intensity_range(voxels, modality)
    back = (normalise(voxels, modality) + 1) / 2 * (high - low) + low
    np.testing.assert_allclose(back, voxels.clip(low, high), atol=1e-2)
    assert normalise(np.append(voxels, [low, high]).astype(np.float32), modality)[-2:] == pytest.approx(
        [-1, 1], abs=0.05
    )


def test_the_range_of_a_huge_scan_is_found_on_a_part_of_it():
    voxels = np.random.default_rng(0).normal(size=3_000_001).astype(np.float32)
    assert intensity_range(voxels, "MR") == pytest.approx(tuple(np.percentile(voxels, (0.5, 99.5))), abs=0.02)


def test_a_large_colour_picture_is_seen_one_colour_after_another_and_is_the_same(monkeypatch):
    voxels = np.random.default_rng(0).random((1, 70, 90, 3)).astype(np.float32)
    scan = Scan(voxels, FLAT_AFFINE, None, None, has_spacing=False)
    together = stack_of(scan, 32)
    monkeypatch.setattr(grid, "PIXELS_AT_ONCE", 1)
    torch.testing.assert_close(stack_of(scan, 32), together, rtol=0, atol=1e-6)
