from dataclasses import asdict, replace

import pytest
import torch
from tests.rounding import assert_same_up_to_rounding

from delineate.adapters import ADAPTERS, AdapterConfig
from delineate.adapters.adapter import attach
from delineate.data.slices import NO_LABEL, NOBODY, SliceBank
from delineate.errors import ModelError
from delineate.few_shot.learning import phases_of
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.systems import SYSTEMS, plain
from delineate.systems.latent import probunet
from delineate.systems.latent.probabilistic import FURTHEST
from delineate.systems.latent.probunet import BETAS, SIZES, ProbUNet, ProbUNetConfig, build, train
from delineate.systems.system import Asked
from delineate.training.loop import Budget, Run, Step

VOCABULARY = Vocabulary.from_names(["liver", "spleen", "aorta"], "CT")
MORE = VOCABULARY.merged(Vocabulary.from_names(["left kidney"], "CT"))
CONFIG = ProbUNetConfig(32, (16, 32))


@pytest.fixture
def system() -> ProbUNet:
    """An untrained one whose prior differs from slice to slice."""
    made = build(CONFIG, VOCABULARY, seed=0)
    torch.nn.init.normal_(made.network.prior.out.weight, generator=torch.Generator().manual_seed(0))
    return made


def slices(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def target(name: str = "liver", vocabulary: Vocabulary = VOCABULARY) -> Asked:
    return Asked(vocabulary.concepts[vocabulary.index(name)], name)


def drawn(system: ProbUNet, stack: torch.Tensor, n: int, seed: int = 0, name: str = "liver") -> torch.Tensor:
    return system.propose(system.see(View(stack)), target(name, system.vocabulary), n, seed).probabilities


def disputed_bank(size: int = 16) -> SliceBank:
    """Eight pictures of a disc; one rater drew it, another nothing, and a third was not there."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    top, left = (torch.randint(6, 10, (8, 1, 1), generator=generator) for _ in range(2))
    disc = (rows - top).square() + (columns - left).square() < 25
    grey = (100 + 100 * disc + 20 * torch.randn(8, size, size, generator=generator)).clamp(0, 255).to(torch.uint8)
    of_one = disc.to(torch.uint8)
    return SliceBank(
        images=grey[:, None].repeat(1, 3, 1, 1),
        labels=of_one,
        dataset=torch.zeros(8, dtype=torch.long),
        mirrored=torch.ones(8, dtype=torch.bool),
        annotated=torch.ones(1, 1, dtype=torch.bool),
        foreign=torch.zeros(1, 1, dtype=torch.bool),
        present=torch.ones(8, 1, dtype=torch.bool),
        shares=torch.ones(1),
        vocabulary=Vocabulary.from_names(["lung nodule"], "CT"),
        modalities=("CT",),
        augmentation="none",
        readings=torch.stack([of_one, 0 * of_one, torch.full_like(of_one, NOBODY)], dim=1),
        rating="random",
    )


# Proposals.


@pytest.mark.parametrize("n", [1, 3, 20])  # 20 are more than are drawn in one go
def test_a_proposal_is_the_same_whatever_number_is_drawn(system, n):
    stack = slices(18)
    assert_same_up_to_rounding(drawn(system, stack, n), drawn(system, stack, 21)[:n])


def test_a_proposal_of_a_slice_is_the_same_whatever_slices_are_beside_it(system):
    stack = slices(18)
    assert_same_up_to_rounding(drawn(system, stack[7:9], 3), drawn(system, stack, 3)[:, 7:9])


def test_proposals_differ_by_number_and_by_seed(system):
    four, other = drawn(system, slices(2), 4), drawn(system, slices(2), 4, seed=1)
    every = torch.cat([four, other]).flatten(1)
    apart = torch.cdist(every, every) + torch.eye(8) * 100
    assert apart.min() > 0.01


def test_all_slices_of_a_scan_take_the_same_draw_from_priors_of_their_own(system):
    seen, noise = system.see(View(slices(3))), probunet.latent_noise(2, CONFIG.latent, seed=5)
    for k in range(2):
        for s in range(3):
            z = seen.mean[s] + seen.sigma[s] * noise[k]
            expected = system.network.head(seen.features[s : s + 1], z[None, None]).softmax(dim=1)[0, 2]
            found = system.propose(seen, target("spleen"), 2, 5).probabilities[k, s]
            assert_same_up_to_rounding(found, expected)
    assert seen.mean.std(dim=0).min() > 1e-4


def test_latent_noise_is_standard_normal_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    noise = probunet.latent_noise(2000, 6, seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert noise.mean().abs() < 0.03
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert (torch.corrcoef(noise.T) - torch.eye(6)).abs().max() < 0.1
    assert torch.equal(noise[:10], probunet.latent_noise(10, 6, seed=3))


def test_targets_exclude_each_other(system):
    together = sum(drawn(system, slices(2), 3, name=name) for name in VOCABULARY.names)
    assert (together <= 1 + 1e-5).all()
    assert (together > 0).all()


def test_progress_is_told_to_its_end(system):
    told = []
    system.propose(system.see(View(slices(5))), target(), 20, 0, told.append)
    assert told == sorted(told)
    assert told[-1] == 1


# The network.


def test_prior_and_posterior_are_gaussians_of_the_latent(system):
    image, labels = slices(5), torch.randint(4, (5, 32, 32), generator=torch.Generator().manual_seed(1))
    prior, posterior = system.network.prior(image), system.network.read(image, labels)
    assert all(part.shape == (5, CONFIG.latent) for part in (*prior, *posterior))
    other, _ = system.network.read(image, labels.roll(1, dims=0))
    assert (other - posterior[0]).abs().max() > 1e-4  # it heeds the labels
    assert {m.in_channels for m in (system.network.prior.shrink[0][0], system.network.posterior.shrink[0][0])} == {3, 7}


def test_no_picture_makes_the_spread_run_away(system):
    system.network.prior.out.bias.data[CONFIG.latent :] = torch.tensor([1e6, -1e6, 0, 0, 0, 0])
    _, log_sigma = system.network.prior(slices(2))
    assert (log_sigma.abs() <= FURTHEST).all()
    assert log_sigma[:, 0].min().item() == pytest.approx(FURTHEST)


def test_the_head_is_three_convolutions_of_features_beside_the_latent(system):
    """What Kohl et al. describe, written out: the latent at every pixel, concatenated, convolved."""
    head, generator = system.network.head, torch.Generator().manual_seed(0)
    features, z = torch.randn(2, 16, 8, 8, generator=generator), torch.randn(2, 3, 6, generator=generator)
    weight = torch.cat([head.look.weight, head.tell.weight[:, :, None, None]], dim=1)
    found = head(head.look(features), z).unflatten(0, (2, 3))
    for k in range(3):
        tiled = torch.cat([features, z[:, k, :, None, None].expand(-1, -1, 8, 8)], dim=1)
        x = torch.nn.functional.conv2d(tiled, weight, head.look.bias).relu()
        torch.testing.assert_close(found[:, k], head.out(head.mix(x).relu()), rtol=1e-4, atol=1e-5)


def test_a_seed_makes_one_network():
    first, same, other = (build(CONFIG, VOCABULARY, seed=s).network.state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("preset", SIZES)
@pytest.mark.parametrize("size", [32, 96])
def test_any_multiple_of_32_is_a_working_grid(preset, size):
    """On no storage at all: only shapes are asked for."""
    network = build(ProbUNetConfig.preset("elbo", preset, size), VOCABULARY).network.to("meta")
    features = network.see(torch.empty(1, 3, size, size, device="meta"))
    assert network.head(features, torch.empty(1, 2, 6, device="meta")).shape == (2, 4, size, size)
    assert network.prior(torch.empty(1, 3, size, size, device="meta"))[0].shape == (1, 6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"objective": "fid"}, "objective is one of elbo, energy, sinkhorn; got 'fid'"),
        ({"size": 36}, "4 levels need a size that is a multiple of 8; got 36"),
        ({"widths": (16, 24)}, r"widths are multiples of 16; got \(16, 24\)"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        ProbUNetConfig(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "objective"), [("probunet", "elbo"), ("pulaski", "energy")])
def test_a_saved_system_is_its_configuration_and_weights(name, objective, tmp_path):
    made = build(replace(CONFIG, objective=objective, beta=BETAS[objective]), VOCABULARY, seed=3)
    config = SYSTEMS[name].save(made, tmp_path)
    assert config == asdict(made.config)
    again = SYSTEMS[name].load(tmp_path, {**config, "widths": list(config["widths"])}, VOCABULARY)
    assert again.config == made.config
    assert torch.equal(drawn(again, slices(2), 3), drawn(made, slices(2), 3))
    with pytest.raises(ModelError, match=r"colour.: is not known here"):
        SYSTEMS[name].load(tmp_path, {**config, "colour": "red"}, VOCABULARY)


# Objectives.


def test_the_divergence_is_weighed_as_in_the_papers():
    """L = R + w KL is a multiple of the papers' R' + β KL: R' = P R summed over pixels, ½ √P R for the kernel norm."""
    elbo, energy, sinkhorn = (ProbUNetConfig.preset(name, "tiny", 128) for name in BETAS)
    assert (elbo.beta, energy.beta, sinkhorn.beta) == (10, 1, 1)
    assert elbo.divergence_weight * 128**2 == pytest.approx(10)
    assert energy.divergence_weight * 128 / 2 == pytest.approx(1)
    assert sinkhorn.divergence_weight * 128**2 == pytest.approx(1)


def test_sets_are_the_maps_of_concepts_and_the_masks_of_raters():
    log_probability = torch.randn(2, 5, 4, 6, 6, generator=torch.Generator().manual_seed(0)).log_softmax(dim=2)
    readings = torch.randint(4, (2, 3, 6, 6), generator=torch.Generator().manual_seed(1))
    readings[1, 2] = -1
    known = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    known[0, 0, 2] = False
    labelled = readings
    readings = readings.masked_fill(~known, NO_LABEL)
    maps, masks, present = probunet.as_sets(log_probability, readings, known)
    torch.testing.assert_close(maps, log_probability.exp()[:, :, 1:] * known[:, :, None])
    assert masks.shape == (2, 3, 3, 6, 6)
    assert torch.equal(masks[0, 1, 2] == 1, (labelled[0, 1] == 3) & known[0, 0])
    assert present.tolist() == [[True, True, True], [True, True, False]]
    assert not masks[1, 2].any()


def test_the_entropy_of_the_mean_map_does_not_mind_how_the_maps_differ():
    sure = torch.tensor([[100.0, 0.0], [0.0, 100.0]]).log_softmax(dim=1)[None, :, :, None, None].expand(1, 2, 2, 4, 4)
    torn = torch.zeros(1, 2, 2, 4, 4).log_softmax(dim=2)
    readings = torch.tensor([0, 1, -1])[None, :, None, None].expand(1, 3, 4, 4)
    for maps in (sure, torn):
        assert probunet.mixture_entropy(maps, readings).item() == pytest.approx(torch.tensor(2.0).log().item())


@pytest.mark.parametrize("objective", BETAS)
def test_a_step_reaches_every_weight(objective):
    bank = disputed_bank()
    system = build(ProbUNetConfig(16, (16, 32), objective=objective), bank.vocabulary)
    stage = system.phases(bank)[0]
    loss, parts = stage.loss_of(8, Step(torch.Generator().manual_seed(0)))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in stage.module.parameters())
    assert all(p.grad.abs().sum() > 0 for p in system.network.posterior.out.parameters())
    expected = {"divergence"} if objective == "elbo" else {"divergence", "distance", "entropy"}
    assert parts.keys() == expected


