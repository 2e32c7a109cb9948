"""The training loop: one function for every system and every phase."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from delineate.errors import DelineateError
from delineate.training.checkpoint import TrainState, load_checkpoint, new_state, save_checkpoint


class TrainingError(DelineateError):
    """Training cannot go on."""

    exit_code = 7


class Interrupted(DelineateError):
    """Training was asked to stop, saved its state and can be resumed."""

    exit_code = 75  # EX_TEMPFAIL: the same command again goes on


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of images, or wall time.

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
        if self.images is not None:
            return state.images_seen / max(self.images, 1)
        return state.seconds / max(self.minutes * 60, 1e-9)  # type: ignore[operator]

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


Loss = tuple[Tensor, dict[str, float]]  # its value, and the parts that the log shows


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


LossOf = Callable[[int, Step], Loss]


def train(
    state: TrainState,
    loss_of: LossOf,
    *,
    budget: Budget,
    folder: Path,
    hyper: Hyperparameters = Hyperparameters(),
    checkpoint_seconds: float = 120.0,
    on_step: Callable[[TrainState, float], None] = lambda state, spent: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Train until the budget is spent; resume from `folder` where there is something to resume.

    Args:
        state: as `new_state` makes it.
        loss_of: (batch size, step) to the loss and its parts. It draws everything random from the step's generator.
        budget: when to stop.
        folder: for checkpoints: every `checkpoint_seconds`, at the end, and when stopped.
        hyper: batch size, learning rate and the like.
        checkpoint_seconds: wall time between checkpoints.
        on_step: told of every step; for progress bars.
        should_stop: asked before every step.

    Raises:
        Interrupted: `should_stop` said so; the state is saved.
        TrainingError: the loss or its gradient is not finite; the last checkpoint is kept.
    """
    load_checkpoint(state, folder)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    state.module.train()
    started, before, saved = time.monotonic(), state.seconds, time.monotonic()
    while (spent := budget.spent(state)) < 1:
        if should_stop():
            save_checkpoint(state, folder)
            raise Interrupted(f"stopped after {state.images_seen} images; the same command goes on from there")
        generator = Generator().manual_seed(_step_seed(state.seed, state.images_seen))
        decay = 5 * (1 - spent) / 4  # level first, then down to 0 over the last four fifths of the budget
        rate = hyper.learning_rate * min(1.0, state.images_seen / max(hyper.warm_up_images, 1), decay)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        loss, parts = loss_of(hyper.batch_size, Step(generator, state.images_seen, spent, state.average))
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"the loss became {loss.item()} after {state.images_seen} images (parts: {parts}); "
                f"lower the learning rate or check the data; the last checkpoint in {folder} is sound"
            )
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, hyper.clip_norm)
        if not math.isfinite(norm.item()):  # the step would make every weight NaN, and a checkpoint could keep them
            raise TrainingError(
                f"the gradient became {norm.item()} after {state.images_seen} images (loss {loss.item():.4g}); "
                f"lower the learning rate or check the data; the last checkpoint in {folder} is sound"
            )
        state.optimizer.step()
        state.images_seen += hyper.batch_size
        _update_average(state, hyper)
        state.seconds = before + time.monotonic() - started
        entry = {"images": state.images_seen, "seconds": round(state.seconds, 1), "loss": round(loss.item(), 5)}
        state.log.append({**entry, **{k: round(v, 5) for k, v in parts.items()}})
        on_step(state, spent)
        if time.monotonic() - saved > checkpoint_seconds:
            save_checkpoint(state, folder)
            saved = time.monotonic()
    save_checkpoint(state, folder)
    state.module.eval()
    return state


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
    """

    name: str
    module: nn.Module
    draw: Callable[[int, Generator], Any]
    loss: Callable[[Any, Any, Step], Loss]
    system: Any
    share: float = 1.0
    hyper: Hyperparameters = Hyperparameters()

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
    """

    budget: Budget
    folder: Path
    seed: int = 0
    on_step: OnStep = lambda phase, state, spent: None
    should_stop: Callable[[], bool] = lambda: False

    def part(self, share: float, name: str = "") -> "Run":
        """A run of a share of the budget, with a folder of its own where it has a name."""
        return replace(self, budget=self.budget.share(share), folder=self.folder / name)


def train_phase(phase: Phase, run: Run) -> TrainState:
    """Train one phase in `run.folder/<name>` by the whole budget; its module ends with its average.

    Raises:
        DelineateError: as `train`.
    """
    state = train(
        new_state(phase.module.requires_grad_(True), seed=run.seed),
        phase.loss_of,
        budget=run.budget,
        folder=run.folder / phase.name,
        hyper=phase.hyper,
        on_step=lambda state, spent: run.on_step(phase.name, state, spent),
        should_stop=run.should_stop,
    )
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


def _step_seed(seed: int, images_seen: int) -> int:
    return (seed * 1_000_003 + images_seen * 7919 + 17) % (2**63)


@torch.no_grad()
def _update_average(state: TrainState, hyper: Hyperparameters) -> None:
    # Early on the half-life is a quarter of what was seen, or the start would linger in a short run.
    halflife = max(1.0, min(hyper.average_halflife_images, state.images_seen / 4))
    keep = 0.5 ** (hyper.batch_size / halflife)
    for name, value in state.module.state_dict().items():
        if value.is_floating_point():
            state.average[name].lerp_(value, 1 - keep)
        else:
            state.average[name].copy_(value)
