import pytest
import torch
from torch.nn import functional as F

from delineate.errors import DelineateError
from delineate.synthesis.artist import Drawing
from delineate.synthesis.edges import EDGES, FAINTEST, boundaries, canny, gradient, hint, scharr

SIZE = 48
NOTHING = 1e-5  # what rounding makes of no edge


def step(at=20, low=-0.5, high=0.5):
    """A picture that is `low` left of column `at` and `high` from there on."""
    picture = torch.full((1, 1, SIZE, SIZE), low)
    picture[..., at:] = high
    return picture


def disc(radius=14.0, soft=1.5):
    """A soft disc about the middle of the grid, which lies between pixels: the same after a quarter turn."""
    place = torch.arange(SIZE) - (SIZE - 1) / 2
    away = torch.hypot(place[:, None], place)
    return torch.tanh((radius - away) / soft)[None, None]


def scene():
    """Greys without symmetry, with edges of many strengths, each a third into a pixel: no two neighbours are equal."""
    coarse = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fine = F.interpolate(coarse, 3 * SIZE, mode="nearest").roll((1, 1), (2, 3))
    return F.avg_pool2d(fine, 3)


@pytest.mark.parametrize("name", EDGES)
def test_a_step_is_found_at_its_place_and_nowhere_else(name):
    edges = EDGES[name](step(at=20))
    assert edges.shape == (1, 1, SIZE, SIZE)
    where = edges[0, 0].argmax(dim=1)
    assert ((where == 19) | (where == 20)).all()
    assert (edges[..., [19, 20]].amax(dim=-1) > 0.99).all()
    assert (edges[..., :15] < NOTHING).all()
    assert (edges[..., 25:] < NOTHING).all()


def test_the_gradient_points_up_the_step():
    dx, dy = gradient(step())
    assert dx.min() > -NOTHING
    assert dy.abs().max() < NOTHING
    torch.testing.assert_close(dx.sum(dim=-1), torch.ones(1, 1, SIZE))  # from -0.5 to 0.5 in all
    across, down = gradient(step().transpose(2, 3))
    torch.testing.assert_close(down, dx.transpose(2, 3))
    torch.testing.assert_close(across, dy.transpose(2, 3), atol=NOTHING, rtol=0)


def test_canny_edges_are_thin():
    for picture in (step(), step().transpose(2, 3), disc()):
        assert set(canny(picture).unique().tolist()) == {0.0, 1.0}
    assert canny(step()).sum(dim=-1).unique().tolist() == [1.0]
    assert (scharr(step()) > 0.2).sum(dim=-1).min() > 2  # a slope is several pixels wide
    ring, outline = canny(disc())[0, 0].sum(), 2 * torch.pi * 14
    assert 0.8 * outline < ring < 1.4 * outline  # one pixel wide all round, up to its corners


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("picture", [step(), disc(), scene()], ids=["step", "disc", "scene"])
def test_edges_do_not_depend_on_the_sign_or_the_scale_of_contrast(name, picture):
    edges = EDGES[name](picture)
    assert edges.min() >= 0
    assert edges.max() == 1
    for other in (-picture, 0.5 * picture, 0.5 * picture + 0.3):
        found = EDGES[name](other)
        assert (found - edges).abs().gt(1e-4).float().mean() < (0.01 if name == "canny" else 1e-6)


