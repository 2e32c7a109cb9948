import pytest
import torch
from tests.rounding import assert_same_up_to_rounding

from delineate.networks.encoder import ENCODER_WIDTHS, ConceptHead, ImageEncoder


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return ImageEncoder(ENCODER_WIDTHS["tiny"]).eval()


@pytest.mark.parametrize("size", [32, 64, 96])
@torch.no_grad()
def test_features_lie_on_half_and_on_an_eighth_of_the_grid(encoder, size):
    seen = encoder(torch.zeros(2, 3, size, size))
    assert seen.fine.shape == (2, 32, size // 2, size // 2)
    assert seen.coarse.shape == (2, 128, size // 8, size // 8)


@torch.no_grad()
def test_slices_do_not_know_of_one_another(encoder):
    image = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together, alone = encoder(image), encoder(image[1:2])
    assert_same_up_to_rounding(together.fine[1:2], alone.fine)
    assert_same_up_to_rounding(together[1:2].coarse, alone.coarse)


def test_every_pixel_of_every_channel_counts(encoder):
    image = torch.zeros(1, 3, 32, 32, requires_grad=True)
    encoder(image).fine.square().sum().backward()
    assert (image.grad != 0).all()  # folding threw none away


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return ConceptHead(32, 24).eval()


@torch.no_grad()
def test_asking_together_equals_asking_one_by_one(head):
    fine, texts = torch.randn(2, 32, 8, 8), torch.randn(5, 24)
    together = head(fine, texts)
    assert together.shape == (2, 5, 16, 16)
    for p in range(5):
        assert_same_up_to_rounding(together[:, p : p + 1], head(fine, texts[p : p + 1]))


@torch.no_grad()
def test_each_slice_may_be_asked_its_own_prompts(head):
    fine, texts = torch.randn(2, 32, 8, 8), torch.randn(2, 3, 24)
    own = head(fine, texts)
    for b in range(2):
        assert_same_up_to_rounding(own[b : b + 1], head(fine[b : b + 1], texts[b]))


@torch.no_grad()
def test_different_texts_look_for_different_things(head):
    a, b = head(torch.randn(1, 32, 8, 8), torch.randn(2, 24))[0]
    assert (a - b).abs().max() > 0.05


@torch.no_grad()
def test_a_logit_depends_on_its_own_cell_alone(head):
    fine = torch.randn(1, 32, 8, 8)
    changed = fine.clone()
    changed[..., 2, 5] += 1
    texts = torch.randn(1, 24)
    moved = (head(changed, texts) != head(fine, texts))[0, 0]
    assert moved[4:6, 10:12].any()
    moved[4:6, 10:12] = False
    assert not moved.any()
