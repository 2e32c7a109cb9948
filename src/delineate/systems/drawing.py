"""The loop that draws proposals: (proposal, slice) pairs through a network, some at once."""

from collections.abc import Callable

from torch import Tensor

from delineate.systems.system import OnShare


def draw_pairs(
    pairs: Tensor,
    draw: Callable[[Tensor, Tensor], Tensor],
    out: Tensor,
    at_once: int,
    on_step: OnShare = lambda share: None,
    done: int = 0,
) -> int:
    """Put what `draw` makes of every pair into `out`, and return how many pairs are done.

    Args:
        pairs: (P, 2) int64 on the CPU, which proposal of which slice.
        draw: proposals (B,) and slices (B,) to probabilities (B, size, size).
        out: (N, S, size, size), filled at [proposal, slice].
        at_once: pairs in one go: bounds memory, and changes nothing but rounding.
        on_step: told the share of all N·S pairs that is done.
        done: pairs that were drawn before.
    """
    for chunk in pairs.split(at_once):
        proposals, slices = chunk.unbind(1)
        out[proposals, slices] = draw(proposals, slices).clamp(0, 1).to(out.device)
        done += len(chunk)
        on_step(done / (out.shape[0] * out.shape[1]))
    return done
