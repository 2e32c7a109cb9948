"""Half precision, and its switch."""

import torch
from torch import nn

from delineate.networks.precision import PRECISION, halves, has_bfloat16


def test_halves_where_the_machine_is_made_for_it(monkeypatch):
    layer, image = nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)
    for told, wanted in (({}, "float32"), ({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told, raising=False)
        monkeypatch.delenv(PRECISION)
        has_bfloat16.cache_clear()
        with halves(image.device):
            assert layer(image).dtype == getattr(torch, wanted)
        monkeypatch.setenv(PRECISION, "float32")
        with halves(image.device):
            assert layer(image).dtype == torch.float32
    has_bfloat16.cache_clear()
