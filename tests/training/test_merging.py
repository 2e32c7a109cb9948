import pytest
import torch
from torch import Generator, nn

from delineate.errors import DelineateError
from delineate.training.merging import MERGES, Merging, choose_mode, merge_mask, merged_loss, merging_on


def seeded(seed=0):
    return Generator().manual_seed(seed)


def images(seed=0, count=3, size=16):
    return torch.rand(count, 3, size, size, generator=seeded(seed)) * 2 - 1


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1))


def criterion(logits):
    return (logits - torch.linspace(-1, 1, 16)).square().mean()


# the mask


@pytest.mark.parametrize(("size", "cell"), [(64, 16), (64, 11), (63, 10), (40, 40), (8, 1)])
def test_cells_are_squares_of_one_value_and_are_cut_at_the_border(size, cell):
    mask = merge_mask(4, size, cell, 0.5, seeded())
    assert mask.shape == (4, 1, size, size)
    assert mask.dtype == torch.bool
    for row in range(0, size, cell):
        for column in range(0, size, cell):
            patch = mask[:, :, row : row + cell, column : column + cell].flatten(1)
            assert (patch == patch[:, :1]).all()


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.8])
def test_a_cell_is_real_with_the_chance_that_was_asked_for(keep):
    assert merge_mask(50, 64, 4, keep, seeded()).float().mean().item() == pytest.approx(keep, abs=0.01)


def test_all_is_real_with_1_and_nothing_with_0():
    assert merge_mask(50, 32, 4, 1, seeded()).all()
    assert not merge_mask(50, 32, 4, 0, seeded()).any()


def test_a_seed_repeats_a_mask_and_slices_have_their_own():
    mask = merge_mask(4, 64, 8, 0.5, seeded(1))
    assert torch.equal(mask, merge_mask(4, 64, 8, 0.5, seeded(1)))
    assert not torch.equal(mask, merge_mask(4, 64, 8, 0.5, seeded(2)))
    assert not torch.equal(mask[0], mask[1])


@pytest.mark.parametrize(
    ("cell", "keep", "message"),
    [
        (0, 0.5, "from 1 to 32 pixels wide on this grid; got 0"),
        (33, 0.5, "from 1 to 32 pixels wide on this grid; got 33"),
        (8, 1.1, "from 0 to 1; got 1.1"),
    ],
)
def test_masks_that_cannot_be_are_refused(cell, keep, message):
    with pytest.raises(ValueError, match=message):
        merge_mask(1, 32, cell, keep, seeded())


# the loss


def test_logits_are_merged_as_in_the_equation(network):
    real, synthetic, merging = images(0), images(1), Merging("patch", 0.5, 0.25)
    m = merge_mask(3, 16, 4, 0.5, seeded(7)).float()
    expected = criterion(m * network(real) + (1 - m) * network(synthetic))
    torch.testing.assert_close(merged_loss(network, criterion, real, synthetic, merging, seeded(7)), expected)


def test_images_are_merged_before_the_network(network):
    real, synthetic, merging = images(0), images(1), Merging("image", 0.5, 0.25)
    m = merge_mask(3, 16, 4, 0.5, seeded(7)).float()
    expected = criterion(network(m * real + (1 - m) * synthetic))
    torch.testing.assert_close(merged_loss(network, criterion, real, synthetic, merging, seeded(7)), expected)


def test_losses_are_averaged(network):
    real, synthetic = images(0), images(1)
    loss = merged_loss(network, criterion, real, synthetic, Merging("loss", 0.7), seeded())
    torch.testing.assert_close(loss, 0.7 * criterion(network(real)) + 0.3 * criterion(network(synthetic)))


def test_a_network_that_sees_one_pixel_merges_logits_as_images():
    one_pixel = nn.Conv2d(3, 2, 1)
    losses = [
        merged_loss(one_pixel, criterion, images(0), images(1), Merging(mode, 0.5, 0.25), seeded())
        for mode in ("patch", "image")
    ]
    torch.testing.assert_close(*losses)


def gradients(network, loss):
    return torch.autograd.grad(loss, list(network.parameters()))


