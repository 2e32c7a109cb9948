import pytest
import torch
from safetensors.torch import save_file

from delineate.errors import DelineateError, ModelError
from delineate.jobs.synthesize import SynthesizeRequest, synthesize
from delineate.synthesis.artist import Drawing
from delineate.synthesis.hed import STAGES, Hed


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Hed()


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """Random weights as a user would have them; do not write there."""
    folder = tmp_path_factory.mktemp("hed")
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "hed.safetensors")
    return folder


def refused(folder, match):
    with pytest.raises(ModelError, match=match) as caught:
        Hed.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_weights_have_the_names_and_shapes_of_controlnet_s_hed(network):
    """As in `ControlNetHED`: block1 to block5 of `convs` and `projection`, and `norm`."""
    widths = [3, *(width for width, _ in STAGES)]
    expected = {"norm": (1, 3, 1, 1)}
    for block, (before, (width, depth)) in enumerate(zip(widths, STAGES, strict=False), start=1):
        for conv in range(depth):
            name = f"block{block}.convs.{conv}"
            expected[f"{name}.weight"] = (width, before if conv == 0 else width, 3, 3)
            expected[f"{name}.bias"] = (width,)
        expected |= {f"block{block}.projection.weight": (1, width, 1, 1), f"block{block}.projection.bias": (1,)}
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == expected
    assert {"block1.convs.0.weight", "block5.convs.2.bias", "block1.projection.weight", "norm"} <= expected.keys()


def test_what_is_loaded_is_what_was_saved(network, folder):
    loaded = Hed.load(folder)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    pictures = torch.rand(1, 1, 24, 32) * 2 - 1
    assert torch.equal(loaded(pictures), network(pictures))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(32, 32), (17, 40)])
def test_edges_are_one_channel_between_zero_and_one(channels, shape):
    torch.manual_seed(0)
    network = Hed(((8, 1), (8, 2), (16, 1)))
    pictures = torch.rand(2, channels, *shape) * 2 - 1
    edges = network(pictures)
    assert edges.shape == (2, 1, *shape)
    assert ((edges >= 0) & (edges <= 1)).all()
    assert edges.std() > 0
    if channels == 1:
        assert torch.equal(edges, network(pictures.expand(-1, 3, -1, -1)))


def test_pictures_are_shifted_by_the_norm_in_levels_of_0_to_255():
    torch.manual_seed(0)
    network, pictures = Hed(((8, 1), (8, 1))), torch.rand(1, 3, 16, 16) - 0.5
    before = network(pictures)
    network.norm.data.fill_(0.1 * 127.5)
    torch.testing.assert_close(network(pictures + 0.1), before, atol=1e-4, rtol=0)


def test_without_any_signal_every_pixel_is_undecided():
    network = Hed(((8, 1), (8, 1)))
    for parameter in network.parameters():
        parameter.data.zero_()
    assert (network(torch.rand(1, 3, 16, 16)) == 0.5).all()


def test_no_file_several_or_none_of_the_kind_are_refused(folder, tmp_path):
    refused(tmp_path / "nowhere", "one .safetensors file, found 0")
    refused(folder / "hed.safetensors", "found 0")  # a file is no folder
    refused(tmp_path, "found 0")
    for name in ("a", "b"):
        save_file({"norm": torch.zeros(1, 3, 1, 1)}, tmp_path / f"{name}.safetensors")
    refused(tmp_path, "found 2")
    (tmp_path / "b.safetensors").unlink()
    refused(tmp_path, "the weights (do not fit this model|cannot be read)")
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    refused(tmp_path, "the weights (do not fit this model|cannot be read)")


def test_a_pickle_is_never_opened(tmp_path, monkeypatch):
    def boom(*given, **more):
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(torch, "load", boom)
    monkeypatch.setattr("pickle.load", boom)
    monkeypatch.setattr("pickle.Unpickler", boom)
    (tmp_path / "ControlNetHED.pth").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    refused(tmp_path, "found 0; turn ControlNetHED.pth into one")


def test_hed_needs_its_folder_and_the_folder_needs_hed(phantom_dataset, folder, tmp_path):
    for drawing, hed, words in (
        (Drawing(edges="hed"), None, "name it with --hed"),
        (Drawing(edges="canny"), folder, "--hed is for edges 'hed'; edges are 'canny'"),
        (Drawing(edges="sobel"), None, "edges are one of scharr, canny, hed, none; got 'sobel'"),
    ):
        with pytest.raises(DelineateError, match=words):
            synthesize(SynthesizeRequest(phantom_dataset, drawing, hed=hed, images=8), tmp_path / "out")
    with pytest.raises(ModelError, match="found 0"):
        synthesize(SynthesizeRequest(phantom_dataset, Drawing(edges="hed"), hed=tmp_path, images=8), tmp_path / "out")
    assert not list(tmp_path.iterdir())
