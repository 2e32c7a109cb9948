"""The Probabilistic U-Net: a U-Net whose last layers also read a small latent, and two networks that propose it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn import functional as F

FURTHEST = 4.0  # log σ lies between ± this: from the start on, and for ever, the divergence of two Gaussians is finite

Gaussian = tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]  # mean and log σ


class GaussianEncoder(nn.Module):
    """What a latent could be: a Gaussian with a diagonal covariance, read off pictures (Kohl et al. 2018, Eq. 1 and 3).

    Kept cheap: it begins at half the resolution, where shares of labels are exact still, and its widths are half
    the trunk's. Its last mean over all pixels sees what is there and how much of it, and nothing of where.
    """

    def __init__(self, inputs: int, widths: Sequence[int], latent: int):
        super().__init__()
        self.shrink, self.refine = nn.ModuleList(), nn.ModuleList()
        for before, after in zip((inputs, *widths), widths, strict=False):
            self.shrink.append(
                nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU())
            )
            self.refine.append(nn.Sequential(nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after)))
        self.out = nn.Linear(widths[-1], 2 * latent)

    def forward(self, picture: Float[Tensor, "batch inputs size size"]) -> Gaussian:
        """Mean and log σ, (B, latent) each, of pictures (B, inputs, S, S)."""
        x = F.avg_pool2d(picture, 2).contiguous(memory_format=torch.channels_last)
        for shrink, refine in zip(self.shrink, self.refine, strict=True):
            x = shrink(x)
            x = F.silu(x + refine(x))
        mean, log_sigma = self.out(x.mean((2, 3))).chunk(2, dim=1)
        return mean, FURTHEST * torch.tanh(log_sigma / FURTHEST)


class LatentHead(nn.Module):
    """Logits of a slice's features and a latent: three 1×1 convolutions (`fcomb` of Kohl et al. 2018).

    The first would read the features beside the latent, repeated for every pixel. A convolution of both is the
    sum of a convolution of either, so the features' part is made once a slice and the latent's at a single pixel.
    """

    def __init__(self, features: int, latent: int, channels: int):
        super().__init__()
        self.look = nn.Conv2d(features, features, 1)
        self.tell = nn.Linear(latent, features, bias=False)
        self.mix = nn.Conv2d(features, features, 1)
        self.out = nn.Conv2d(features, channels, 1)

    def forward(
        self, seen: Float[Tensor, "batch features h w"], z: Float[Tensor, "batch samples latent"]
    ) -> Float[Tensor, "batch*samples channels h w"]:
        """Logits (B·K, channels, h, w) of features after `look` (B, features, h, w) and latents (B, K, latent)."""
        rows = seen.permute(0, 2, 3, 1)[:, None] + self.tell(z)[:, :, None, None]  # channels last, as memory has them
        x = F.relu(rows, inplace=True).flatten(0, 1).permute(0, 3, 1, 2)
        return self.out(F.relu(self.mix(x), inplace=True))


class ProbabilisticUNet(nn.Module):
    """Trunk, prior, posterior and head.

    The trunk is MONAI's residual U-Net, as in `systems.plain`, with features in the place of logits.
    """

    def __init__(self, widths: tuple[int, ...], features: int, latent: int, concepts: int, channels: int = 3):
        super().__init__()
        trunk = UNet(2, channels, features, widths, strides=(2,) * (len(widths) - 1), num_res_units=2)
        self.model = trunk.model  # under the name that `adapters.DECODER` knows
        self.concepts = concepts
        halves = [width // 2 for width in widths]
        self.prior = GaussianEncoder(channels, halves, latent)
        self.posterior = GaussianEncoder(channels + 1 + concepts, halves, latent)
        self.head = LatentHead(features, latent, 1 + concepts)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster on CPU

    def see(self, image: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch features size size"]:
        """What the head needs of slices (B, channels, S, S) in [-1, 1]; the same for every latent."""
        return self.head.look(self.model(image.contiguous(memory_format=torch.channels_last)))

    def read(
        self, image: Float[Tensor, "batch channels size size"], labels: Int[Tensor, "batch size size"]
    ) -> Gaussian:
        """The posterior: what the latent was when somebody drew these labels (0 is background, 1 + i is concept i).

        Concepts that came later than the posterior (`systems.System.with_parts`) are background to it.
        """
        known = labels.masked_fill(labels > self.concepts, 0)
        drawn = F.one_hot(known, 1 + self.concepts).permute(0, 3, 1, 2).to(image.dtype)
        return self.posterior(torch.cat([image, drawn], dim=1))
