"""The training loop: one function for every system and every phase."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from delineate.errors import DelineateError
from delineate.training.checkpoint import (
    TrainState,
    keep_if_best,
    load_best,
    load_checkpoint,
    new_state,
    save_checkpoint,
)
from delineate.training.engine import Engine, drawn_ahead, generator_of
from delineate.training.journal import Journal
from delineate.training.judging import Answer, HeldOut, mean_score
from delineate.training.ranks import here

JUDGED = 12  # times a budget, and every few minutes of a long one
JUDGED_MINUTES = 5.0
TOLD_EVERY = 20  # steps on a GPU between looks at the loss: each look waits for the GPU


class TrainingError(DelineateError):
    """Training cannot go on."""

    exit_code = 7


class Interrupted(DelineateError):
    """Training was asked to stop, saved its state and can be resumed."""

    exit_code = 75  # EX_TEMPFAIL: the same command again goes on


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of images, or wall time of training (that of judging and saving does not count).

    Only a budget in images makes a resumed run equal an uninterrupted one, or another of the same seed, to the bit: the
    learning rate follows the share of the budget that is spent, and seconds differ from run to run. That holds on one
    machine with as many threads; another rounds otherwise, and the difference grows as training goes on.
    """

    images: int | None = None
    minutes: float | None = None

    def __post_init__(self):
        if (self.images is None) == (self.minutes is None):
            raise ValueError("give a budget in images or in minutes, not both and not neither")
        if not (self.minutes if self.images is None else self.images) >= 0:  # type: ignore[operator]
            raise ValueError(f"a budget must not be negative, got {self}")

    def spent(self, state: TrainState) -> float:
        """The share of the budget that is used up."""
        return self.share_of(state.images_seen, state.seconds)

    def share_of(self, images: float, seconds: float) -> float:
        """What share of the budget so many images, or seconds, are."""
        if self.images is not None:
            return images / max(self.images, 1)
        return seconds / max(self.minutes * 60, 1e-9)  # type: ignore[operator]

    @property
    def judgements(self) -> int:
        """How often a training of so much is judged on held-out slices."""
        return JUDGED if self.minutes is None else max(JUDGED, round(self.minutes / JUDGED_MINUTES))

    def share(self, fraction: float) -> "Budget":
        """The budget of a phase that takes `fraction` of the whole."""
        if self.images is not None:
            return Budget(images=round(self.images * fraction))
        return Budget(minutes=self.minutes * fraction)  # type: ignore[operator]


@dataclass(frozen=True)
class Hyperparameters:
    """What every phase chooses for itself."""

    batch_size: int = 8  # small: on a CPU more steps teach more than larger ones
    learning_rate: float = 1e-3
    warm_up_images: int = 400
    clip_norm: float = 1.0
    average_halflife_images: int = 2000


Loss = tuple[Tensor, Mapping[str, float | Tensor]]  # its value, and the parts that the log shows


@dataclass(frozen=True, eq=False)
class Step:
    """What a loss may know of the step it is asked in.

    Attributes:
        generator: the source of everything random in it, made anew for each step from (seed, images seen).
        images_seen: before it.
        share: of the budget that is spent, in [0, 1).
        teacher: the averaged weights (an exponential moving average) of what learns, by their names in its state; not
            to be changed. `torch.func.functional_call` looks with them.
    """

    generator: Generator
    images_seen: int = 0
    share: float = 0.0
    teacher: Mapping[str, Tensor] = field(default_factory=dict)