@pytest.mark.parametrize("name", EDGES)
def test_colour_is_taken_for_its_mean(name):
    grey = scene()
    tint = torch.tensor([0.2, -0.3, 0.1]).view(1, 3, 1, 1)
    torch.testing.assert_close(EDGES[name](grey + tint), EDGES[name](grey), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_a_flat_picture_has_none(name, level):
    assert EDGES[name](torch.full((2, 3, SIZE, SIZE), level)).max() < NOTHING


def test_a_faint_picture_stays_faint():
    """Noise of a blank picture must not be blown up to full edges."""
    faint = scharr(step(low=0.0, high=FAINTEST / 2))
    assert 0 < faint.max() < 0.5
    assert not canny(step(low=0.0, high=FAINTEST / 4)).any()


def test_a_turned_picture_has_turned_edges():
    picture = scene()
    torch.testing.assert_close(scharr(picture.rot90(1, (2, 3))), scharr(picture).rot90(1, (2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(scharr(picture.flip(3)), scharr(picture).flip(3), atol=1e-5, rtol=0)
    turned, own = canny(disc().rot90(1, (2, 3))), canny(disc()).rot90(1, (2, 3))
    wide = F.max_pool2d(own, 3, 1, 1)  # of two equals either may be kept
    assert (turned <= wide).all()
    assert 0.8 < turned.sum() / own.sum() < 1.25


def test_of_the_two_equal_slopes_of_a_step_the_first_is_the_edge_whatever_the_greys():
    """Which of the two is a rule of Canny's, and not left to rounding."""
    greys = torch.rand(64, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    steps = torch.cat([step(20, low, high) for low, high in greys.tolist() if abs(high - low) > 2 * FAINTEST])
    for pictures, first in ((steps, 19), (steps.flip(3), 27)):
        for edges in (canny(pictures), canny(pictures.transpose(2, 3)).transpose(2, 3)):
            assert (edges[..., first] == 1).all()
            assert (edges.sum(dim=-1) == 1).all()


def test_each_picture_has_its_own_full_edge_and_is_equal_to_the_bit_alone_and_in_a_batch():
    pictures = torch.cat([step(), 0.3 * disc(), scene()])
    for name in EDGES:
        one_by_one = torch.cat([EDGES[name](picture[None]) for picture in pictures])
        assert torch.equal(EDGES[name](pictures), one_by_one)


def test_a_weak_edge_stays_only_where_it_hangs_together_with_a_strong_one():
    """A step that fades from full strength to a third of it, and a short one of a third alone."""
    fading = torch.linspace(1, 0.33, SIZE)[:, None] * (torch.arange(SIZE) >= 12)
    rows, columns = torch.arange(SIZE)[:, None], torch.arange(SIZE)
    alone = 0.33 * ((columns >= 32) & (columns < 40) & (rows >= 28) & (rows < 40))
    edges = canny((fading + alone)[None, None])[0, 0]
    assert edges[:, 10:14].any(dim=1).all()  # to its faint end
    assert not edges[26:42, 29:43].any()
    assert canny(alone[None, None])[0, 0, 26:42, 29:43].any()  # without the other it is the strongest of its picture


def test_boundaries_are_exact():
    labels = torch.tensor(
        [
            [0, 0, 0, 0, 0, 0],
            [0, 1, 1, 2, 2, 0],
            [0, 1, 1, 2, 2, 0],
            [0, 1, 1, 2, 2, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 9],
        ],
        dtype=torch.uint8,
    )
    expected = torch.tensor(
        [
            [1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 1],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 1, 1],
            [0, 0, 0, 0, 1, 1],
        ]
    ).float()
    assert torch.equal(boundaries(labels[None])[0, 0], expected)
    assert torch.equal(boundaries(labels.long()[None]), boundaries(labels[None]))


def test_boundaries_are_on_both_sides_and_only_there():
    labels = torch.zeros(1, 9, 12, dtype=torch.uint8)
    labels[:, :, 4:8], labels[:, :, 8:] = 1, 2
    assert boundaries(labels)[0, 0, 0].tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0]
    renamed = torch.tensor([7, 0, 200], dtype=torch.uint8)[labels.long()]
    assert torch.equal(boundaries(renamed), boundaries(labels))  # which ids they are does not matter
    for even in (0, 3):
        assert not boundaries(torch.full((1, 9, 12), even, dtype=torch.uint8)).any()


def test_a_hint_is_the_sum_of_its_parts_and_at_most_one():
    pictures = scene()
    labels = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    labels[:, 10:30, 10:30] = 1
    outline = boundaries(labels)
    for extractor in EDGES.values():
        own = extractor(pictures)
        merged = hint(pictures, labels, extractor)
        assert torch.equal(merged, (own + outline).clamp(max=1))
        assert (own + outline).max() > 1
        assert torch.equal(hint(pictures, labels, extractor, label_boundary=False), own)
    assert torch.equal(hint(pictures, labels, None), outline)
    assert torch.equal(hint(pictures, labels, lambda p: torch.full_like(p, 0.25)), (outline + 0.25).clamp(max=1))


def test_a_hint_has_one_channel_whatever_the_picture_has():
    labels = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    for channels in (1, 3):
        for extractor in (*EDGES.values(), None):
            assert hint(scene().expand(-1, channels, -1, -1), labels, extractor).shape == (2, 1, SIZE, SIZE)


def test_without_edges_and_boundaries_nothing_is_drawn():
    with pytest.raises(DelineateError, match="neither edges nor label boundaries"):
        Drawing(edges="none", label_boundary=False)
    Drawing(edges="none")
    Drawing(label_boundary=False)
