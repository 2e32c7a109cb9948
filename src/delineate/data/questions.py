"""What is asked of drawn slices: prompts for what they show and for what they do not."""

import torch
from torch import Generator, Tensor


def draw_prompts(labels: Tensor, annotated: Tensor, foreign: Tensor, count: int, generator: Generator) -> Tensor:
    """Concepts (B, count) int64 to ask of slices: those they show, and a third (rounded down) absent ones if there are.

    Of the absent, those that are annotated come before foreign ones, but for a quarter of the slices where a foreign
    one comes first. Where a slice has fewer that can be asked, they are asked again.

    Args:
        labels: (B, S, S) int64, 0 background, 1 + i concept i; what is below 0 is not labelled.
        annotated: (B, C) bool, as in `Batch`.
        foreign: (B, C) bool.
        count: prompts a slice; may be 0.
        generator: of the labels' device.
    """
    batch, concepts, device = len(labels), annotated.shape[1], labels.device
    if count == 0:
        return torch.zeros(batch, 0, dtype=torch.long, device=device)
    shown = torch.zeros(batch, 1 + concepts, dtype=torch.bool, device=device)
    shown = shown.scatter_(1, labels.flatten(1).clamp(min=0), True)[:, 1:]
    absent = (annotated | foreign) & ~shown
    order = torch.rand(batch, concepts, generator=generator, device=device)
    odd = torch.rand(batch, 1, generator=generator, device=device) < 0.25
    strange = torch.where(absent & ~annotated, order, 2).argmin(1, keepdim=True)
    first = odd & torch.zeros_like(shown).scatter_(1, strange, True) & absent & ~annotated
    rank = torch.where(shown, order, 2).argsort(1).argsort(1)
    keep = (count - absent.sum(1, keepdim=True)).clamp(min=count - count // 3)
    later = torch.where(shown, 4 + order, torch.where(annotated, 2 + order, 3 + order))
    key = torch.where(shown & (rank < keep), order, torch.where(first, 1, later))
    can = shown | absent
    chosen = torch.where(can, key, 9).argsort(1)
    turn = torch.arange(count, device=device) % can.sum(1, keepdim=True).clamp(min=1)
    return chosen.gather(1, turn)


def generator_on(device: torch.device, generator: Generator) -> Generator:
    """A generator on `device`: this one, or one that it seeds."""
    if device.type == "cpu":
        return generator
    return Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