@pytest.mark.parametrize("objective", BETAS)
def test_a_step_depends_on_its_generator_alone(objective):
    bank = disputed_bank()
    stage = build(ProbUNetConfig(16, (16, 32), objective=objective), bank.vocabulary).phases(bank)[0]
    first, second, other = (stage.loss_of(4, Step(torch.Generator().manual_seed(s)))[0].item() for s in (0, 0, 1))
    assert first == second != other


def test_a_bank_without_raters_has_one_rater():
    bank = disputed_bank()
    single = replace(bank, readings=bank.labels[:, None], rating="all")
    losses = []
    for one in (single, replace(bank, readings=None, rating="consensus")):
        stage = build(ProbUNetConfig(16, (16, 32), objective="energy"), bank.vocabulary).phases(one)[0]
        draw = replace(bank, readings=None, rating="consensus").draw(4, 0, torch.Generator().manual_seed(0))
        draw = draw if one.readings is None else replace(draw, readings=draw.labels[:, None])
        object.__setattr__(one, "draw", lambda *_, draw=draw: draw)  # one picture, told in both ways
        losses.append(stage.loss_of(4, Step(torch.Generator().manual_seed(0)))[0].item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("objective", ["elbo", "energy"])
def test_what_is_not_annotated_is_left_out_or_lumped(objective, two_organ_bank):
    """A concept that labels cannot tell of: no pull on it where it is left out, and none down where it is lumped."""
    spleen = 1 + two_organ_bank.vocabulary.index("spleen")
    unknown = replace(two_organ_bank, annotated=two_organ_bank.annotated.clone())
    unknown.annotated[:, spleen - 1] = False
    unknown = replace(unknown, labels=torch.where(unknown.labels == spleen, 0, unknown.labels))
    for bank in (unknown, replace(unknown, lumped=True)):
        system = build(ProbUNetConfig(64, (16, 32), objective=objective), bank.vocabulary)
        stage = system.phases(bank)[0]
        loss, _ = stage.loss_of(4, Step(torch.Generator().manual_seed(0)))
        loss.backward()
        gradient = system.network.head.out.bias.grad
        assert gradient[spleen - 1] != 0
        assert (gradient[spleen] == 0) if not bank.lumped else (gradient[spleen].abs() > 0)


# Training.


def worst_reading(proposals: torch.Tensor, bank: SliceBank) -> float:
    """The Dice of the best proposal for a reading, that of the reading met worst, averaged over the slices."""
    masks, met = proposals >= 0.5, []
    for reading in bank.readings[:, :2].bool().unbind(1):
        both, either = (masks & reading).sum((2, 3)), masks.sum((2, 3)) + reading.sum((1, 2))
        met.append(torch.where(either > 0, 2 * both / either.clamp(min=1), 1.0).max(0).values)
    return torch.stack(met).min(0).values.mean().item()


@pytest.mark.slow  # that proposals spread as raters do, after training
@pytest.mark.parametrize(("objective", "images"), [("elbo", 2000), ("energy", 1200)])
def test_proposals_meet_raters_who_contradict_each_other(objective, images, tmp_path):
    """Some draws of the latent are right for the rater who drew a disc, and some for the one who drew nothing."""
    bank = disputed_bank()
    config, told = ProbUNetConfig(16, (16, 32), objective=objective, beta=1.0), []
    system = train(
        build(config, bank.vocabulary),
        bank,
        Run(Budget(images=images), tmp_path, on_step=lambda stage, state, spent: told.append(state.log[-1]["loss"])),
    )
    assert sum(told[-20:]) < 0.4 * sum(told[:20])
    assert worst_reading(drawn(system, bank.images.float() / 127.5 - 1, 16, name="lung nodule"), bank) > 0.9
    assert not any(p.requires_grad for p in system.network.parameters())


def test_a_single_answer_cannot_meet_both(tmp_path):
    """What the test above would be worth if a deterministic U-Net passed it."""
    bank = disputed_bank()
    alone = plain.build(plain.PlainConfig(16, (16, 32)), bank.vocabulary)
    plain.train(alone, bank, Run(Budget(images=400), tmp_path))
    seen = alone.see(View(bank.images.float() / 127.5 - 1))
    answer = alone.propose(seen, Asked(bank.vocabulary.concepts[0], "lung nodule"), 8, 0).probabilities
    assert worst_reading(answer, bank) < 0.1


# Adapters.


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_changes_nothing_at_first_and_learns_alone(kind, system, two_organ_bank):
    bank = replace(two_organ_bank, vocabulary=MORE, lumped=True, **_widened(two_organ_bank))
    before = drawn(system, slices(1), 2)
    adapted = attach(system, AdapterConfig(kind, 2), VOCABULARY)
    assert torch.equal(drawn(adapted.system, slices(1), 2), before)
    merged = adapted.merged()
    torch.testing.assert_close(drawn(merged, slices(1), 2), before, rtol=1e-4, atol=1e-5)
    wide = attach(system, AdapterConfig(kind, 2), MORE)
    assert wide.system.learnt.names == MORE.names
    assert wide.can_merge
    for parameter in wide.own.values():
        parameter.data += 0.02
    asked = drawn(wide.system, slices(1), 2, name="left kidney")
    torch.testing.assert_close(drawn(wide.merged(), slices(1), 2, name="left kidney"), asked, rtol=1e-3, atol=1e-5)
    stage = phases_of(wide, bank, 1e-3)[0]
    stage.module.requires_grad_(True)
    loss, _ = stage.loss_of(2, Step(torch.Generator().manual_seed(0)))
    loss.backward()
    reached = [p for p in wide.own.values() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(reached) > len(wide.own) / 4
    assert all(p.grad is None for p in system.network.parameters())


def _widened(bank: SliceBank) -> dict[str, torch.Tensor]:
    """Tables of a two-organ bank for the four names of `MORE`; its spleen becomes the name that is new."""
    of = [MORE.index(name) for name in ("liver", "left kidney")]
    tables = {}
    for field in ("annotated", "foreign", "present"):
        old = getattr(bank, field)
        tables[field] = torch.zeros(len(old), len(MORE.names), dtype=torch.bool)
        tables[field][:, of] = old
    code = torch.tensor([0, *(1 + place for place in of)], dtype=torch.uint8)
    return {**tables, "labels": code[bank.labels.long()]}


def test_labels_that_came_later_are_background_to_the_posterior(system):
    labels = torch.randint(4, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    later = labels.masked_fill(labels == 0, 4)
    for a, b in zip(system.network.read(slices(2), labels), system.network.read(slices(2), later), strict=True):
        assert torch.equal(a, b)


def test_the_way_to_the_answer_is_known_to_adapters_of_the_decoder(system):
    layers = attach(system, AdapterConfig("decoder"), VOCABULARY).layers
    assert {path.split(".")[1] for path in layers} == {"model", "head"}
    assert not any(path.startswith("network.model.0") for path in layers)
