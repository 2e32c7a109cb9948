"""Adapters by themselves: layers, formulas and refusals. What any must keep to on any system is in `contracts/`."""

import copy

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from delineate.adapters import AdapterConfig, lora
from delineate.adapters.adapter import Widened, attach, is_adapted
from delineate.adapters.salt import Salt
from delineate.errors import DelineateError, ModelError
from delineate.foundation.foundation import Foundation
from delineate.foundation.pretraining import caption_corpus
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.systems import plain
from delineate.systems.diffusion import progidiff, unisegdiff
from delineate.systems.system import Asked, System

NAMES = Vocabulary.from_names(["liver", "spleen"], "CT")
MORE = NAMES.merged(Vocabulary.from_names(["left kidney", "right kidney"], "MR"))


def stirred(system: System) -> System:
    """Every weight moved a little, so that no layer is one of zeros behind which a change could hide."""
    generator = torch.Generator().manual_seed(1)
    for part in system.parts.values():
        for parameter in part.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        part.requires_grad_(False)
    return system


@pytest.fixture(scope="module")
def foundation() -> Foundation:
    return Foundation.make("tiny", "unshuffle", caption_corpus(MORE, ["CT", "MR"]), seed=0)


@pytest.fixture(scope="module")
def bases(foundation) -> dict[str, System]:
    """One of every family of systems, for 64 pixels; none may be changed by a test."""
    return {
        "unet": stirred(plain.build(plain.PlainConfig(64, (8, 16, 32)), NAMES)),
        "mednext": stirred(plain.build(plain.PlainConfig(64, (8, 16, 32, 64, 128), "mednext", 1), NAMES)),
        "progidiff": stirred(progidiff.build(progidiff.ProGiDiffConfig(64), foundation, NAMES)),
        "unisegdiff": stirred(unisegdiff.build(unisegdiff.UniSegDiffConfig(64), NAMES)),
    }


@pytest.fixture
def base(request, bases) -> System:
    return bases[request.param]


def answer(system: System, name: str = "liver", n: int = 2) -> torch.Tensor:
    """What a system makes of one fixed slice."""
    stack = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    concept = system.vocabulary.concepts[system.vocabulary.index(name)]
    return system.propose(system.see(View(stack)), Asked(concept, f"{name}, CT"), n, 0).probabilities


def shaken(adapted, seed: int = 0, size: float = 0.05) -> None:
    """The adapter's parameters as a training might leave them."""
    generator = torch.Generator().manual_seed(seed)
    adapted.load({k: v + size * torch.randn(v.shape, generator=generator) for k, v in adapted.weights().items()})


def state(system: System) -> dict[str, torch.Tensor]:
    return {f"{p}.{k}": v.clone() for p, part in system.parts.items() for k, v in part.state_dict().items()}


@pytest.mark.parametrize("base", ["unet", "progidiff"], indirect=True)
def test_merging_may_leave_what_it_did_not_change_with_the_base(base):
    adapted, before = attach(base, AdapterConfig(rank=2), NAMES), answer(base)
    shaken(adapted)
    merged = adapted.merged(share=True)
    own = {p.data_ptr() for part in base.parts.values() for p in part.parameters()}
    kept = [p for part in merged.parts.values() for p in part.parameters() if p.data_ptr() in own]
    assert 0 < len(kept) < len(own)
    assert torch.allclose(answer(merged), answer(adapted.system), atol=2e-4)
    assert torch.equal(answer(base), before)


@pytest.mark.parametrize("base", ["unet", "progidiff"], indirect=True)
def test_several_adapters_live_side_by_side_on_one_base(base):
    before = answer(base)
    one, other = attach(base, AdapterConfig("lora", 2), NAMES), attach(base, AdapterConfig("salt", 2), NAMES)
    shaken(one, 1)
    shaken(other, 2)
    first, second = answer(one.system), answer(other.system)
    assert not torch.allclose(first, second, atol=1e-4)
    assert torch.equal(answer(one.system), first)
    assert torch.equal(answer(base), before)
    shared = {p.data_ptr() for part in base.parts.values() for p in part.parameters()}
    frozen = [
        p for part in one.system.parts.values() for p in part.parameters() if id(p) not in map(id, one.own.values())
    ]
    assert {p.data_ptr() for p in frozen} <= shared  # nothing of the base was copied


