"""What a MONAI bundle of ours names as its network: a segmenter that takes and gives MONAI's tensors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.utils.type_conversion import convert_to_dst_type
from torch import nn

from delineate.errors import ScanError
from delineate.scans.arrays import scan_of
from delineate.scans.channels import joined
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter


class BundledModel(nn.Module):
    """A model folder behind MONAI's door: images (B, C, I, J, K) with their affines in, label maps (B, 1, I, J, K) out.

    A voxel's number is that of `Proposals.label_map`, 0 where nothing was found: equal to what `delineate segment`
    writes into `labels.nii.gz`.
    """

    def __init__(
        self,
        folder: Path | str,
        targets: Sequence[str] = (),
        modality: str | None = None,
        proposals: int = 8,
        seed: int = 0,
    ):
        """A bundle's network.

        Args:
            folder: of the model, compared with its hashes here.
            targets: what is outlined; none for all that was learnt for a scan's kind.
            modality: of the scans, where their voxels do not say.
            proposals: a target.
            seed: as in `Segmenter`.

        Raises:
            ModelError: as `Segmenter.load`.
        """
        super().__init__()
        self.segmenter = Segmenter.load(folder)
        self.parts = nn.ModuleDict(self.segmenter.system.parts)  # so that `to`, `state_dict` and `parameters` see them
        self.targets, self.modality, self.proposals, self.seed = tuple(targets), modality, proposals, seed

    def _apply(self, fn: Any, recurse: bool = True) -> "BundledModel":
        super()._apply(fn, recurse)
        device = next(self.parameters()).device
        self.segmenter.system.to(str(device))
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The label map of every image, as float32 with the image's meta data.

        Raises:
            ScanError: an image without its affine, of another shape, or that is no scan.
        """
        affines = image.meta.get("affine") if isinstance(image, MetaTensor) else None
        if affines is None or image.ndim != 5:
            raise ScanError(
                f"images must be MetaTensors (B, C, I, J, K) with their affine, got {type(image).__name__} of shape "
                f"{tuple(image.shape)}; load them with LoadImaged, ensure_channel_first=True"
            )
        places = np.asarray(torch.as_tensor(affines), np.float64).reshape(-1, 4, 4)
        voxels = image.detach().cpu().numpy()
        labels = [self._labels(self._scan(one, place)) for one, place in zip(voxels, places, strict=True)]
        return convert_to_dst_type(np.stack(labels)[:, None].astype(np.float32), image)[0]

    def _scan(self, channels: np.ndarray, affine: np.ndarray) -> Scan:
        names = self.segmenter.habits.channels
        scans = [scan_of(one, affine, modality=self.modality) for one in channels]
        return joined(scans, names) if names and len(scans) == len(names) else self._only(scans)

    def _only(self, scans: list[Scan]) -> Scan:
        if len(scans) != 1:
            raise ScanError(f"an image must have one channel here, this one has {len(scans)}; give it one volume")
        return scans[0]

    def _labels(self, scan: Scan) -> np.ndarray:
        seen = self.segmenter.look(scan)
        targets = self.targets or self.segmenter.learnt_for(seen)[0]
        return self.segmenter(seen, targets, n=self.proposals, seed=self.seed).label_map()[0]
