"""Half precision where the machine is made for it: what changes speed and rounding, not what is answered."""

import os
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch

PRECISION = "DELINEATE_PRECISION"
"""An environment variable; "float32" keeps answers the same on machines of every kind, up to the order of sums."""


@cache
def has_bfloat16(kind: str) -> bool:
    """Whether a device of a kind ("cpu", "cuda") reckons in bfloat16 itself; elsewhere it is emulated, and slower."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    told = getattr(torch.cpu, "get_capabilities", dict)()
    return kind == "cpu" and bool(told.get("avx512_bf16") or told.get("amx_bf16"))


def halves(device: torch.device) -> AbstractContextManager[Any]:
    """Within it convolutions and products on `device` are bfloat16 where that is quick, and nobody objects."""
    wanted = os.environ.get(PRECISION) != "float32" and has_bfloat16(device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
