import pytest
import torch

from delineate.edges import EDGES, FAINTEST, boundaries, canny, gradient, hint, scharr
from delineate.errors import DelineateError
from delineate.synthesizing import Drawing

SIZE = 48


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
    """Greys without symmetry, smooth and with edges of many strengths."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, 6, 6, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, SIZE, mode="nearest")


@pytest.mark.parametrize("name", EDGES)
def test_a_step_is_found_at_its_place_and_nowhere_else(name):
    edges = EDGES[name](step(at=20))
    assert edges.shape == (1, 1, SIZE, SIZE)
    where = edges[0, 0].argmax(dim=1)
    assert ((where == 19) | (where == 20)).all()
    assert (edges[..., [19, 20]].amax(dim=-1) > 0.99).all()
    assert not edges[..., :15].any()
    assert not edges[..., 25:].any()


@pytest.mark.parametrize("name", EDGES)
def test_the_gradient_points_up_the_step(name):
    dx, dy = gradient(step())
    assert (dx >= 0).all()
    assert dy.abs().max() < 1e-6
    across, down = gradient(step().transpose(2, 3))
    torch.testing.assert_close((across, down), (dy.transpose(2, 3), dx.transpose(2, 3)))


def test_canny_edges_are_thin_where_scharr_s_are_wide():
    for picture in (step(), disc()):
        for turned in (picture, picture.transpose(2, 3)):
            thin = canny(turned)
            assert set(thin.unique().tolist()) == {0.0, 1.0}
            row = thin[0, 0, SIZE // 2]
            assert 1 <= row.sum() <= 2 * max(1, (scharr(turned)[0, 0, SIZE // 2] > 0.9).sum().item())
    assert canny(step()).sum(dim=-1).max() <= 2
    ring = canny(disc())[0, 0]
    assert ring.sum() < 2 * 2 * torch.pi * 14  # two pixels at most all round
    assert ring.sum() > 2 * torch.pi * 14 * 0.6  # and no large gap


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
    assert not EDGES[name](torch.full((2, 3, SIZE, SIZE), level)).any()


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
    wide = torch.nn.functional.max_pool2d(own, 3, 1, 1)  # of two equals either may be kept
    assert (turned <= wide).all()
    assert 0.8 < turned.sum() / own.sum() < 1.25


def test_each_picture_has_its_own_full_edge():
    pictures = torch.cat([step(), 0.3 * disc(), scene()])
    for name in EDGES:
        one_by_one = torch.cat([EDGES[name](picture[None]) for picture in pictures])
        assert torch.equal(EDGES[name](pictures), one_by_one)


def test_a_weak_edge_stays_only_where_it_hangs_together_with_a_strong_one():
    """Two steps of one faint strength, about a third of the full one: one fades out of a strong step, one is alone."""
    row = torch.arange(SIZE)[:, None]
    height = torch.where(row < 24, 1.0, 0.33).expand(SIZE, SIZE)  # strong above, faint below
    column = torch.arange(SIZE)
    picture = -0.6 + height * (column >= 12) * 1.0
    alone = (column >= 36) * (row >= 30) * (row < 44) * 0.33
    edges = canny((picture + alone)[None, None])[0, 0]
    assert edges[4:20, 10:14].any(dim=1).all()  # the strong half
    assert edges[30:44, 10:14].any(dim=1).all()  # its faint continuation
    assert not edges[32:42, 34:38].any()  # as faint, but alone
    assert canny((-0.6 + alone)[None, None])[0, 0, 32:42, 34:38].any()  # the strongest of its picture


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
