import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from delineate.training.checkpoint import checkpoints, load_checkpoint, new_state
from delineate.training.loop import Budget, Hyperparameters, Interrupted, TrainingError, polite_stop, train, use_average

IMAGES, BATCH = 640, 16
HYPER = Hyperparameters(batch_size=BATCH, warm_up_images=64, average_halflife_images=100)


def small_state(seed=3):
    torch.manual_seed(seed)
    return new_state(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1)), seed=seed)


def size_alone(size, generator):
    """A batch whose numbers are drawn by the loss."""
    return size


def denoising(state):
    """A loss that draws images and noise from the step's generator, as diffusion does."""

    def loss_of(size, step):
        clean = torch.rand(size, 1, 8, 8, generator=step.generator).round()
        noisy = clean + torch.randn(clean.shape, generator=step.generator)
        loss = (state.module(noisy) - clean).square().mean()
        return loss, {"error": loss.item()}

    return loss_of


def run(folder, state=None, images=IMAGES, **more):
    state = state or small_state()
    return train(
        state, size_alone, denoising(state), budget=Budget(images=images), folder=Path(folder), hyper=HYPER, **more
    )


def fingerprint(folder):
    """SHA-256 of weights, average and optimiser of the newest checkpoint, and its log without wall times."""
    newest = checkpoints(Path(folder))[-1]
    hashes = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in newest.glob("*.safetensors")}
    log = json.loads((newest / "state.json").read_text())["log"]
    return {"folder": newest.name, **hashes, "log": [{**entry, "seconds": 0} for entry in log]}


def test_training_learns(tmp_path):
    state = run(tmp_path)
    losses = [entry["loss"] for entry in state.log]
    assert state.images_seen == IMAGES
    assert [entry["images"] for entry in state.log] == list(range(BATCH, IMAGES + 1, BATCH))
    assert losses[-1] < 0.8 * losses[0]
    assert not state.module.training


def test_two_runs_are_one_and_another_seed_is_another(tmp_path):
    run(tmp_path / "a", images=160)
    run(tmp_path / "b", images=160)
    run(tmp_path / "c", small_state(seed=4), images=160)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert fingerprint(tmp_path / "a")["log"] != fingerprint(tmp_path / "c")["log"]


# A process that is killed in earnest. It forks for every attempt, so that torch is imported once.
KILLED = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tests.training.test_loop import run

draw = random.Random(int(sys.argv[3]))
kills = 0
while True:
    steps, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(steps)
        run(sys.argv[2], checkpoint_seconds=0.0, on_step=lambda state, spent: os.write(told, b"."))
        os._exit(0)
    os.close(told)
    for _ in range(draw.randint(2, 12)):
        if not os.read(steps, 1):
            break
    time.sleep(draw.uniform(0, 0.03))  # about the length of a step and its checkpoint: the kill comes anywhere in it
    os.kill(child, signal.SIGKILL)
    os.close(steps)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    kills += 1
