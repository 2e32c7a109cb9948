"""How a machine is used for training: what changes speed and rounding, not what is learnt."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, nn

from delineate.networks.precision import has_bfloat16

PRECISIONS = ("auto", "float32", "bfloat16")
GIB_FOR_MORE = 12  # of free GPU memory, from where batches are four times as large as on a CPU


@dataclass(frozen=True)
class Engine:
    """How a machine is used.

    Attributes:
        precision: of activations, "float32" or "bfloat16" (autocast; weights, averages and losses stay in float32);
            "auto" is bfloat16 on a GPU that has it, else float32.
        compiled: whether `torch.compile` makes kernels of the networks: the first steps then take minutes.
        ahead: batches that a thread of its own draws while the network learns; 0 draws them in between.
    """

    precision: str = "auto"
    compiled: bool = False
    ahead: int = 2

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"a precision is one of {', '.join(PRECISIONS)}; got '{self.precision}'")

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of a forward pass on `device`."""
        half = self.precision == "bfloat16"
        if self.precision == "auto":
            half = device.type == "cuda" and has_bfloat16(device.type)
        return torch.autocast(device.type, torch.bfloat16, enabled=half)

    def prepare(self, module: nn.Module, device: torch.device) -> None:
        """Compile what is to be compiled, in place; on a GPU allow TF32 and let cuDNN choose its algorithms."""
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        if self.compiled:
            for part in module.children() if isinstance(module, nn.ModuleDict) else (module,):
                part.compile()

    def batch_size(self, usual: int, device: torch.device) -> int:
        """`usual` on a CPU; four times as many on a GPU with memory for them."""
        if device.type != "cuda":
            return usual
        free, _ = torch.cuda.mem_get_info(device)
        return 4 * usual if free >= GIB_FOR_MORE * 2**30 else usual


@contextmanager
def drawn_ahead(draw: Callable[[int], Any], step: int, ahead: int) -> Iterator[Callable[[int], Any]]:
    """Within the block, `draw(images)` for images = the first asked, + `step`, ..., made ahead of being asked for.

    Args:
        draw: what is drawn after so many images; depends on nothing else.
        step: images between two calls.
        ahead: how many are made ahead, by one thread; 0 for none.
    """
    if ahead < 1:
        yield draw
        return
    waiting: dict[int, Any] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="draws ahead") as pool:

        def take(images: int) -> Any:
            for k in range(ahead + 1):
                at = images + k * step
                if at not in waiting:
                    waiting[at] = pool.submit(draw, at)
            return waiting.pop(images).result()

        try:
            yield take
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def generator_of(seed: int, images_seen: int, rank: int = 0) -> Generator:
    """The source of everything random in the step after so many images, of one of several processes."""
    return Generator().manual_seed((seed * 1_000_003 + images_seen * 7919 + 17 + rank * 104_729_003) % (2**63))
