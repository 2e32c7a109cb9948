"""SALT: singular value adaptation with a low-rank transformation (Elsayed et al. 2025, arXiv 2503.16055)."""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from delineate.adapters import AdapterConfig
from delineate.adapters.layers import is_target as fits

__all__ = ["Salt", "fits", "fold", "learnt", "wrap"]


class Salt(nn.Module):
    """A linear layer or convolution whose singular values are adapted.

    With W = U S Vᵀ, frozen, of a weight seen as a matrix of outputs by inputs:

        W' = U S' Vᵀ,   S' = diag(a ⊙ s₁…sᵣ + b)  for the r largest singular values,
                        S' = diag(sᵣ₊₁…) + X Y     for the rest, X Y of rank d,

    and a = 1, b = 0, Y = 0 at first, so that W' = W exactly. (The authors' code starts near 0.)

    The sign of each pair of singular vectors is fixed by making the largest component of u positive; without that a
    reloaded adapter could meet other signs than it learnt with.
    """

    def __init__(self, base: nn.Module, singular: int, rank: int):
        """An adapted layer that still does what `base` does.

        Args:
            base: nn.Linear, or nn.Conv2d without groups; it is kept and frozen.
            singular: r, how many singular values are scaled and shifted; at most all of them.
            rank: d, of the change of the rest; at most the number of the rest.
        """
        super().__init__()
        self.base = base.requires_grad_(False)
        weight: Tensor = base.weight  # type: ignore[assignment]
        u, s, vt = torch.linalg.svd(weight.detach().cpu().double().flatten(1), full_matrices=False)
        sign = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
        u, vt = u * sign, vt * sign.T
        r = min(singular, len(s))
        d = min(rank, len(s) - r)
        parts = {"u": u, "s": s, "vt": vt}
        for name, value in parts.items():
            self.register_buffer(name, value.to(weight), persistent=False)
        self.scale = nn.Parameter(torch.ones(r, device=weight.device))
        self.shift = nn.Parameter(torch.zeros(r, device=weight.device))
        self.left = nn.Parameter(torch.empty(len(s) - r, d, device=weight.device))
        self.right = nn.Parameter(torch.zeros(d, len(s) - r, device=weight.device))
        nn.init.kaiming_uniform_(self.left, a=5**0.5) if d else None

    def change(self) -> Tensor:
        """W' - W, in the shape of the weight."""
        r = len(self.scale)
        u, s, vt = self.u, self.s, self.vt
        assert isinstance(u, Tensor)
        assert isinstance(s, Tensor)
        assert isinstance(vt, Tensor)
        top = (u[:, :r] * ((self.scale - 1) * s[:r] + self.shift)) @ vt[:r]
        rest = (u[:, r:] @ self.left) @ (self.right @ vt[r:])
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return (top + rest).view_as(weight)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of `x` with W'."""
        return functional_call(self.base, {"weight": self.changed()}, (x,))

    def changed(self) -> Tensor:
        """W', in W's own layout in memory: in another, which 1×1 kernels easily get, sums are rounded otherwise."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return torch.empty_like(weight, requires_grad=False).copy_(weight + self.change())

    def folded(self) -> nn.Module:
        """A plain layer with the weights W'; the base layer is left as it is."""
        layer = copy.deepcopy(self.base)
        layer.weight.data = self.changed().detach()  # type: ignore[union-attr]
        return layer


def wrap(root: nn.Module, paths: list[str], config: AdapterConfig) -> None:
    """Put `Salt` layers in the place of the linear layers and convolutions at `paths`."""
    for path in paths:
        root.set_submodule(path, Salt(root.get_submodule(path), config.singular, config.rank))


def learnt(layer: nn.Module) -> list[str]:
    """Scale, shift and the low-rank change."""
    return [name for name, _ in layer.named_parameters() if not name.startswith("base.")]


def fold(layer: nn.Module) -> nn.Module:
    """As `Salt.folded`."""
    assert isinstance(layer, Salt)
    return layer.folded()
