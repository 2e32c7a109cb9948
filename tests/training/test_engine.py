import threading

import pytest
import torch
from tests.training.test_loop import BATCH, HYPER, denoising, fingerprint, size_alone, small_state

from delineate.training.checkpoint import checkpoints
from delineate.training.engine import Engine, drawn_ahead, generator_of
from delineate.training.loop import Budget, Hyperparameters, train


def test_what_is_drawn_ahead_is_what_is_drawn_when_asked():
    def draw(images):
        return images, torch.rand(3, generator=generator_of(1, images)).tolist()

    with drawn_ahead(draw, 8, 0) as now, drawn_ahead(draw, 8, 3) as ahead:
        assert [now(i) for i in range(0, 80, 8)] == [ahead(i) for i in range(0, 80, 8)]


def test_the_next_batches_are_drawn_while_nobody_asks():
    drawn, third = [], threading.Event()

    def draw(images):
        drawn.append(images)
        if images == 16:
            third.set()
        return images

    with drawn_ahead(draw, 8, 2) as take:
        take(0)
        assert third.wait(5)
        assert drawn == [0, 8, 16]


def test_an_error_in_drawing_reaches_who_asks():
    def draw(images):
        raise ValueError("no such slice")

    with drawn_ahead(draw, 8, 2) as take, pytest.raises(ValueError, match="no such slice"):
        take(0)


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_how_far_ahead_is_drawn_changes_nothing(tmp_path, ahead):
    def drawing(size, generator):
        clean = torch.rand(size, 1, 8, 8, generator=generator).round()
        return clean, clean + torch.randn(clean.shape, generator=generator)

    def run(folder, engine):
        state = small_state()

        def loss_of(batch, step):
            clean, noisy = batch
            more = torch.randn(clean.shape, generator=step.generator)  # goes on from where drawing left the generator
            return (state.module(noisy + 0.1 * more) - clean).square().mean(), {}

        train(state, drawing, loss_of, budget=Budget(images=160), folder=folder, hyper=HYPER, engine=engine)
        return fingerprint(folder)

    assert run(tmp_path / "a", Engine(ahead=ahead)) == run(tmp_path / "b", Engine(ahead=2))


def test_activations_in_bfloat16_and_weights_in_float32(tmp_path):
    state, seen = small_state(), []

    def loss_of(size, step):
        out = state.module(torch.rand(size, 1, 8, 8, generator=step.generator))
        seen.append(out.dtype)
        return out.float().square().mean(), {}

    for precision, expected in (("float32", torch.float32), ("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        budget, engine = Budget(images=state.images_seen + BATCH), Engine(precision)
        train(state, size_alone, loss_of, budget=budget, folder=tmp_path / precision, hyper=HYPER, engine=engine)
        assert seen[-1] == expected
    assert {p.dtype for p in state.module.parameters()} == {torch.float32}


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="a precision is one of auto, float32, bfloat16; got 'float8'"):
        Engine("float8")


def test_on_a_cpu_batches_are_as_large_as_usual():
    assert Engine().batch_size(8, torch.device("cpu")) == 8


def test_the_best_average_is_kept_and_taken_up(tmp_path):
    from delineate.training.checkpoint import load_best

    state, scores = small_state(), iter([0.2, 0.9, 0.5, 0.4] + [0.1] * 8)
    averages = []

    def judge(state):
        averages.append({k: v.clone() for k, v in state.average.items()})
        return {"liver": next(scores)}

    train(
        state, size_alone, denoising(state), budget=Budget(images=12 * BATCH), folder=tmp_path, hyper=HYPER, judge=judge
    )
    assert [e["val"] for e in state.log] == [0.2, 0.9, 0.5, 0.4] + [0.1] * 8
    assert load_best(state, tmp_path) == 0.9
    assert all(torch.equal(value, averages[1][name]) for name, value in state.average.items())
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert sum('"val liver"' in line for line in lines) == 12
    assert len([line for line in lines if '"loss"' in line]) == 12


def test_judging_takes_nothing_from_the_budget_and_leaves_the_training_as_it_was(tmp_path):
    import time

    def run(folder, judge):
        state = small_state()
        return train(
            state, size_alone, denoising(state), budget=Budget(images=160), folder=folder, hyper=HYPER, judge=judge
        )

    def slow(state):
        time.sleep(0.05)
        return {"liver": 0.5}

    judged, plain = run(tmp_path / "a", slow), run(tmp_path / "b", None)
    assert judged.seconds < plain.seconds + 0.3  # twelve judgements took 0.6 s
    weights = [checkpoints(tmp_path / folder)[-1] / "weights.safetensors" for folder in ("a", "b")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_hyperparameters_stay_small_on_a_cpu():
    assert Hyperparameters().batch_size == 8
