import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from tests.rounding import assert_same_up_to_rounding

from delineate.diffusion.codec import CODECS, STRIDE, PixelUnshuffleCodec, VaeCodec, ceiling, noise_fields
from delineate.diffusion.sampling import sample_ddim
from delineate.diffusion.schedule import schedule_from_config, trailing_times
from delineate.foundation.foundation import SCHEDULER


@pytest.fixture(scope="module")
def vae():
    """An autoencoder of Stable Diffusion's shape, tiny and untrained."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.18215,
    )


def discs(count=6, rows=48, columns=64) -> torch.Tensor:
    """Masks (count, 1, rows, columns) of discs, from small to large."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    radius = torch.linspace(4, 20, count).view(-1, 1, 1, 1)
    return ((y - 22) ** 2 + (x - 35) ** 2 < radius**2).float()


@pytest.mark.parametrize("name", CODECS)
def test_a_latent_is_an_eighth_of_the_mask_and_comes_back_as_a_mask(name, vae):
    codec, masks = CODECS[name](vae), discs()
    latent = codec.encode(masks)
    assert latent.shape == (6, codec.channels, 48 // STRIDE, 64 // STRIDE)
    assert codec.decode(latent).shape == masks.shape


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_is_built_again_from_its_config(name, vae):
    codec = CODECS[name](vae, **dict.fromkeys(CODECS[name](vae).config(), 0.37))
    again = CODECS[name](vae, **codec.config())
    assert set(codec.config().values()) == {0.37}
    assert torch.equal(again.encode(discs()), codec.encode(discs()))
    latent = torch.randn(2, codec.channels, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.decode(latent), codec.decode(latent))


@pytest.mark.parametrize("name", CODECS)
def test_a_mask_and_its_picture_have_one_latent(name, vae):
    codec, masks = CODECS[name](vae), discs()
    assert torch.equal(codec.encode(masks), codec.encode_picture(2 * masks - 1))


@pytest.mark.parametrize("name", CODECS)
def test_nothing_in_a_codec_learns_but_gradients_reach_the_latent(name, vae):
    codec = CODECS[name](vae)
    assert not any(p.requires_grad for p in codec.parameters())
    latent = codec.encode(discs(2)).clone().requires_grad_()
    (codec.decode(latent) + 1).square().sum().backward()
    assert (latent.grad != 0).float().mean() > 0.5


@pytest.mark.parametrize("name", CODECS)
def test_encoding_is_deterministic_and_one_by_one(name, vae):
    codec, masks = CODECS[name](vae), discs(3)
    together = codec.encode(masks)
    assert torch.equal(together, codec.encode(masks))
    for k in range(3):
        assert_same_up_to_rounding(codec.encode(masks[k : k + 1])[0], together[k])


@pytest.mark.parametrize("scale", [0.5, 1.0, 0.25])
def test_unshuffled_masks_come_back_exactly(scale):
    codec = PixelUnshuffleCodec(scale)
    masks = (torch.rand(4, 1, 40, 24, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    latent = codec.encode(masks)
    assert latent.unique().tolist() == [-scale, scale]
    assert torch.equal(codec.decode(latent), masks)


def test_a_cell_of_unshuffled_latents_holds_one_block_of_the_mask():
    mask = torch.zeros(1, 1, 24, 32)
    mask[..., 8:16, 16:24] = 1
    latent = PixelUnshuffleCodec(1.0).encode(mask)
    inside = torch.zeros(3, 4, dtype=torch.bool)
    inside[1, 2] = True
    assert (latent[0, :, inside] == 1).all()
    assert (latent[0, :, ~inside] == -1).all()


def test_the_ceiling_of_a_lossless_codec_is_one():
    assert ceiling(PixelUnshuffleCodec(), discs()[:, 0].numpy(), batch=4) == 1.0


def test_the_ceiling_of_an_untrained_autoencoder_is_below_one(vae):
    codec, masks = VaeCodec(vae), discs()
    codec.measure(masks)
    assert 0 <= ceiling(codec, masks[:, 0].numpy()) < 0.9


class HalfLost(PixelUnshuffleCodec):
    """A codec that forgets the right half of every mask."""

    def encode(self, mask):
        return mask

    def decode(self, latent):
        kept = latent.clone()
        kept[..., latent.shape[-1] // 2 :] = 0
        return kept


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_the_ceiling_counts_all_masks_together(batch):
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[0, :, :4] = 1  # kept: 32 voxels
    masks[1, :2, 4:] = 1  # lost: 8 voxels
    assert ceiling(HalfLost(), masks, batch) == pytest.approx(2 * 32 / (32 + 40))


def test_measured_mask_latents_have_mean_zero_and_variance_one(vae):
    codec, masks = VaeCodec(vae), discs()
    before = codec.encode(masks)
    assert abs(before.mean()) > 0.01 or abs(before.std() - 1) > 0.1
    codec.measure(masks)
    latent = codec.encode(masks)
    assert latent.mean().item() == pytest.approx(0, abs=1e-4)
    assert latent.std().item() == pytest.approx(1, abs=1e-4)


def test_measuring_does_not_change_what_a_mask_decodes_to(vae):
    codec, masks = VaeCodec(vae), discs(2)
    before = codec.decode(codec.encode(masks))
    codec.measure(masks)
    torch.testing.assert_close(codec.decode(codec.encode(masks)), before, rtol=1e-3, atol=1e-4)


def test_without_statistics_the_scaling_factor_of_the_folder_counts(vae):
    codec = VaeCodec(vae)
    assert codec.config() == {"shift": 0.0, "scale": 0.18215}
    posterior = vae.encode((2 * discs() - 1).expand(-1, 3, -1, -1)).latent_dist
    torch.testing.assert_close(codec.encode(discs()), posterior.mode() * 0.18215)


def test_identical_masks_can_be_measured(vae):
    codec = VaeCodec(vae)
    codec.measure(torch.zeros(2, 1, 16, 16))
    assert torch.isfinite(codec.encode(torch.zeros(1, 1, 16, 16))).all()


@pytest.mark.parametrize("seed", range(3))
def test_unshuffled_noise_is_standard_normal_everywhere_and_alike_nearby(seed):
    codec = PixelUnshuffleCodec()
    noise = codec.noise((400, 64, 4, 4), torch.Generator().manual_seed(seed))
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std(dim=0).mean().item() == pytest.approx(1, abs=0.05)
    picture = torch.nn.functional.pixel_shuffle(noise, STRIDE)[:, 0]
    one = torch.cat([codec.noise((1, 64, 4, 4), torch.Generator().manual_seed(s)) for s in range(400)])
    moved = torch.nn.functional.pixel_shuffle(one, STRIDE)[:, 0]
    beside = (moved[:, :, 1:] * moved[:, :, :-1]).mean().item()
    apart = (picture[:, :, 20:] * picture[:, :, :-20]).mean().item()
    # Two neighbours share a block of grain g with chance 1 - 1/g: (0 + 1/2 + 3/4 + 7/8 + 15/16) / 5.
    assert beside == pytest.approx(0.6125, abs=0.05)
    assert apart == pytest.approx(0, abs=0.06)


def test_the_posterior_of_coins_is_bayes_rule():
    codec = PixelUnshuffleCodec(scale=0.7)
    p, a, sigma = 0.3, 0.6, 0.8
    x = torch.linspace(-2, 2, 64).view(1, 64, 1, 1)

    def density(sign):
        return torch.exp(-((x - sign * a * 0.7) ** 2) / (2 * sigma**2))

    foreground = p * density(1) / (p * density(1) + (1 - p) * density(-1))
    estimate = torch.full_like(x, 0.7 * (2 * p - 1))
    found = codec.posterior(estimate, x, torch.tensor(a), torch.tensor(sigma))
    torch.testing.assert_close(found, 0.7 * (2 * foreground - 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.8])
def test_sampling_by_the_posterior_alone_gives_each_pixel_its_probability(p):
    """DDIM maps noise to ±1 monotonically, so the share of +1 is the prior's."""
    codec, schedule = PixelUnshuffleCodec(), schedule_from_config(SCHEDULER)
    estimate = torch.full((200, 64, 1, 1), 2 * p - 1)
    noise = torch.randn(estimate.shape, generator=torch.Generator().manual_seed(0))

    def denoise(x, t):
        return codec.posterior(estimate, x, *schedule.signal_and_noise(torch.tensor([t]), x))

    drawn = sample_ddim(denoise, lambda step: noise, trailing_times(100), schedule)
    assert (drawn > 0).float().mean().item() == pytest.approx(p, abs=0.02)


def test_noise_depends_on_seed_proposal_and_step_and_on_nothing_else():
    codec = PixelUnshuffleCodec()
    many = torch.stack([noise_fields(codec, 5, (64, 4, 4), seed=3)(step) for step in range(4)])
    assert many.shape == (4, 5, 64, 4, 4)
    torch.manual_seed(99)
    assert torch.equal(noise_fields(codec, 2, (64, 4, 4), seed=3)(2), many[2, :2])
    others = [noise_fields(codec, 5, (64, 4, 4), seed=4)(step) for step in range(4)]
    fields = torch.cat([many.flatten(0, 1), *others]).flatten(1)
    nearness = torch.corrcoef(fields) - torch.eye(len(fields))
    assert nearness.abs().max() < 0.6  # coarse grains leave few free numbers, but none is like another
    assert abs(fields.mean()) < 0.1
    assert abs(fields.std() - 1) < 0.02


@pytest.mark.parametrize("seed", [-1, 2**40, 2**62])
def test_any_seed_makes_noise(seed):
    assert torch.isfinite(noise_fields(PixelUnshuffleCodec(), 2, (64, 2, 2), seed)(0)).all()


def test_antithetic_fields_come_in_opposite_pairs_whatever_their_number():
    codec = PixelUnshuffleCodec(stride=2)
    five = noise_fields(codec, 5, (4, 8, 8), seed=1, antithetic=True)(0)
    assert torch.equal(five[1::2], -five[:4:2])
    assert torch.equal(noise_fields(codec, 2, (4, 8, 8), seed=1, antithetic=True)(0), five[:2])
    assert not torch.equal(five[0].abs(), five[2].abs())


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_another_stride_is_as_lossless(stride):
    codec = PixelUnshuffleCodec(stride=stride, grains=(1,))
    masks = discs()
    latent = codec.encode(masks)
    assert latent.shape[1:] == (stride**2, 48 // stride, 64 // stride)
    assert torch.equal(codec.decode(latent), masks)
    white = codec.noise(latent.shape, torch.Generator().manual_seed(0))
    neighbours = torch.nn.functional.pixel_shuffle(white, stride)
    pairs = torch.stack([neighbours[..., :-1].flatten(), neighbours[..., 1:].flatten()])
    assert abs(torch.corrcoef(pairs)[0, 1]) < 0.03


def test_smooth_noise_is_standard_normal_everywhere_and_bends_slowly():
    codec = PixelUnshuffleCodec(stride=2, grains=(4, 8), smooth=True)
    noise = codec.noise((400, 4, 16, 16), torch.Generator().manual_seed(0))
    field = torch.nn.functional.pixel_shuffle(noise, 2)[:, 0]
    assert (field.std(dim=0) - 1).abs().max() < 0.15
    assert field.mean(dim=0).abs().max() < 0.2
    steps = field.diff(dim=-1).std()
    squares = PixelUnshuffleCodec(stride=2, grains=(4, 8)).noise((400, 4, 16, 16), torch.Generator().manual_seed(0))
    assert steps < 0.2
    assert steps < torch.nn.functional.pixel_shuffle(squares, 2).diff(dim=-1).std() / 2


def test_the_posterior_makes_a_pixel_foreground_as_often_as_smooth_noise_or_white():
    """How alike neighbours are changes outlines, not how often a pixel is in a mask."""
    schedule = schedule_from_config(SCHEDULER)
    shares = []
    for codec in (PixelUnshuffleCodec(stride=1, grains=(1,)), PixelUnshuffleCodec(1.0, 1, (2, 4), smooth=True)):
        estimate = codec.encode(torch.full((200, 1, 16, 16), 0.3))
        noise = codec.noise(estimate.shape, torch.Generator().manual_seed(1))

        def denoise(x, t, codec=codec, estimate=estimate):
            return codec.posterior(estimate, x, *schedule.signal_and_noise(torch.tensor([t]), x))

        x0 = sample_ddim(denoise, lambda step, noise=noise: noise, [999, 599, 299], schedule)
        shares.append((codec.decode(x0) >= 0.5).float().mean().item())
    assert shares[0] == pytest.approx(shares[1], abs=0.02)
    assert 0.2 < shares[0] < 0.32


# In colour


def coloured(count=3, rows=24, columns=32):
    return torch.rand(count, 3, rows, columns, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_colour_and_grey_come_back_exactly():
    codec, picture = CODECS["unshuffle-rgb"](None), coloured()
    latent = codec.encode_picture(picture)
    assert (codec.colours, codec.channels) == (3, 3 * STRIDE**2)
    assert latent.shape == (3, codec.channels, 24 // STRIDE, 32 // STRIDE)
    assert torch.equal(codec.decode_picture(latent), picture)
    grey = picture[:, :1]
    assert torch.equal(codec.decode_picture(codec.encode_picture(grey)), grey.expand(-1, 3, -1, -1))


def test_each_colour_has_channels_of_its_own():
    codec, picture = PixelUnshuffleCodec(colours=3), coloured()
    by_colour = codec.encode_picture(picture).unflatten(1, (3, STRIDE**2))
    alone = PixelUnshuffleCodec()
    for colour in range(3):
        assert torch.equal(by_colour[:, colour], alone.encode_picture(picture[:, colour : colour + 1]))


def test_a_mask_in_colour_is_read_back_as_the_mean_of_its_colours():
    codec = PixelUnshuffleCodec(scale=0.5, colours=3)
    assert torch.equal(codec.decode(codec.encode(discs())), discs())
    picture = coloured()
    expected = (picture.mean(dim=1, keepdim=True) + 1) / 2
    torch.testing.assert_close(codec.decode(codec.encode_picture(picture)), expected)


@pytest.mark.parametrize("smooth", [False, True])
def test_noise_in_colour_is_standard_normal_and_independent_between_colours(smooth):
    codec = PixelUnshuffleCodec(colours=3, grains=(1, 2, 4), smooth=smooth)
    noise = codec.noise((300, codec.channels, 3, 3), torch.Generator().manual_seed(0))
    assert (noise.std(dim=0) - 1).abs().max() < 0.2
    assert noise.mean(dim=0).abs().max() < 0.3
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    fields = codec.decode_picture(noise)
    assert fields.shape == (300, 3, 24, 24)
    together = torch.corrcoef(fields.transpose(0, 1).flatten(1)) - torch.eye(3)
    assert together.abs().max() < 0.03
    beside = (fields[..., 1:] * fields[..., :-1]).mean().item()
    assert beside > 0.3  # within a colour neighbours are alike


def test_noise_in_one_colour_is_what_it_was():
    """A model trained before there was colour gets the noise it knows."""
    shape, one = (2, 64, 3, 3), PixelUnshuffleCodec(colours=1)
    noise = one.noise(shape, torch.Generator().manual_seed(5))
    assert torch.equal(noise, PixelUnshuffleCodec().noise(shape, torch.Generator().manual_seed(5)))
    in_colour = PixelUnshuffleCodec(colours=3, grains=(1,)).noise((2, 192, 3, 3), torch.Generator().manual_seed(5))
    as_many = PixelUnshuffleCodec(grains=(1,)).noise((6, 64, 3, 3), torch.Generator().manual_seed(5))
    assert torch.equal(in_colour, as_many.view(2, 192, 3, 3))  # colours are drawn as further fields


def test_fields_of_noise_in_colour_depend_on_their_seed_alone():
    codec = CODECS["unshuffle-rgb"](None)
    many = noise_fields(codec, 3, (192, 2, 2), seed=1)(0)
    assert torch.equal(noise_fields(codec, 1, (192, 2, 2), seed=1)(0), many[:1])
    assert not torch.allclose(many[0], many[1])


def test_the_posterior_in_colour_is_that_of_each_colour():
    grey, colour = PixelUnshuffleCodec(), PixelUnshuffleCodec(colours=3)
    generator = torch.Generator().manual_seed(0)
    estimate = colour.encode(torch.rand(2, 1, 16, 16, generator=generator))
    x_t = torch.randn(estimate.shape, generator=generator)
    a, sigma = torch.tensor(0.6), torch.tensor(0.8)
    found = colour.posterior(estimate, x_t, a, sigma)
    assert found.shape == estimate.shape
    assert (found.abs() <= 1).all()
    for part, own, noisy in zip(*(v.split(64, dim=1) for v in (found, estimate, x_t)), strict=True):
        torch.testing.assert_close(part, grey.posterior(own, noisy, a, sigma))
    assert torch.isfinite(colour.posterior(colour.encode(discs()), colour.encode(discs()), a, torch.tensor(0.0))).all()


def test_pictures_of_an_autoencoder_have_three_colours_and_their_mean_is_the_mask(vae):
    codec, picture = VaeCodec(vae), coloured(2, 32, 40)
    codec.measure(discs())
    latent = codec.encode_picture(picture)
    back = codec.decode_picture(latent)
    assert codec.colours == 3
    assert back.shape == picture.shape
    torch.testing.assert_close(codec.decode(latent), (back.mean(dim=1, keepdim=True) + 1) / 2)
    direct = vae.decode(vae.encode(picture).latent_dist.mode()).sample
    torch.testing.assert_close(back, direct, rtol=1e-3, atol=1e-4)  # shift and scale are taken back
    grey = codec.encode_picture(picture[:, :1])
    assert torch.equal(grey, codec.encode_picture(picture[:, :1].expand(-1, 3, -1, -1)))


# a level for the whole picture


def test_noise_with_a_level_is_standard_normal_and_shares_it():
    codec = PixelUnshuffleCodec(grains=(1, 2), level=0.75)
    noise = codec.noise((3000, 64, 1, 1), torch.Generator().manual_seed(0))
    assert noise.var().item() == pytest.approx(1, abs=0.05)
    assert noise.mean(dim=(1, 2, 3)).var().item() == pytest.approx(0.75, abs=0.06)  # what 8 x 8 pixels have in common
    given = codec.noise((2, 64, 2, 2), torch.Generator().manual_seed(0), torch.tensor([3.0, -3.0]))
    assert given[0].mean() > 2 > -2 > given[1].mean()
    with pytest.raises(ValueError, match="from 0 to 1"):
        PixelUnshuffleCodec(level=1.5)


def test_the_levels_of_few_proposals_are_spread_evenly_and_do_not_depend_on_how_many_are_drawn():
    codec = PixelUnshuffleCodec(grains=(1,), level=1.0)
    for seed in range(3):
        many = noise_fields(codec, 64, (64, 1, 1), seed)(0)
        levels = torch.special.ndtr(many[:, 0, 0, 0].double())
        for n in (4, 8, 16, 64):
            few = noise_fields(codec, n, (64, 1, 1), seed)(0)
            assert torch.equal(few, many[:n])
            held = torch.histc(levels[:n], n, 0, 1)
            assert held.max() <= 2  # as good as one in each n-th
        assert torch.equal(many[1::2], -many[::2])
    assert not torch.equal(noise_fields(codec, 4, (64, 1, 1), 0)(0), noise_fields(codec, 4, (64, 1, 1), 0)(1))


def test_a_level_is_remembered_and_older_folders_have_none():
    assert PixelUnshuffleCodec(level=0.75).config() == {"scale": 1.0, "level": 0.75}
    assert CODECS["unshuffle"](None, scale=1.0).level == 0
    assert CODECS["unshuffle"](None, **PixelUnshuffleCodec(level=0.75).config()).level == 0.75
