"""The named systems. Adding one is a file in this folder and a row in `SYSTEMS`.

Every row of `NETWORKS` is one as well.

The table itself needs no torch: `delineate systems` and `delineate --help` read it. Every file that a row names has the
same four functions:

    make(preset, size, vocabulary, *, seed, foundation, modalities, channels, **options) -> system       untrained
    train(system, bank, run) -> system
    save(system, folder) -> configuration                                                       beside the weights
    load(folder, configuration, vocabulary) -> system
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delineate.networks import NETWORKS

if TYPE_CHECKING:
    from delineate.data.slices import SliceBank
    from delineate.prompts.vocabulary import Vocabulary
    from delineate.training.loop import Run

PRESETS = {"tiny": 128, "base": 256}  # tiny trains on two CPU cores, base wants a GPU
SIZED = {"tiny": 128, "small": 256, "base": 256}  # small trains on two CPU cores where it has hours


@dataclass(frozen=True)
class SystemRow:
    """A row: what a system is, and in which file of this folder it lives.

    Attributes:
        module: the file's name, with that of its family's folder.
        summary: one line for `delineate systems`.
        source: the paper or library it follows.
        options: given to its `make`, where one file holds several systems.
        presets: sizes it can be trained in; each is the largest working grid, in pixels.
        takes_foundation: whether it heeds a foundation; one given to another system would be ignored silently.
        takes_network: whether it can be made of any row of `NETWORKS`.
        pixelwise: whether its one network gives every pixel a logit of every name: schemes can then teach it.
        merges: whether `train` merges slices with their synthetic variants; the others take these as slices.
        starts: what its network can begin with instead of chance, as in `delineate.networks.Network`.
    """

    module: str
    summary: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, int] = field(default_factory=lambda: PRESETS)
    takes_foundation: bool = False
    takes_network: bool = False
    pixelwise: bool = False
    merges: bool = False
    starts: Mapping[str, str] = field(default_factory=dict)

    def _file(self) -> Any:
        return import_module(f"delineate.systems.{self.module}")

    def make(self, preset: str, size: int, vocabulary: "Vocabulary", **how: Any) -> Any:
        """An untrained system.

        Args:
            preset: one of `presets`.
            size: pixels along a side of the working grid.
            vocabulary: of the training sets.
            how: seed, foundation (a folder), modalities of the training sets, channels of a slice where they are not 3,
                and options of its own.

        Raises:
            DelineateError: it cannot be made so.
        """
        return self._file().make(preset, size, vocabulary, **{**self.options, **how})

    def train(
        self,
        bank: "SliceBank",
        preset: str,
        run: "Run",
        *,
        device: str = "cpu",
        foundation: Path | None = None,
        network: str | None = None,
        init: str | None = None,
        **how: Any,
    ) -> Any:
        """A system that learnt from slices, from one of its `starts` or from chance.

        `how` is `merging`, where it `merges`.
        """
        given = {"network": network, "init": init}
        chosen = {name: value for name, value in given.items() if value is not None}
        made = self.make(
            preset,
            bank.size,
            bank.vocabulary,
            seed=run.seed,
            foundation=foundation,
            modalities=bank.modalities,
            channels=bank.images.shape[1],
            **chosen,
        )
        return self._file().train(made.to(device), bank, run, **how)

    def save(self, system: Any, folder: Path) -> dict[str, Any]:
        """Its configuration, beside the weights that are written."""
        return self._file().save(system, folder)

    def load(self, folder: Path, config: Mapping[str, Any], vocabulary: "Vocabulary") -> Any:
        """The system that `save` wrote.

        Raises:
            ModelError: the configuration is none of this system's, or the weights are not those that it asks for.
        """
        from delineate.storage.weights import building  # which imports torch

        with building(folder):
            return self._file().load(folder, config, vocabulary)


UNISEGDIFF = {"tiny": 128, "small": 256, "paper": 256}
SYSTEMS: dict[str, SystemRow] = {
    **{
        name: SystemRow(
            "plain", row.summary, row.source, {"network": name}, pixelwise=True, merges=True, starts=row.starts
        )
        for name, row in NETWORKS.items()
        if 2 in row.dims
    },
    "ensemble": SystemRow(
        "ensemble",
        "five plain U-Nets, each with a fifth of the budget: each is a proposal, so there are five at most",
        "Lakshminarayanan et al. 2017 (NeurIPS), deep ensembles, arXiv 1612.01474",
        takes_network=True,
    ),
    "mcdropout": SystemRow(
        "dropout",
        "plain U-Net that goes on dropping activations while it proposes, the same ones in all slices of a scan",
        "Gal and Ghahramani 2016 (ICML), arXiv 1506.02142",
        takes_network=True,
    ),
    "probunet": SystemRow(
        "latent.probunet",
        "Probabilistic U-Net: a U-Net whose last layers read a small latent, drawn anew for every proposal",
        "Kohl et al. 2018 (NeurIPS), arXiv 1806.05034",
        {"objective": "elbo"},
    ),
    "pulaski": SystemRow(
        "latent.probunet",
        "the Probabilistic U-Net, trained so that its proposals as a set lie close to the set of all raters' masks",
        "Chatterjee et al. 2025 (Medical Image Analysis), PULASki, arXiv 2312.15686",
        {"objective": "energy"},
    ),
    "flowssn": SystemRow(
        "latent.flowssn",
        "Flow-SSN: a U-Net gives the mean of Gaussian logits, a thin flow makes masks of their draws in ten steps",
        "Ribeiro et al. 2025 (ICCV), the continuous variant, arXiv 2507.18838",
    ),
    "progidiff": SystemRow(
        "diffusion.progidiff",
        "prompt-guided latent diffusion: a frozen text-to-image model steered from scan to mask by a control",
        "Lin et al. 2026, arXiv 2601.16060",
        presets=SIZED,
        takes_foundation=True,
    ),
    "encoder": SystemRow(
        "diffusion.prompted",
        "prompted encoder: ProGiDiff without its generator, proposals from calibrated probabilities and noise alone",
        "the encoder and text head of Lin et al. 2026 as built here, arXiv 2601.16060; thresholds of Gaussian noise",
        presets=SIZED,
    ),
    "spread": SystemRow(
        "diffusion.spread",
        "prompted encoder that tells how far masks spread: a line through them by pixel, taught by the energy score",
        "built here; the energy score: Gneiting and Raftery 2007, JASA 102(477)",
        presets=SIZED,
    ),
    "unisegdiff": SystemRow(
        "diffusion.unisegdiff",
        "one staged diffusion model for lesions of every modality: frozen condition network, two decoders",
        "Hu et al. 2025, arXiv 2507.18362",
        presets=UNISEGDIFF,
    ),
    "ddim": SystemRow(
        "diffusion.unisegdiff",
        "UniSegDiff's networks without its stages: the mask is predicted at every time alike, 100 DDIM steps",
        "Song et al. 2021, arXiv 2010.02502; the uniform row of UniSegDiff's Table 4",
        {"uniform": True},
        presets=UNISEGDIFF,
    ),
    "sdseg": SystemRow(
        "diffusion.sdseg",
        "latent diffusion in a single step: image features beside the noisy mask latent, the target as a label",
        "Lin et al. 2024 (MICCAI), SDSeg, arXiv 2406.18361",
        takes_foundation=True,
    ),
}
