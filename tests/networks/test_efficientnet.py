"""EfficientNet-Lite0 and its decoder; the true weights where the extra `pretrained` is installed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from delineate.errors import ModelError
from delineate.networks import NETWORKS
from delineate.networks.efficientnet import FEATURES, EfficientNetLite0, EfficientNetUNet, begin
from delineate.storage.pretrained import PRETRAINED, read_pretrained


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return EfficientNetLite0().eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The true weights; kept in a cache of the test's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        try:
            return read_pretrained(PRETRAINED["efficientnet-lite0"])
        except ModelError as error:
            pytest.skip(str(error))


def weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_weights_are_as_many_as_published(encoder):
    """4.652 M with a classifier of a thousand classes behind it."""
    head, norm, classifier = 320 * 1280, 2 * 1280, 1280 * 1000 + 1000
    assert weights(encoder) + head + norm + classifier == 4_652_008


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (96, 64)])
def test_features_are_at_strides_two_to_thirty_two(encoder, rows, columns):
    found = [tuple(feature.shape) for feature in encoder(torch.zeros(2, 3, rows, columns))]
    strides = (2, 4, 8, 16, 32)
    assert found == [(2, c, rows // s, columns // s) for c, s in zip(FEATURES.values(), strides, strict=True)]


def test_images_are_seen_as_its_weights_learnt_them(encoder):
    seen = []
    hook = encoder._conv_stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    values = torch.arange(0, 256, dtype=torch.float64)[:192].reshape(1, 3, 8, 8).float()
    encoder(F.pad(values, (0, 24, 0, 24), value=127) / 127.5 - 1)
    hook.remove()
    expected = F.pad((values - 127) / 128, (0, 25, 0, 25))  # a column and a row more: SAME of an even side
    torch.testing.assert_close(seen[0], expected, atol=1e-6, rtol=0)


def strided(encoder):
    return {3: encoder._blocks[1], 5: encoder._blocks[3]}


@pytest.mark.parametrize(("kernel", "first", "last"), [(3, (0, 2), (14, 15)), (5, (0, 3), (13, 15))])
def test_a_strided_convolution_pads_below_and_to_the_right(encoder, kernel, first, last):
    """TensorFlow's SAME, for kernel 3 at output i: pixels 2i to 2i + 2; for 5: 2i - 1 to 2i + 3."""
    block = strided(encoder)[kernel]
    assert block._depthwise_conv.kernel_size == (kernel, kernel)
    for at, (low, high) in ((0, first), (-1, last)):
        x = torch.randn(1, block._expand_conv.in_channels, 16, 16, requires_grad=True)
        block(x)[0, :, at, at].sum().backward()
        assert x.grad is not None
        rows = x.grad.abs().sum((0, 1, 3)).nonzero()[:, 0]
        assert (rows.min(), rows.max()) == (low, high)


def test_a_grey_image_is_three_colours_alike():
    grey = NETWORKS["efficientnet"].build(1, 2, "tiny").eval()
    colour = NETWORKS["efficientnet"].build(3, 2, "tiny").eval()
    colour.load_state_dict(grey.state_dict())
    image = torch.rand(2, 1, 64, 64) * 2 - 1
    torch.testing.assert_close(grey(image), colour(image.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: EfficientNetUNet(4, 2), "three colours or at one grey value, not 4 channels"),
        (lambda: EfficientNetUNet(3, 2, (8, 16)), r"has 4 widths; got \(8, 16\)"),
        (lambda: EfficientNetUNet(3, 2)(torch.zeros(2, 3, 64, 48)), "multiples of 32, not 64×48"),
        (lambda: EfficientNetUNet(3, 2)(torch.zeros(1, 3, 32, 32)), "needs a batch of two or more"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_it_begins_with_an_encoder_that_learnt_elsewhere_without_its_classifier():
    torch.manual_seed(1)
    learnt = {k: torch.rand_like(v.float()).to(v.dtype) for k, v in EfficientNetLite0().state_dict().items()}
    network = EfficientNetUNet(3, 2)
    before = {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("encoder.")}
    begin(
        network,
        {**learnt, "_conv_head.weight": torch.zeros(1), "_bn1.weight": torch.zeros(1), "_fc.bias": torch.zeros(1)},
    )
    assert all(torch.equal(v, learnt[k]) for k, v in network.encoder.state_dict().items())
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items())
    del learnt["_conv_stem.weight"]
    with pytest.raises(RuntimeError, match="_conv_stem"):
        begin(network, learnt)


def test_the_published_weights_fit_one_to_one(published):
    network = EfficientNetUNet(3, 2)
    begin(network, published)
    behind = {k for k in published if k.startswith(("_conv_head.", "_bn1.", "_fc."))}
    assert published.keys() - behind == network.encoder.state_dict().keys()
    assert len(published) == 296
    assert len(behind) == 8
    counted = [k for k in published if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert sum(published[k].numel() for k in counted) == 4_652_008


def test_the_published_weights_say_themselves_what_they_saw(published):
    """The mean behind the first convolution is its kernels' sums times the mean colour: 32 equations, 3 unknowns.

    ImageNet's mean colour is (-.03, -.09, -.19) in [-1, 1], red brightest; it would be 0, 0, 0 had its mean been
    taken away.
    """
    sums, means = published["_conv_stem.weight"].sum((2, 3)), published["_bn0.running_mean"][:, None]
    colour = torch.linalg.lstsq(sums, means).solution
    assert (sums @ colour - means).norm() < 0.01 * means.norm()
    red, green, blue = colour[:, 0].tolist()
    assert -0.25 < blue < green < red < 0


def test_features_are_those_of_the_publisher_s_own_code(published):
    """Numbers of efficientnet-lite-pytorch 0.1.0 with these weights, of the picture below."""
    encoder = EfficientNetLite0().eval()
    encoder.load_state_dict({k: v for k, v in published.items() if k in encoder.state_dict()})
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    picture = torch.stack([torch.sin(y / 5), torch.cos(x / 7), torch.sin((x + y) / 9)])[None]
    with torch.no_grad():
        coarsest = encoder(picture)[-1]
    assert coarsest.std().item() == pytest.approx(3.03938, rel=1e-4)
    assert coarsest[0, :3, 0, 0].tolist() == pytest.approx([0.558985, -2.792472, 2.935136], rel=1e-3)