@pytest.mark.parametrize("mode", [*MERGES, "none"])
def test_keeping_all_of_the_real_one_is_the_plain_loss_to_the_bit(network, mode):
    real, gone = images(0), torch.full((3, 3, 16, 16), torch.nan)
    plain = criterion(network(real))
    merged = merged_loss(network, criterion, real, gone, Merging(mode, keep=1), seeded())
    assert torch.equal(plain, merged)
    pairs = zip(gradients(network, plain), gradients(network, merged), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("mode", [*MERGES, "none"])
def test_without_a_synthetic_one_nothing_is_drawn_and_nothing_costs_more(network, mode):
    passes = []

    def counted(image):
        passes.append(1)
        return network(image)

    generator = seeded()
    before = generator.get_state()
    loss = merged_loss(counted, criterion, images(0), None, Merging(mode), generator)
    assert torch.equal(loss, criterion(network(images(0))))
    assert len(passes) == 1
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("mode", MERGES)
def test_keeping_none_of_the_real_one_does_not_look_at_it(network, mode):
    gone, synthetic = torch.full((3, 3, 16, 16), torch.nan), images(1)
    loss = merged_loss(network, criterion, gone, synthetic, Merging(mode, keep=0), seeded())
    assert torch.equal(loss, criterion(network(synthetic)))
    assert all(torch.isfinite(g).all() for g in gradients(network, loss))


@pytest.mark.parametrize("mode", MERGES)
def test_both_are_learnt_from_in_between(network, mode):
    real, synthetic = images(0).requires_grad_(), images(1).requires_grad_()
    loss = merged_loss(network, criterion, real, synthetic, Merging(mode, 0.5, 0.25), seeded())
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, [real, synthetic]))


# how it is asked for


def test_what_is_usual_is_diffboost_s():
    assert Merging() == Merging("patch", 0.6, 64 / 384)
    assert [Merging().pixels(size) for size in (384, 128, 64, 2)] == [64, 21, 11, 1]
    assert str(Merging()) == "by patch, 0.6 real, cells 0.167 of the side"
    assert str(Merging("loss")) == "by loss, 0.6 real"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "pixel"}, "one of patch, image, loss, none; got 'pixel'"),
        ({"keep": -0.1}, "from 0 to 1; got -0.1"),
        ({"keep": float("nan")}, "from 0 to 1; got nan"),
        ({"cell": 0}, "above 0 and up to 1; got 0"),
        ({"cell": 1.5}, "above 0 and up to 1; got 1.5"),
    ],
)
def test_a_merging_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Merging(**given)


@pytest.mark.parametrize(
    ("asked", "mode"),
    [
        (("unet", None), "patch"),
        (("progidiff", None), "extra"),
        (("unet", "extra"), "extra"),
        (("progidiff", "none"), "none"),
        (("unet", "loss"), "loss"),
        (("unet", None, 0.5, 8), "patch"),
    ],
)
def test_a_system_that_merges_does_and_another_takes_them_as_cases(asked, mode):
    system, merge, keep, cell = (*asked, None, None)[:4]
    assert choose_mode(system, ["unet", "mednext"], merge, keep, cell) == mode


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("unet", "mix", None, None), "--merge is one of patch, image, loss, extra, none; got 'mix'"),
        (("sdseg", "patch", None, None), "--merge patch is for unet, mednext; sdseg takes extra or none"),
        (("sdseg", None, 0.5, None), "--keep-real is for --merge patch, image, loss; for sdseg it is extra here"),
        (("unet", "none", None, 8), "--cell is for --merge patch, image; for unet it is none here"),
        (("unet", "loss", None, 8), "--cell is for --merge patch, image; for unet it is loss here"),
        (("unet", None, 1.5, None), "--keep-real is from 0 to 1; got 1.5"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(asked, message):
    with pytest.raises(DelineateError, match=message) as caught:
        choose_mode(asked[0], ["unet", "mednext"], *asked[1:])
    assert "\n" not in str(caught.value)


def test_a_cell_is_given_in_pixels_of_the_grid():
    assert merging_on(128, "patch").pixels(128) == 21
    assert merging_on(128, "image", 0.3, 32) == Merging("image", 0.3, 0.25)
    assert all(merging_on(96, "patch", cell=cell).pixels(96) == cell for cell in range(1, 97))
    with pytest.raises(DelineateError, match=r"--cell is from 1 to 64, .*; got 65"):
        merging_on(64, "patch", cell=65)