@pytest.mark.parametrize("base", ["progidiff", "unisegdiff"], indirect=True)
def test_targets_name_layers_by_what_they_are(base):
    def layers(targets: str) -> dict[str, nn.Module]:
        adapted = attach(base, AdapterConfig("lora", 2, targets=targets), NAMES)
        root = nn.ModuleDict(adapted.system.parts)
        return {path: root.get_submodule(path) for path in adapted.layers}

    attention, convolutions, everything = layers("attention"), layers("convolutions"), layers("all")
    assert attention
    assert convolutions
    assert not attention.keys() & convolutions.keys()
    assert attention.keys() | convolutions.keys() < everything.keys()
    assert all(isinstance(layer.get_base_layer(), nn.Conv2d) for layer in convolutions.values())
    assert all("fuse" in path or "attn" in path for path in attention)


@pytest.mark.parametrize("base", ["unet"], indirect=True)
def test_a_model_without_attention_says_so(base):
    with pytest.raises(
        DelineateError, match=r"no layer .* --targets attention; take --kind full, or lora with --targets all"
    ):
        attach(base, AdapterConfig("lora", targets="attention"), NAMES)


@pytest.mark.parametrize(
    "wrong", [{"kind": "dora"}, {"targets": "norms"}, {"rank": 0}, {"alpha": 0.0}, {"singular": -1}]
)
def test_a_configuration_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"an adapter is one of|targets are one of|rank must be"):
        AdapterConfig(**wrong)


def test_lora_adapts_the_layers_named_and_none_whose_name_ends_alike():
    root = nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1), "net": nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1)})})
    lora.wrap(root, ["conv"], AdapterConfig(rank=1))
    assert isinstance(root["conv"], LoraLayer)
    assert type(root.get_submodule("net.conv")) is nn.Conv2d


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(3, 5, 3, padding=1, stride=2)])
def test_lora_is_the_formula(layer):
    """W' = W + (alpha / rank) B A, of a convolution's weight seen as a matrix."""
    torch.manual_seed(0)
    root = nn.ModuleDict({"layer": copy.deepcopy(layer)})
    lora.wrap(root, ["layer"], AdapterConfig(rank=2, alpha=6.0))
    wrapped = root["layer"]
    assert isinstance(wrapped, LoraLayer)
    a, b = wrapped.lora_A["default"].weight, wrapped.lora_B["default"].weight  # type: ignore[union-attr]
    nn.init.normal_(b)
    expected = layer.weight + 3 * (b.flatten(1) @ a.flatten(1)).view_as(layer.weight)
    assert torch.allclose(lora.fold(wrapped).weight, expected, atol=1e-6)


# SALT.


@pytest.mark.parametrize("layer", [nn.Linear(12, 9), nn.Conv2d(4, 9, 3, padding=1), nn.Conv2d(3, 2, 1)])
def test_salt_scales_and_shifts_the_largest_singular_values_and_leaves_the_rest(layer):
    adapted = Salt(copy.deepcopy(layer), singular=3, rank=2)
    r = len(adapted.scale)
    adapted.scale.data.uniform_(0.9, 1.1)
    adapted.shift.data.uniform_(0, 0.01)
    s = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    expected = torch.cat([adapted.scale * s[:r] + adapted.shift, s[r:]]).sort(descending=True).values
    found = torch.linalg.svdvals((layer.weight + adapted.change()).detach().flatten(1))
    assert torch.allclose(found, expected, atol=1e-5)


def test_salt_changes_the_rest_by_a_matrix_of_low_rank_that_the_largest_do_not_see():
    layer = nn.Linear(12, 9)
    adapted = Salt(layer, singular=3, rank=2)
    adapted.right.data.normal_()
    change = adapted.change().detach()
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2
    u, _, vt = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    assert (u[:, :3].T @ change).abs().max() < 1e-5
    assert (change @ vt[:3].T).abs().max() < 1e-5


