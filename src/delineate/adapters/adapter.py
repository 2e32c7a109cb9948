"""A trained system with adapted layers in it. The base is shared and never changed: both can be used side by side."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from delineate.adapters import ADAPTERS, AdapterConfig
from delineate.adapters.salt import Salt
from delineate.errors import DelineateError, ModelError
from delineate.prompts.vocabulary import Vocabulary
from delineate.systems.system import Adaptable, Learner


class Widened(nn.Module):
    """A block that answers a channel a name, and another beside it for names that came later."""

    def __init__(self, base: nn.Module, more: nn.Module):
        super().__init__()
        self.base, self.more = base, more

    def forward(self, x: Tensor) -> Tensor:
        """The channels of both, those of `base` first."""
        return torch.cat([self.base(x), self.more(x)], dim=1)


@dataclass(frozen=True, eq=False)
class Adapted:
    """An adapted system and what is the adapter's own in it.

    Attributes:
        system: answers to all names of the base and to those that were added.
        config: of the adapter.
        vocabulary: of the base, with the new names at its end.
        own: the adapter's parameters by path, all that learns and all that is saved.
        layers: the paths of the adapted layers within `system.parts`.
        widened: the path of the block that was widened for new names; None where no new ones need weights.
    """

    system: Adaptable
    config: AdapterConfig
    vocabulary: Vocabulary
    own: dict[str, nn.Parameter]
    layers: tuple[str, ...]
    widened: str | None = None

    def weights(self) -> dict[str, Tensor]:
        """A copy of the adapter's parameters."""
        return {name: parameter.detach().clone().contiguous() for name, parameter in self.own.items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put in parameters that `weights` gave. Raises `ModelError` where they are others."""
        if weights.keys() != self.own.keys():
            odd = sorted(weights.keys() ^ self.own.keys())[0]
            raise ModelError(f"the weights are not those of this adapter ('{odd}'); copy the adapter again")
        for name, parameter in self.own.items():
            if weights[name].shape != parameter.shape:
                raise ModelError(f"'{name}' has the shape {tuple(weights[name].shape)}, not {tuple(parameter.shape)}")
            parameter.data.copy_(weights[name])

    @property
    def can_merge(self) -> bool:
        """Whether `merged` can do its work: only a widened block of several layers stands in its way."""
        root = nn.ModuleDict(self.system.parts)
        return self.widened is None or isinstance(root.get_submodule(self.widened).get_submodule("more"), nn.Conv2d)

    def merged(self, *, share: bool = False) -> Adaptable:
        """A system of plain layers that does the same (to float rounding), as fast as the base.

        Args:
            share: leave the weights that no adapter changed where they are, in the base; else nothing is shared.

        Raises:
            DelineateError: the block of a plain network was widened, which no single block can stand for.
        """
        parts = nn.ModuleDict(self.system.parts)
        memo = {id(t): t for t in (*parts.parameters(), *parts.buffers())}
        root = copy.deepcopy(parts, memo)
        for path in self.layers:
            root.set_submodule(path, ADAPTERS[self.config.kind].fold(root.get_submodule(path)))
        if self.widened:
            block = root.get_submodule(self.widened)
            assert isinstance(block, Widened)
            root.set_submodule(self.widened, _joined(block))
        return self.system.with_parts(dict((root if share else copy.deepcopy(root)).items()), self.vocabulary)


def is_adapted(system: Learner) -> bool:
    """Whether layers of an adapter are in it, which a model folder cannot hold: they would be lost without a word."""
    modules = (module for part in system.parts.values() for module in part.modules())
    return any(isinstance(module, (BaseTunerLayer, Salt, Widened)) for module in modules)


def attach(system: Adaptable, config: AdapterConfig, vocabulary: Vocabulary, *, seed: int = 0) -> Adapted:
    """`system` with untrained adapted layers, which change nothing yet; what names are added are answered by chance.

    In a system whose names share a softmax, those new names take their share of it from the first.

    Args:
        system: a trained one; its weights are shared, not copied, and are never changed.
        config: of the adapter.
        vocabulary: of the system, with new names, if any, at its end.
        seed: of the adapter's first weights.

    Raises:
        DelineateError: no layer is of the kind asked for, or the system cannot learn new names.
    """
    parts = nn.ModuleDict(system.parts)
    memo = {id(t): t for t in (*parts.parameters(), *parts.buffers())}
    root = copy.deepcopy(parts, memo)  # other modules, the same tensors
    root.requires_grad_(False).eval()
    row = ADAPTERS[config.kind]
    paths = [path for path, layer in root.named_modules() if row.fits(path, layer, config, system.decoder)]
    if not paths:
        layers = "on the way to its answers" if config.kind == "decoder" else f"one of --targets {config.targets}"
        raise DelineateError(f"no layer of this model is {layers}; take --kind full, or lora with --targets all")
    widened = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        row.wrap(root, paths, config)
        if new := tuple(name for name in vocabulary.names if name not in system.vocabulary.names):
            widened = _widen(system, root, new, seed)
    layers = tuple(_moved(path, widened) for path in paths)
    own = {}
    for path in layers:
        layer = root.get_submodule(path)
        named = {name: layer.get_parameter(name) for name in row.learnt(layer)}
        own |= {f"{path}.{name}": parameter for name, parameter in named.items() if parameter.numel()}
    if widened:
        more = root.get_submodule(widened).get_submodule("more")
        own |= {f"{widened}.more.{name}": parameter for name, parameter in more.named_parameters()}
    for parameter in root.parameters():
        parameter.requires_grad_(False)
    return Adapted(system.with_parts(dict(root.items()), vocabulary), config, vocabulary, own, layers, widened)


def _moved(path: str, widened: str | None) -> str:
    """Where a layer is after the block at `widened` became the `base` of a `Widened`."""
    if widened is None or not f"{path}.".startswith(f"{widened}."):
        return path
    return f"{widened}.base{path[len(widened) :]}"


def _joined(block: Widened) -> nn.Module:
    """One block with the channels of both."""
    base, more = block.base, block.more
    if not (isinstance(base, nn.Conv2d) and isinstance(more, nn.Conv2d)):
        raise DelineateError(
            "the new names of this adapter have a block of their own beside the model's, and cannot be merged into "
            "it; use the adapter as it is"
        )
    joined = copy.deepcopy(base)
    joined.out_channels = base.out_channels + more.out_channels
    for name in ("weight", "bias"):
        both = torch.cat([getattr(base, name).data, getattr(more, name).data])
        setattr(joined, name, nn.Parameter(both, requires_grad=False))
    return joined


def _widen(system: Adaptable, root: nn.Module, new: tuple[str, ...], seed: int) -> str | None:
    """Widen the block that answers a channel a name; None where names are read and need no channel."""
    wider = system.widen(new, seed=seed)
    if wider is None:
        return None
    path, more = wider
    device = next(root.parameters()).device
    root.set_submodule(path, Widened(root.get_submodule(path), more.to(device).eval()))
    return path
