"""Several processes that train one model, as `torchrun` starts them: each draws its own batches.

`torchrun --nproc-per-node 2 -m delineate train ...` (NCCL on GPUs, gloo on CPUs). All begin with the weights of rank 0,
which alone judges, writes checkpoints and says when to stop; at every step they average their gradients.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes files."""
        return self.rank == 0

    def same_start(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the numbers of rank 0."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its mean over processes: one message for all of them."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat)
        flat /= self.count
        for parameter, gradient, mean in zip(
            parameters, gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            parameter.grad = gradient.copy_(mean.view_as(gradient))  # which lies in memory as its weight does

    def agreed(self, *numbers: float) -> tuple[float, ...]:
        """What rank 0 says: whether to stop, how much is spent."""
        if self.count == 1:
            return numbers
        told = torch.tensor(numbers, dtype=torch.float64)
        distributed.broadcast(told, 0, group=_control_group())
        return tuple(told.tolist())

    def wait(self) -> None:
        """For the others."""
        if self.count > 1:
            distributed.barrier()


_control: dict[str, Any] = {}


def _control_group() -> Any:
    """A group that speaks through the CPU, so that agreeing does not wait for a GPU."""
    if "gloo" not in _control:
        _control["gloo"] = distributed.new_group(backend="gloo")
    return _control["gloo"]


def is_first_process() -> bool:
    """Whether this process speaks for all that `torchrun` started, before they joined and after they parted too."""
    return os.environ.get("RANK", "0") == "0"


def here() -> Ranks:
    """This process among its like; alone where nobody started several."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    return Ranks()


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, str]]:
    """Within the block the processes that `torchrun` started are one training; yields which this is, and its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield here(), device
        return
    own = f"cuda:{os.environ['LOCAL_RANK']}" if torch.device(device).type == "cuda" else device
    distributed.init_process_group("nccl" if own.startswith("cuda") else "gloo")
    try:
        yield here(), own
    finally:
        _control.clear()
        distributed.destroy_process_group()
