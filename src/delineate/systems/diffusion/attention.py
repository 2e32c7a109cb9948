"""Dual cross-attention: two feature maps of one grid that ask each other."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

MOST_TOKENS = 64 * 64  # attention is quadratic: at 128² a single block costs more than the whole denoiser


class CrossAttention(nn.Module):
    """What queries find in another map, to be added to them; zero until trained."""

    def __init__(self, width: int, other: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm_query, self.norm_other = nn.LayerNorm(width), nn.LayerNorm(other)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(other, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, query: Float[Tensor, "batch tokens width"], other: Float[Tensor, "batch tokens other"], place: Tensor
    ) -> Float[Tensor, "batch tokens width"]:
        """(B, T, width), for queries (B, T, width) and others (B, T, other); `place` (T, width) says where both are."""
        q = self.query(self.norm_query(query)) + place
        k, v = self.key_value(self.norm_other(other)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k + place, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DualCrossAttention(nn.Module):
    """Two cascaded cross-attentions in which condition and denoising features alternate as queries.

    UniSegDiff, Sec. 2.3 (which gives no formula):

        CF' = CF + A(Q = CF, K = V = DF),    DF' = DF + A(Q = DF, K = V = CF')

    and DF' goes on. The last projection of each starts at zero: an untrained block changes nothing.
    """

    def __init__(self, width: int, condition: int, heads: int = 4):
        super().__init__()
        self.asks_back = CrossAttention(condition, width, heads)
        self.asks = CrossAttention(width, condition, heads)

    def forward(
        self, denoising: Float[Tensor, "batch width h w"], condition: Float[Tensor, "batch condition h w"]
    ) -> Float[Tensor, "batch width h w"]:
        """DF' for denoising features DF (B, width, h, w) and condition features CF (B, condition, h, w).

        Raises:
            ValueError: h × w is more than 64².
        """
        rows, columns = denoising.shape[-2:]
        if rows * columns > MOST_TOKENS:
            raise ValueError(f"cross-attention serves grids up to 64×64, not {rows}×{columns}; fuse by convolution")
        df, cf = (x.flatten(2).transpose(1, 2) for x in (denoising, condition))
        cf = cf + self.asks_back(cf, df, _places(rows, columns, cf))
        df = df + self.asks(df, cf, _places(rows, columns, df))
        return df.transpose(1, 2).unflatten(2, (rows, columns)).contiguous(memory_format=torch.channels_last)


def _places(rows: int, columns: int, like: Tensor) -> Tensor:
    """Sines and cosines of row and column, (rows × columns, width): a quarter of the width each."""
    quarter = like.shape[-1] // 4
    rates = torch.exp(-math.log(1000.0) * torch.arange(quarter, device=like.device) / max(1, quarter))
    row = torch.arange(rows, device=like.device)[:, None] * rates
    column = torch.arange(columns, device=like.device)[:, None] * rates
    waves = [
        torch.cat([row.sin(), row.cos()], dim=1)[:, None].expand(-1, columns, -1),
        torch.cat([column.sin(), column.cos()], dim=1)[None].expand(rows, -1, -1),
    ]
    places = torch.cat(waves, dim=2).flatten(0, 1).to(like.dtype)
    return F.pad(places, (0, like.shape[-1] - places.shape[-1]))