print(kills)
"""


def test_a_run_killed_at_any_moment_and_resumed_equals_an_uninterrupted_one_to_the_bit(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(KILLED)
    seed = int.from_bytes(os.urandom(4), "big")
    command = [sys.executable, str(worker), str(Path(__file__).parents[2]), str(tmp_path / "killed"), str(seed)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2, "the run was never killed"
    run(tmp_path / "whole")
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole"), f"seed {seed}"
    assert not list((tmp_path / "killed").glob(".writing-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_saves_the_state_and_the_same_call_goes_on(tmp_path, number):
    before = signal.getsignal(number)

    def stop_after_five(state, spent):
        if state.images_seen == 5 * BATCH:
            os.kill(os.getpid(), number)

    with polite_stop() as should_stop, pytest.raises(Interrupted, match="after 80 images; the same command goes on"):
        run(tmp_path / "stopped", on_step=stop_after_five, should_stop=should_stop)
    assert signal.getsignal(number) is before
    assert Interrupted.exit_code == 75
    assert [p.name for p in checkpoints(tmp_path / "stopped")] == ["checkpoint-0000000080"]

    went_on = run(tmp_path / "stopped")
    run(tmp_path / "whole")
    assert len(went_on.log) == IMAGES // BATCH
    assert fingerprint(tmp_path / "stopped") == fingerprint(tmp_path / "whole")


def test_nobody_who_does_not_ask_is_stopped():
    with polite_stop() as should_stop:
        assert not should_stop()


def test_a_finished_run_is_not_trained_further(tmp_path):
    run(tmp_path, images=160)
    before = fingerprint(tmp_path)
    steps = []
    run(tmp_path, images=160, on_step=lambda state, spent: steps.append(spent))
    assert steps == []
    assert fingerprint(tmp_path) == before


def test_wall_time_adds_up_over_runs(tmp_path):
    first = run(tmp_path, images=160).seconds
    second = run(tmp_path, images=320)
    assert second.seconds > first > 0
    assert [e["seconds"] for e in second.log] == sorted(e["seconds"] for e in second.log)


def test_a_budget_in_minutes_ends(tmp_path):
    state = small_state()
    train(state, size_alone, denoising(state), budget=Budget(minutes=0.2 / 60), folder=tmp_path, hyper=HYPER)
    assert 0.2 <= state.seconds < 5
    assert state.images_seen == len(state.log) * BATCH > 0


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_training_with_the_images_named(tmp_path, bad):
    state = small_state()
    fine = denoising(state)

    def loss_of(size, step):
        loss, parts = fine(size, step)
        if state.images_seen == 6 * BATCH:
            weight = state.module[0].weight.sum()
            loss = loss * math.nan if bad == "loss" else loss + (weight - weight.detach()).abs().sqrt()
        return loss, parts

    with pytest.raises(TrainingError, match=f"the {bad} became .* after 96 images.*is sound") as caught:
        train(
            state,
            size_alone,
            loss_of,
            budget=Budget(images=IMAGES),
            folder=tmp_path,
            hyper=HYPER,
            checkpoint_seconds=0.0,
        )
    assert caught.value.exit_code == 7
    other = small_state()
    assert load_checkpoint(other, tmp_path) == "resumed from checkpoint-0000000096"
    assert all(torch.isfinite(value).all() for value in other.module.state_dict().values())


@pytest.mark.parametrize("given", [{}, {"images": 5, "minutes": 1.0}])
def test_a_budget_is_in_images_or_in_minutes(given):
    with pytest.raises(ValueError, match="images or in minutes"):
        Budget(**given)


@pytest.mark.parametrize("given", [{"images": -1}, {"minutes": -0.1}, {"minutes": math.nan}])
def test_a_negative_budget_is_refused(given):
    with pytest.raises(ValueError, match="must not be negative, got Budget"):
        Budget(**given)


def test_the_share_of_a_budget_that_is_spent():
    state = small_state()
    state.images_seen, state.seconds = 30, 30.0
    assert Budget(images=120).spent(state) == 0.25
    assert Budget(minutes=2).spent(state) == 0.25
    assert Budget(images=120).share(0.5) == Budget(images=60)
    assert Budget(minutes=2).share(0.5) == Budget(minutes=1)


def rates_of(tmp_path, hyper, images=IMAGES):
    state, rates = small_state(), []
    train(
        state,
        size_alone,
        denoising(state),
        budget=Budget(images=images),
        folder=tmp_path,
        hyper=hyper,
        on_step=lambda state, spent: rates.append(state.optimizer.param_groups[0]["lr"]),
    )
    return rates


def test_the_learning_rate_warms_up_stays_and_decays_to_nothing(tmp_path):
    rates = rates_of(tmp_path, Hyperparameters(batch_size=BATCH, learning_rate=0.01, warm_up_images=64))
    assert rates[:5] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01])
    assert rates[5:9] == pytest.approx([0.01] * 4)  # up to a fifth of the budget
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[8:]))
    assert rates[-1] == pytest.approx(0.01 * 5 / 4 / 40)


def test_warming_up_can_be_left_out(tmp_path):
    rates = rates_of(tmp_path, Hyperparameters(batch_size=BATCH, learning_rate=0.01, warm_up_images=0), images=160)
    assert rates[1] == 0.01


def test_the_average_lies_among_the_weights_passed_and_can_be_used(tmp_path):
    state, passed = small_state(), []

    def remember(state, spent):
        passed.append(state.module[0].weight.detach().clone())

    run(tmp_path, state, on_step=remember)
    name, path = "0.weight", torch.stack(passed)
    assert (state.average[name] >= path.min(0).values - 1e-6).all()
    assert (state.average[name] <= path.max(0).values + 1e-6).all()
    assert not torch.equal(state.average[name], state.module[0].weight)
    assert (state.average[name] - path[-1]).norm() < (path[0] - path[-1]).norm()
    use_average(state)
    assert torch.equal(state.average[name], state.module[0].weight)


def test_clipped_gradients_are_no_longer_than_asked(tmp_path):
    state, norms = small_state(), []

    def steep(size, step):
        loss, parts = denoising(state)(size, step)
        return loss * 1e4, parts

    def measure(state, spent):
        norms.append(torch.stack([p.grad.norm() for p in state.module.parameters()]).norm().item())

    hyper = Hyperparameters(batch_size=BATCH, clip_norm=0.5)
    train(state, size_alone, steep, budget=Budget(images=80), folder=tmp_path, hyper=hyper, on_step=measure)
    assert norms == pytest.approx([0.5] * 5, rel=1e-3)
