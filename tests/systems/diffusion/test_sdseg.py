import pytest
import torch
from tests.contracts.untrained import untrained
from tests.rounding import assert_same_up_to_rounding

from delineate.diffusion.codec import PixelUnshuffleCodec, VaeCodec
from delineate.diffusion.schedule import schedule_from_config
from delineate.foundation.foundation import Foundation
from delineate.foundation.pretraining import caption_corpus
from delineate.scans.grid import View
from delineate.systems import SYSTEMS
from delineate.systems.diffusion import sdseg
from delineate.systems.diffusion.sdseg import (
    SCHEDULER,
    SIZES,
    NoiseNetwork,
    SDSeg,
    SDSegConfig,
    build,
    loss_terms,
    train,
)
from delineate.systems.system import Asked
from delineate.training.loop import Budget, Run


def dice(mask, truth):
    return (2 * (mask & truth).sum() / (mask.sum() + truth.sum()).clamp(min=1)).item()


def target(system, name):
    return Asked(system.vocabulary.concepts[system.vocabulary.index(name)], name)


@pytest.fixture(scope="module")
def system():
    return untrained("sdseg")


@pytest.fixture(scope="module")
def learnt(trained):
    return trained["sdseg"].system


@pytest.fixture(scope="module")
def stack(two_organ_bank):
    return two_organ_bank.images.float() / 127.5 - 1


@pytest.fixture(scope="module")
def larger(larger_bank):
    """The pictures that `learnt` has learnt from, and which of their pixels are liver."""
    return larger_bank.images.float() / 127.5 - 1, larger_bank.labels == 1 + larger_bank.vocabulary.index("liver")


@pytest.fixture
def asked(system):
    """The times that the U-Net is asked for, one for each sample of each call."""
    times = []
    hook = system.network.unet.register_forward_pre_hook(lambda module, given: times.extend(given[1].tolist()))
    yield times
    hook.remove()


def test_a_proposal_is_one_evaluation_at_the_last_time(system, stack, asked):
    seen = system.see(View(stack[:20]))
    assert asked == []
    system.propose(seen, target(system, "liver"), 3, 0)  # 60 pairs: more than one chunk
    assert asked == [999] * 60


def test_the_scan_is_encoded_once(system, stack):
    calls = []
    hook = system.network.encoder.register_forward_hook(lambda *given: calls.append(1))
    seen = system.see(View(stack[:4]))
    assert seen.shape == (4, 64, 4, 4)
    for name in ("liver", "spleen"):
        system.propose(seen, target(system, name), 2, 0)
    hook.remove()
    assert len(calls) == 1


@pytest.mark.slow  # that a trained one heeds label and scan: a contract knows that they change something
def test_the_label_is_heeded(learnt, larger):
    stack, liver = larger
    seen = learnt.see(View(stack))
    right, wrong = (learnt.propose(seen, target(learnt, n), 1, 0).probabilities[0] >= 0.5 for n in ("liver", "spleen"))
    assert dice(right, liver) > 0.5
    assert dice(right, liver) - dice(wrong, liver) > 0.3


@pytest.mark.slow  # that a trained one heeds label and scan: a contract knows that they change something
def test_without_its_scan_the_organ_is_lost(learnt, larger):
    stack, liver = larger
    other = (
        learnt.propose(learnt.see(View(stack.roll(7, dims=0))), target(learnt, "liver"), 1, 0).probabilities[0] >= 0.5
    )
    own = learnt.propose(learnt.see(View(stack)), target(learnt, "liver"), 1, 0).probabilities[0] >= 0.5
    assert dice(other, liver) < dice(own, liver) - 0.1


