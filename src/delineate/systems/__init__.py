"""The named systems. Adding one is a file in this folder and an entry in `SYSTEMS`.

The table itself needs no torch: `delineate systems` and `delineate --help` read it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delineate.data.slices import SliceBank
    from delineate.prompts.vocabulary import Vocabulary
    from delineate.systems.system import System


@dataclass(frozen=True)
class Entry:
    """A named system: what it is, and how to train, save and load it.

    Attributes:
        summary: one line for `delineate systems`.
        source: the paper or library it follows.
        train: (bank, preset, **how) to a trained system; `how` is budget, folder, seed, foundation, device,
            on_step and should_stop, and `delineate.training.merging.Merging` as merging where it `merges`.
        save: (system, folder) writes its weights and returns its configuration.
        load: (folder, configuration, vocabulary) to the system.
        presets: sizes it can be trained in; each is the largest working grid, in pixels.
        takes_foundation: whether `train` heeds a foundation; one given to another system would be ignored silently.
        merges: whether `train` merges slices with their synthetic variants; the others take these as slices.
    """

    summary: str
    source: str
    train: Callable[..., "System"]
    save: Callable[[Any, Path], dict[str, Any]]
    load: Callable[[Path, Mapping[str, Any], "Vocabulary"], "System"]
    presets: Mapping[str, int]
    takes_foundation: bool = False
    merges: bool = False


PRESETS = {"tiny": 128, "base": 256}  # tiny trains on two CPU cores, base wants a GPU


def _train_plain(
    bank: "SliceBank", preset: str, *, device: str, network: str, foundation: Path | None = None, **how: Any
) -> "System":
    from delineate.systems import plain

    config = plain.PlainConfig.preset(network, preset, bank.size)
    system = plain.build(config, bank.vocabulary, seed=how["seed"])
    return plain.train_plain(system.to(device), bank, **how)


def _save_plain(system: Any, folder: Path) -> dict[str, Any]:
    from delineate.storage.weights import save_weights

    save_weights(system.network, folder / "weights.safetensors")
    return asdict(system.config)


def _load_plain(folder: Path, config: Mapping[str, Any], vocabulary: "Vocabulary") -> "System":
    from delineate.storage.weights import load_weights
    from delineate.systems import plain

    system = plain.build(plain.PlainConfig.from_json(config), vocabulary)
    load_weights(system.network, folder / "weights.safetensors")
    return system


def _train_ensemble(
    bank: "SliceBank", preset: str, *, device: str, foundation: Path | None = None, **how: Any
) -> "System":
    from delineate.systems import ensemble, plain
    from delineate.training.loop import train_stages

    config = ensemble.EnsembleConfig(plain.PlainConfig.preset("unet", preset, bank.size))
    system = ensemble.build(config, bank.vocabulary, seed=how["seed"]).to(device)
    train_stages(system.stages(bank), **how)
    return system


def _load_ensemble(folder: Path, config: Mapping[str, Any], vocabulary: "Vocabulary") -> "System":
    from delineate.systems import ensemble, plain

    known = ensemble.EnsembleConfig(**{**config, "plain": plain.PlainConfig.from_json(config["plain"])})
    return _filled(ensemble.build(known, vocabulary), folder)


def _train_mcdropout(
    bank: "SliceBank", preset: str, *, device: str, foundation: Path | None = None, **how: Any
) -> "System":
    from delineate.systems import dropout, plain
    from delineate.training.loop import train_stages

    config = dropout.DropoutConfig(plain.PlainConfig.preset("unet", preset, bank.size))
    system = dropout.build(config, bank.vocabulary, seed=how["seed"]).to(device)
    train_stages(system.stages(bank), **how)
    return system


def _load_mcdropout(folder: Path, config: Mapping[str, Any], vocabulary: "Vocabulary") -> "System":
    from delineate.systems import dropout, plain

    known = dropout.DropoutConfig(**{**config, "plain": plain.PlainConfig.from_json(config["plain"])})
    return _filled(dropout.build(known, vocabulary), folder)


def _train_probunet(
    bank: "SliceBank", preset: str, *, device: str, objective: str, foundation: Path | None = None, **how: Any
) -> "System":
    from delineate.systems.latent import probunet

    config = probunet.ProbUNetConfig.preset(objective, preset, bank.size)
    system = probunet.build(config, bank.vocabulary, seed=how["seed"])
    return probunet.train_probunet(system.to(device), bank, **how)


def _load_probunet(folder: Path, config: Mapping[str, Any], vocabulary: "Vocabulary") -> "System":
    from delineate.systems.latent import probunet

    return _filled(probunet.build(probunet.ProbUNetConfig.from_json(config), vocabulary), folder)


def _save_parts(system: Any, folder: Path) -> dict[str, Any]:
    from delineate.storage.weights import save_weights

    for name, part in system.parts.items():
        save_weights(part, folder / f"{name}.safetensors")
    return asdict(system.config)


def _filled(system: "System", folder: Path) -> "System":
    """The system with the weights that `_save_parts` wrote."""
    from delineate.storage.weights import load_weights

    for name, part in system.parts.items():
        load_weights(part, folder / f"{name}.safetensors")
    return system


def _train_progidiff(
    bank: "SliceBank", preset: str, *, device: str, foundation: Path | None = None, **how: Any
) -> "System":
    from delineate.foundation.foundation import Foundation
    from delineate.foundation.pretraining import PRETRAIN_SHARE, caption_corpus, pretrain
    from delineate.systems.diffusion import progidiff

    budget = how.pop("budget")
    if foundation is None:
        corpus = caption_corpus(bank.vocabulary, bank.modalities)
        base = Foundation.make(preset, "unshuffle", corpus, seed=how["seed"]).to(device)
        base = pretrain(
            base, bank, **{**how, "budget": budget.share(PRETRAIN_SHARE), "folder": how["folder"] / "pretrain"}
        )
        budget = budget.share(1 - PRETRAIN_SHARE)
    else:
        base = Foundation.load(foundation)
    config = progidiff.ProGiDiffConfig(size=bank.size, encoder=preset)
    system = progidiff.build(config, base, bank.vocabulary, seed=how["seed"])
    return progidiff.train_progidiff(system.to(device), bank, budget=budget, **how)


def _save_progidiff(system: Any, folder: Path) -> dict[str, Any]:
    from delineate.storage.weights import save_weights

    system.foundation.save(folder / "foundation")
    save_weights(system.control, folder / "control.safetensors")
    return asdict(system.config)


def _load_progidiff(folder: Path, config: Mapping[str, Any], vocabulary: "Vocabulary") -> "System":
    from delineate.foundation.foundation import Foundation
    from delineate.storage.weights import load_weights
    from delineate.systems.diffusion import progidiff

    base = Foundation.load(folder / "foundation")
    system = progidiff.build(progidiff.ProGiDiffConfig(**config), base, vocabulary)
    load_weights(system.control, folder / "control.safetensors")
    return system


def _train_unisegdiff(
    bank: "SliceBank", preset: str, *, device: str, foundation: Path | None = None, uniform: bool = False, **how: Any
) -> "System":
    from delineate.diffusion.stages import Stages, Strategy
    from delineate.systems.diffusion import unisegdiff

    config = unisegdiff.UniSegDiffConfig(bank.size, preset)
    if uniform:
        config = replace(config, stages=Stages(Strategy.UNIFORM, target="mask", interval=10), chains="own")
    system = unisegdiff.build(config, bank.vocabulary, seed=how["seed"])
    return unisegdiff.train_unisegdiff(system.to(device), bank, **how)


def _save_unisegdiff(system: Any, folder: Path) -> dict[str, Any]:
    from delineate.storage.weights import save_weights

    save_weights(system.condition, folder / "condition.safetensors")
    save_weights(system.denoiser, folder / "denoiser.safetensors")
    return {**asdict(system.config), "targets": list(system.learnt.names)}


def _load_unisegdiff(folder: Path, config: Mapping[str, Any], vocabulary: "Vocabulary") -> "System":
    from delineate.prompts.vocabulary import Vocabulary
    from delineate.storage.weights import load_weights
    from delineate.systems.diffusion import unisegdiff

    known = {k: v for k, v in config.items() if k != "targets"}
    learnt = Vocabulary(tuple(c for c in vocabulary.concepts if c.name in config["targets"]))
    system = unisegdiff.build(unisegdiff.UniSegDiffConfig.from_json(known), learnt)
    load_weights(system.condition, folder / "condition.safetensors")
    load_weights(system.denoiser, folder / "denoiser.safetensors")
    return system


def _train_sdseg(
    bank: "SliceBank", preset: str, *, device: str, foundation: Path | None = None, **how: Any
) -> "System":
    from delineate.diffusion.codec import CODECS
    from delineate.foundation.foundation import Foundation
    from delineate.systems.diffusion import sdseg

    name, codec = "unshuffle", CODECS["unshuffle"](None)
    if foundation is not None:
        base = Foundation.load(foundation)
        name, codec = base.codec_name, base.codec
    system = sdseg.build(sdseg.SDSegConfig(bank.size, preset, name), codec, bank.vocabulary, seed=how["seed"])
    return sdseg.train_sdseg(system.to(device), bank, **how)


def _save_sdseg(system: Any, folder: Path) -> dict[str, Any]:
    from delineate.storage.weights import save_weights

    save_weights(system.network, folder / "weights.safetensors")
    if system.config.codec == "vae":
        system.codec.vae.save_config(folder / "vae")
        save_weights(system.codec.vae, folder / "vae" / "diffusion_pytorch_model.safetensors")
    return {**asdict(system.config), "codec_config": system.codec.config()}


def _load_sdseg(folder: Path, config: Mapping[str, Any], vocabulary: "Vocabulary") -> "System":
    from diffusers import AutoencoderKL

    from delineate.diffusion.codec import CODECS
    from delineate.storage.weights import load_weights
    from delineate.systems.diffusion import sdseg

    known = sdseg.SDSegConfig(**{k: v for k, v in config.items() if k != "codec_config"})
    vae: Any = None
    if known.codec == "vae":
        shape: Any = AutoencoderKL.load_config(folder / "vae", local_files_only=True)
        vae = AutoencoderKL.from_config(shape)
        load_weights(vae, folder / "vae" / "diffusion_pytorch_model.safetensors")
    system = sdseg.build(known, CODECS[known.codec](vae, **config["codec_config"]), vocabulary)
    load_weights(system.network, folder / "weights.safetensors")
    return system


SYSTEMS: dict[str, Entry] = {
    "unet": Entry(
        "plain 2-D U-Net, one channel a target, Dice + CE: the baseline beside every claim; one answer, no proposals",
        "Ronneberger et al. 2015; MONAI UNet with residual units (Kerfoot et al. 2018)",
        partial(_train_plain, network="unet"),
        _save_plain,
        _load_plain,
        PRESETS,
        merges=True,
    ),
    "mednext": Entry(
        "plain 2-D MedNeXt (S, kernel 3), trained as the U-Net is: a stronger baseline; one answer, no proposals",
        "Roy et al. 2023 (MICCAI), arXiv 2303.09975; MONAI MedNeXt",
        partial(_train_plain, network="mednext"),
        _save_plain,
        _load_plain,
        PRESETS,
        merges=True,
    ),
    "ensemble": Entry(
        "five plain U-Nets, each with a fifth of the budget: each is a proposal, so there are five at most",
        "Lakshminarayanan et al. 2017 (NeurIPS), deep ensembles, arXiv 1612.01474",
        _train_ensemble,
        _save_parts,
        _load_ensemble,
        PRESETS,
    ),
    "mcdropout": Entry(
        "plain U-Net that goes on dropping activations while it proposes, the same ones in all slices of a scan",
        "Gal and Ghahramani 2016 (ICML), arXiv 1506.02142",
        _train_mcdropout,
        _save_parts,
        _load_mcdropout,
        PRESETS,
    ),
    "probunet": Entry(
        "Probabilistic U-Net: a U-Net whose last layers read a small latent, drawn anew for every proposal",
        "Kohl et al. 2018 (NeurIPS), arXiv 1806.05034",
        partial(_train_probunet, objective="elbo"),
        _save_parts,
        _load_probunet,
        PRESETS,
    ),
    "pulaski": Entry(
        "the Probabilistic U-Net, trained so that its proposals as a set lie close to the set of all raters' masks",
        "Chatterjee et al. 2025 (Medical Image Analysis), PULASki, arXiv 2312.15686",
        partial(_train_probunet, objective="energy"),
        _save_parts,
        _load_probunet,
        PRESETS,
    ),
    "progidiff": Entry(
        "prompt-guided latent diffusion: a frozen text-to-image model steered from scan to mask by a control",
        "Lin et al. 2026, arXiv 2601.16060",
        _train_progidiff,
        _save_progidiff,
        _load_progidiff,
        PRESETS,
        takes_foundation=True,
    ),
    "unisegdiff": Entry(
        "one staged diffusion model for lesions of every modality: frozen condition network, two decoders",
        "Hu et al. 2025, arXiv 2507.18362",
        _train_unisegdiff,
        _save_unisegdiff,
        _load_unisegdiff,
        {"tiny": 128, "small": 256, "paper": 256},
    ),
    "ddim": Entry(
        "UniSegDiff's networks without its stages: the mask is predicted at every time alike, 100 DDIM steps",
        "Song et al. 2021, arXiv 2010.02502; the uniform row of UniSegDiff's Table 4",
        partial(_train_unisegdiff, uniform=True),
        _save_unisegdiff,
        _load_unisegdiff,
        {"tiny": 128, "small": 256, "paper": 256},
    ),
    "sdseg": Entry(
        "latent diffusion in a single step: image features beside the noisy mask latent, the target as a label",
        "Lin et al. 2024 (MICCAI), SDSeg, arXiv 2406.18361",
        _train_sdseg,
        _save_sdseg,
        _load_sdseg,
        PRESETS,
        takes_foundation=True,
    ),
}
