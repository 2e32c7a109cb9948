"""The condition network: a segmenter of every target at once, whose features then tell the denoiser what it sees."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.networks.encoder import ImageEncoder


class ConditionNetwork(nn.Module):
    """CFENet (UniSegDiff, Sec. 2.1 and 2.3): a U-Net pre-trained for segmentation on all sets together, then frozen.

    Its decoder's features are the condition: trained to become masks, they look alike for every modality, which is
    what the paper asks of them. The head tells the targets apart; the paper's is binary.
    """

    def __init__(self, widths: tuple[int, ...], concepts: int, fold: int = 2, channels: int = 3):
        super().__init__()
        self.encoder = ImageEncoder(widths, fold, channels)
        self.head = nn.Conv2d(widths[0], fold**2 * (1 + concepts), 1)

    def forward(self, image: Float[Tensor, "batch channels size size"]) -> list[Tensor]:
        """Condition features, finest first, of slices (B, channels, S, S) in [-1, 1]."""
        return self.encoder.levels(image)

    def log_probability(
        self, finest: Float[Tensor, "batch width h w"], possible: Bool[Tensor, "batch concepts"] | None = None
    ) -> Float[Tensor, "batch channels size size"]:
        """Log-probabilities (B, 1 + concepts, S, S), background first, which exclude each other.

        `possible` leaves out concepts of whose presence nothing is known.
        """
        logit = F.pixel_shuffle(self.head(finest), self.encoder.fold)
        if possible is not None:
            known = torch.cat([torch.ones_like(possible[:, :1]), possible], dim=1)
            logit = logit.masked_fill(~known[:, :, None, None], -1e4)
        return logit.log_softmax(dim=1)