def test_the_same_seed_is_the_same_to_the_bit_and_others_differ(system, stack):
    seen = system.see(View(stack[14:15]))
    one, same, other = (system.propose(seen, target(system, "liver"), 2, seed).probabilities for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("at_once", [1, 5])
def test_a_proposal_depends_neither_on_its_batch_nor_on_how_many_are_drawn(system, stack, monkeypatch, at_once):
    seen = system.see(View(stack[12:15]))
    whole = system.propose(seen, target(system, "liver"), 3, 0).probabilities
    monkeypatch.setattr(sdseg, "PAIRS_AT_ONCE", at_once)
    assert_same_up_to_rounding(system.propose(seen, target(system, "liver"), 2, 0).probabilities, whole[:2])


def test_equal_slices_get_equal_proposals_since_noise_is_one_field_for_all(system, stack):
    drawn = system.propose(
        system.see(View(stack[14:15].repeat(2, 1, 1, 1))), target(system, "liver"), 2, 0
    ).probabilities
    assert_same_up_to_rounding(drawn[:, 0], drawn[:, 1])


def test_latent_estimation_weighs_an_error_of_the_noise_by_what_it_does_to_the_mask():
    """x0 = (x - σ ε) / a: at the last time of this schedule 38 times the error, at the first next to nothing."""
    schedule = schedule_from_config(SCHEDULER)
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for last, factor in ((0, 0.0387), (999, 38.0)):
        t = torch.tensor([last])
        x_t = schedule.add_noise(x0, noise, t)
        exact, off = (loss_terms(schedule, noise + error, noise, x_t, x0, t) for error in (0.0, 0.1))
        assert max(term.item() for term in exact) < 1e-9
        assert off[0].item() == pytest.approx(0.1)
        assert off[1].item() == pytest.approx(0.1 * factor, rel=0.03)


def test_both_terms_are_what_is_trained(two_organ_bank, tmp_path):
    log = []
    made = build(SDSegConfig(32), PixelUnshuffleCodec(), two_organ_bank.vocabulary)
    train(
        made,
        two_organ_bank,
        Run(Budget(images=16), tmp_path, on_step=lambda stage, state, spent: log.append((stage, state.log[-1]))),
    )
    assert [stage for stage, _ in log] == ["network", "network"]
    for _, entry in log:
        assert entry["noise"] > 0
        assert entry["latent"] > 0
        assert entry["loss"] == pytest.approx(entry["noise"] + entry["latent"], abs=3e-5)
    assert not any(p.requires_grad for p in made.network.parameters())


@pytest.mark.parametrize("t", [0, 500, 999])
def test_the_network_s_output_is_v(t):
    """ε̂ = σ x + a v̂ and x0 = (x - σ ε̂) / a make x0 = a x - σ v̂, without any division."""
    schedule, times = schedule_from_config(SCHEDULER), torch.tensor([t])
    torch.manual_seed(0)
    network = NoiseNetwork("tiny", 4, 2).double()
    x_t, condition = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    concept = torch.tensor([1])
    a, sigma = schedule.signal_and_noise(times, x_t)
    with torch.no_grad():
        v = network.unet(torch.cat([x_t, condition], 1), times, class_labels=concept).sample
        x0 = schedule.to_x0(network(x_t, times, condition, concept, schedule), x_t, times)
    torch.testing.assert_close(x0, a * x_t - sigma * v)


def test_a_foundation_s_autoencoder_is_used_saved_and_not_changed(two_organ_bank, stack, tmp_path):
    corpus = caption_corpus(two_organ_bank.vocabulary, two_organ_bank.modalities)
    Foundation.make("tiny", "vae", corpus, seed=0).save(tmp_path / "foundation")
    before = Foundation.load(tmp_path / "foundation").vae.state_dict()
    entry = SYSTEMS["sdseg"]
    made = entry.train(
        two_organ_bank,
        "tiny",
        Run(Budget(images=16), tmp_path / "work", seed=0),
        foundation=tmp_path / "foundation",
        device="cpu",
    )
    assert isinstance(made, SDSeg)
    assert isinstance(made.codec, VaeCodec)
    after = made.codec.vae.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    masks = two_organ_bank.draw(16, 1, torch.Generator().manual_seed(0)).masks
    latent = made.codec.encode(masks)
    assert latent.mean().item() == pytest.approx(0, abs=1e-3)
    assert latent.std().item() == pytest.approx(1, abs=1e-3)
    (tmp_path / "model").mkdir()
    again = entry.load(tmp_path / "model", entry.save(made, tmp_path / "model"), made.vocabulary)
    drawn = [s.propose(s.see(View(stack[:2])), target(s, "liver"), 2, 0).probabilities for s in (made, again)]
    assert drawn[0].shape == (2, 2, 32, 32)
    assert torch.equal(*drawn)
    assert {p.suffix for p in (tmp_path / "model").rglob("*") if p.is_file()} == {".safetensors", ".json"}


@pytest.mark.parametrize("preset", SIZES)
def test_any_multiple_of_32_is_a_working_grid(preset):
    """On no storage at all: only shapes are asked for."""
    network = NoiseNetwork(preset, 64, 3).to("meta")
    for size in (32, 96):
        seen = network.see(torch.empty(1, 3, size, size, device="meta"))
        x_t = torch.empty(1, 64, size // 8, size // 8, device="meta")
        concept = torch.empty(1, dtype=torch.long, device="meta")
        assert seen.shape == x_t.shape
        assert network.unet(torch.cat([x_t, seen], 1), 999, class_labels=concept).sample.shape == x_t.shape


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"preset": "huge"}, "preset is one of tiny, base; got 'huge'"), ({"size": 40}, "multiple of 32; got 40")],
)
def test_what_cannot_be_built_is_refused_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        SDSegConfig(**wrong)
    assert "\n" not in str(caught.value)