def test_salt_does_not_depend_on_the_signs_that_a_decomposition_happens_to_choose(monkeypatch):
    layer, svd = nn.Linear(7, 5), torch.linalg.svd
    one = Salt(layer, 2, 2)
    one.right.data.normal_()

    def turned(matrix, **how):
        u, s, vt = svd(matrix, **how)
        sign = torch.tensor([1.0, -1, -1, 1, -1], dtype=u.dtype)
        return u * sign, s, vt * sign[:, None]

    monkeypatch.setattr(torch.linalg, "svd", turned)
    other = Salt(layer, 2, 2)
    other.left.data, other.right.data = one.left.data, one.right.data
    assert torch.allclose(one.change(), other.change(), atol=1e-6)


def test_salt_of_a_layer_with_fewer_singular_values_than_asked_for():
    adapted = Salt(nn.Conv2d(2, 3, 1), singular=16, rank=8)
    assert len(adapted.scale) == 2
    assert adapted.left.numel() == adapted.right.numel() == 0
    assert adapted(torch.ones(1, 2, 4, 4)).shape == (1, 3, 4, 4)


# Names that the base did not know.


@pytest.mark.parametrize("base", ["unet", "mednext"], indirect=True)
def test_a_plain_network_is_widened_by_a_channel_a_name_and_its_old_logits_stay(base):
    adapted = attach(base, AdapterConfig(rank=2), MORE)
    image = torch.rand(1, 3, 64, 64)
    old, new = base.logits(image), adapted.system.logits(image)  # type: ignore[attr-defined]
    assert new.shape[1] == old.shape[1] + 2
    assert torch.equal(new[:, : old.shape[1]], old)


@pytest.mark.parametrize("base", ["progidiff"], indirect=True)
def test_a_prompted_system_needs_no_weights_for_a_new_name(base):
    one, other = attach(base, AdapterConfig(rank=2), NAMES), attach(base, AdapterConfig(rank=2), MORE)
    assert other.widened is None
    assert one.own.keys() == other.own.keys()


@pytest.mark.parametrize("base", ["unisegdiff"], indirect=True)
def test_a_widened_head_of_one_convolution_can_be_merged(base):
    adapted = attach(base, AdapterConfig(rank=2), MORE)
    shaken(adapted)
    assert torch.allclose(answer(adapted.merged(), "left kidney"), answer(adapted.system, "left kidney"), atol=2e-5)


@pytest.mark.parametrize("base", ["unet"], indirect=True)
def test_a_widened_block_that_cannot_be_merged_says_so(base):
    with pytest.raises(DelineateError, match="cannot be merged into it; use the adapter as it is"):
        attach(base, AdapterConfig(rank=2), MORE).merged()


def test_an_unknown_or_missing_weight_is_refused(bases):
    adapted = attach(bases["unet"], AdapterConfig(rank=2), NAMES)
    weights = adapted.weights()
    odd = next(iter(weights))
    with pytest.raises(ModelError, match="copy the adapter again"):
        adapted.load({k: v for k, v in weights.items() if k != odd})
    with pytest.raises(ModelError, match="has the shape"):
        adapted.load({**weights, odd: torch.zeros(1)})


def test_what_is_adapted_is_known_as_such(bases):
    assert not is_adapted(bases["unet"])
    assert is_adapted(attach(bases["unet"], AdapterConfig("lora", 2), NAMES).system)
    assert is_adapted(attach(bases["unet"], AdapterConfig("salt", 2), NAMES).system)
    assert is_adapted(attach(bases["unet"], AdapterConfig("full"), MORE).system)
    assert not is_adapted(attach(bases["unet"], AdapterConfig("full"), NAMES).system)  # plain layers with other weights
    assert isinstance(attach(bases["unet"], AdapterConfig("full"), MORE).system.parts["network"].model[2], Widened)  # type: ignore[index]
