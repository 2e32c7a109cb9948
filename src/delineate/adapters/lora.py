"""LoRA by peft: W' = W + (alpha / rank) B A, with B = 0 at first (Hu et al. 2022, Eq. 3)."""

import copy
import re
import warnings

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from delineate.adapters import AdapterConfig
from delineate.adapters.layers import is_target as fits

__all__ = ["fits", "fold", "learnt", "wrap"]

NAME = "default"  # peft's own name of a layer's one adapter


def wrap(root: nn.Module, paths: list[str], config: AdapterConfig) -> None:
    """Put peft's LoRA layers in the place of the linear layers and convolutions at `paths`."""
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        target_modules="|".join(map(re.escape, paths)),  # as a list, names would match the ends of longer ones too
        bias="none",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*model_type.*|.*peft_config.*")
        inject_adapter_in_model(lora, root)
    wrapped = {name for name, module in root.named_modules() if isinstance(module, LoraLayer)}
    if wrapped != set(paths):
        raise RuntimeError(f"peft adapted {len(wrapped)} layers, not the {len(paths)} asked for")


def learnt(layer: nn.Module) -> list[str]:
    """Its A and B."""
    return [name for name, _ in layer.named_parameters() if name.startswith("lora_")]


def fold(layer: nn.Module) -> nn.Module:
    """A plain layer with the weights W'; the base layer is left as it is."""
    assert isinstance(layer, LoraLayer)
    base = layer.get_base_layer()
    folded = copy.deepcopy(base)
    folded.weight.data = base.weight.data + layer.get_delta_weight(NAME).to(base.weight)  # type: ignore[operator]
    return folded