def train(
    state: TrainState,
    draw: Callable[[int, Generator], Any],
    loss_of: Callable[[Any, Step], Loss],
    *,
    budget: Budget,
    folder: Path,
    hyper: Hyperparameters = Hyperparameters(),
    engine: Engine = Engine(),
    judge: Callable[[TrainState], Mapping[str, float]] | None = None,
    checkpoint_seconds: float = 120.0,
    on_step: Callable[[TrainState, float], None] = lambda state, spent: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Train until the budget is spent; resume from `folder` where there is something to resume.

    Args:
        state: as `new_state` makes it.
        draw: (batch size, generator) to a batch. It draws everything random from the generator, depends on nothing that
            learns, and may be called ahead, by another thread.
        loss_of: (batch, step) to the loss and its parts. What is random in it comes from the step's generator, which
            goes on from where drawing left it.
        budget: when to stop.
        folder: for checkpoints: every `checkpoint_seconds`, at the end, and when stopped; and for `log.jsonl`.
        hyper: batch size, learning rate and the like.
        engine: how the machine is used.
        judge: of the state's average, held-out scores by name; asked `budget.judgements` times. Their mean goes to the
            log as "val", and the average of the highest is kept (`load_best`).
        checkpoint_seconds: wall time between checkpoints.
        on_step: told of every step; for progress bars.
        should_stop: asked before every step.

    Raises:
        Interrupted: `should_stop` said so; the state is saved.
        TrainingError: the loss or its gradient is not finite; the last checkpoint is kept.
    """
    load_checkpoint(state, folder)
    ranks, parameters = here(), [p for group in state.optimizer.param_groups for p in group["params"]]
    ranks.same_start([*state.module.state_dict().values(), *state.average.values()])
    device = parameters[0].device
    engine.prepare(state.module, device)
    batch_size = engine.batch_size(hyper.batch_size, device)
    stride, told_every = batch_size * ranks.count, TOLD_EVERY if device.type == "cuda" else 1
    untold: list[tuple[int, float, Tensor, Tensor, Mapping[str, float | Tensor]]] = []
    state.module.train()
    started, before, saved, paused = time.monotonic(), state.seconds, time.monotonic(), 0.0

    def drawn(images: int) -> tuple[Any, Generator]:
        generator = generator_of(state.seed, images, ranks.rank)
        return draw(batch_size, generator), generator

    def tell(journal: Journal) -> None:
        """Look at the losses that nobody looked at yet."""
        for images, seconds, loss, norm, parts in untold:
            for what, value in (("loss", loss.item()), ("gradient", norm.item())):
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the {what} became {value} after {images} images (parts: {_numbers(parts)}); lower the "
                        f"learning rate or check the data; the last checkpoint in {folder} is sound"
                    )
            entry = {"images": images + stride, "seconds": round(seconds, 1), "loss": round(loss.item(), 5)}
            state.log.append({**entry, **_numbers(parts)})
            journal.add(state.log[-1:])
        untold.clear()

    def save() -> None:
        if ranks.first:
            save_checkpoint(state, folder)

    with (
        drawn_ahead(drawn, stride, engine.ahead) as take,
        Journal(folder if ranks.first else None, state.log) as journal,
    ):
        while True:
            spent, stop = ranks.agreed(budget.spent(state), should_stop())
            if judge is not None and int(min(spent, 1) * budget.judgements) > sum("val" in e for e in state.log):
                tell(journal)
                pause = time.monotonic()
                if ranks.first and state.log:
                    scores = judge(state)
                    state.log[-1] |= {"val": round(mean_score(scores), 4)}
                    journal.add([{"images": state.images_seen, **{f"val {k}": round(v, 4) for k, v in scores.items()}}])
                    keep_if_best(state, folder, mean_score(scores))
                ranks.wait()
                paused += time.monotonic() - pause
            if spent >= 1:
                break
            if stop:
                tell(journal)
                save()
                raise Interrupted(f"stopped after {state.images_seen} images; the same command goes on from there")
            decay = 5 * (1 - spent) / 4  # level first, then down to 0 over the last four fifths of the budget
            rate = hyper.learning_rate * min(1.0, state.images_seen / max(hyper.warm_up_images, 1), decay)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            batch, generator = take(state.images_seen)
            with engine.autocast(device):
                loss, parts = loss_of(batch, Step(generator, state.images_seen, spent, state.average))
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            ranks.average_gradients(parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, hyper.clip_norm)
            # A step of numbers that are not finite would make every weight NaN, and a checkpoint could keep them; the
            # fused optimiser leaves it out by itself, so that nobody needs to wait for the GPU to tell.
            state.optimizer.found_inf = (~(torch.isfinite(norm) & torch.isfinite(loss.detach()))).float()  # type: ignore[attr-defined]
            state.optimizer.step()
            untold.append((state.images_seen, state.seconds, loss.detach(), norm, parts))
            state.images_seen += stride
            _update_average(state, hyper, stride)
            state.seconds = before + time.monotonic() - started - paused
            if len(untold) >= told_every:
                tell(journal)
            on_step(state, spent)
            if time.monotonic() - saved > checkpoint_seconds:
                pause = time.monotonic()
                tell(journal)
                save()
                saved = time.monotonic()
                paused += saved - pause
        tell(journal)
    save()
    ranks.wait()
    state.module.eval()
    return state


def _numbers(parts: Mapping[str, float | Tensor]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in parts.items()}


@dataclass(frozen=True, eq=False)
class Phase:
    """One part of a training (a stage, in the words of many papers): what learns, from what, by which loss.

    Attributes:
        name: of its checkpoints and its curve.
        module: what learns.
        draw: (batch size, generator) to a batch.
        loss: (system, batch, step) to the loss and its parts.
        system: what the loss is of.
        share: of the whole budget.
        hyper: batch size, learning rate and the like.
        answer: slices to labels by what the module has learnt, so that it can be judged on held-out ones; None where
            the phase has no answer of its own.
    """

    name: str
    module: nn.Module
    draw: Callable[[int, Generator], Any]
    loss: Callable[[Any, Any, Step], Loss]
    system: Any
    share: float = 1.0
    hyper: Hyperparameters = Hyperparameters()
    answer: Answer | None = None

    def loss_of(self, size: int, step: Step) -> Loss:
        """The loss of a batch of `size`, drawn for this step."""
        return self.loss(self.system, self.draw(size, step.generator), step)


OnStep = Callable[[str, TrainState, float], None]  # told the phase's name, its state, and the share of its budget spent


@dataclass(frozen=True, eq=False)
class Run:
    """How a training is to go, whatever is trained.

    Attributes:
        budget: when to stop.
        folder: for checkpoints; the same run goes on from there.
        seed: of all that is random.
        on_step: told of every step.
        should_stop: asked before every step.
        engine: how the machine is used.
        held_out: what phases that answer are judged by; each ends with the average that did best on it.
    """

    budget: Budget
    folder: Path
    seed: int = 0
    on_step: OnStep = lambda phase, state, spent: None
    should_stop: Callable[[], bool] = lambda: False
    engine: Engine = field(default_factory=Engine)
    held_out: HeldOut | None = None

    def part(self, share: float, name: str = "") -> "Run":
        """A run of a share of the budget, with a folder of its own where it has a name."""
        return replace(self, budget=self.budget.share(share), folder=self.folder / name)


def train_phase(phase: Phase, run: Run) -> TrainState:
    """Train one phase in `run.folder/<name>` by the whole budget.

    Its module ends with its average: the one that did best on held-out slices where it was judged, else the last.

    Raises:
        DelineateError: as `train`.
    """
    folder, answer, held_out = run.folder / phase.name, phase.answer, run.held_out

    def judge(state: TrainState) -> Mapping[str, float]:
        assert answer is not None
        assert held_out is not None
        with averaged(state):
            state.module.eval()
            scores = held_out.dice(answer, next(phase.module.parameters()).device)
            state.module.train()
        return scores

    judged = answer is not None and held_out is not None
    state = train(
        new_state(phase.module.requires_grad_(True), seed=run.seed),
        phase.draw,
        partial(phase.loss, phase.system),
        budget=run.budget,
        folder=folder,
        hyper=phase.hyper,
        engine=run.engine,
        judge=judge if judged else None,
        on_step=lambda state, spent: run.on_step(phase.name, state, spent),
        should_stop=run.should_stop,
    )
    if judged:
        load_best(state, folder)
    use_average(state)
    return state


def train_phases(phases: Sequence[Phase], run: Run) -> None:
    """Train one phase after another, all others frozen.

    Afterwards all are frozen and in evaluation mode. Errors are those of `train`.
    """
    for number, phase in enumerate(phases):
        for other in phases:
            other.module.requires_grad_(False).eval()
        train_phase(phase, replace(run.part(phase.share), seed=run.seed + number))
    for phase in phases:
        phase.module.requires_grad_(False).eval()


def use_average(state: TrainState) -> None:
    """Put the averaged weights into the module."""
    state.module.load_state_dict(state.average)


@contextmanager
def averaged(state: TrainState) -> Iterator[None]:
    """Within the block the module has its averaged weights."""
    now = {name: value.clone() for name, value in state.module.state_dict().items()}
    use_average(state)
    try:
        yield
    finally:
        state.module.load_state_dict(now)


@contextmanager
def polite_stop() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and SIGINT only raise a flag, which the yielded function reads."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@torch.no_grad()
def _update_average(state: TrainState, hyper: Hyperparameters, images: int) -> None:
    # Early on the half-life is a quarter of what was seen, or the start would linger in a short run.
    halflife = max(1.0, min(hyper.average_halflife_images, state.images_seen / 4))
    keep, now = 0.5 ** (images / halflife), state.module.state_dict()
    real = [name for name, value in now.items() if value.is_floating_point()]
    torch._foreach_lerp_([state.average[name] for name in real], [now[name] for name in real], 1 - keep)
    for name in now.keys() - set(real):
        state.average[name].copy_(now[name])
