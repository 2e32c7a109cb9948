"""The text-to-image latent diffusion model that is trained once and then frozen.

It lives in a standard Stable Diffusion folder (`vae/`, `unet/`, `text_encoder/`, `tokenizer/`, `scheduler/`,
`model_index.json`), so that a real Stable Diffusion 1.x or 2.x folder loads unchanged. What such a folder
cannot say (which codec the U-Net was trained on, with which statistics, and whether it was trained at all)
stands in `delineate.json` beside it; without that file the codec is the folder's own autoencoder.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from delineate.diffusion.codec import CODECS, STRIDE, Codec
from delineate.diffusion.schedule import Schedule, schedule_from_config
from delineate.errors import ModelError
from delineate.foundation.shapes import PARTS, OwnConfig, SchedulerConfig, TokenizerConfig
from delineate.foundation.text import Encoded, build_text_encoder, build_tokenizer, encode_text
from delineate.storage.files import write_json
from delineate.storage.schema import checked, read_json
from delineate.storage.weights import building, refuse_infinite

NEW_CODECS = {"unshuffle": {"level": 0.75}}  # of foundations made from now on; folders tell their own


@dataclass(frozen=True)
class FoundationSize:
    """Widths of a foundation made here."""

    unet: tuple[int, ...]
    layers: int
    text_width: int
    text_layers: int
    vae: tuple[int, ...]


SIZES = {
    # Of a system that reads words alone: the other parts are as small as they can be.
    "words": FoundationSize(unet=(16, 32), layers=1, text_width=128, text_layers=2, vae=(8, 8, 8, 8)),
    "tiny": FoundationSize(unet=(48, 96), layers=1, text_width=128, text_layers=2, vae=(16, 32, 32, 32)),
    "base": FoundationSize(unet=(128, 256, 384), layers=2, text_width=384, text_layers=6, vae=(64, 128, 256, 256)),
}

# x0-prediction: ε divides by √ᾱ, which this schedule takes to 0 at the last time.
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
}


FIX = "copy the foundation again"
MOST_WORDS = 16 << 20  # bytes of a tokenizer's files: CLIP's largest has four million
UNTRAINED = "not pre-trained"


@dataclass(eq=False)
class Foundation:
    """Autoencoder, U-Net, text encoder, tokenizer, schedule and codec, as one value."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    schedule: Schedule
    codec: Codec
    codec_name: str
    pretraining: str  # one line for the card: what it was trained on, or that it was not

    @property
    def is_untrained(self) -> bool:
        """Whether it is as `make` made it."""
        return self.pretraining == UNTRAINED

    @classmethod
    def make(cls, size: str, codec: str, corpus: list[str], *, seed: int) -> "Foundation":
        """An untrained foundation of `SIZES[size]` on `CODECS[codec]`, its tokenizer learnt from `corpus`."""
        chosen = SIZES[size]
        tokenizer = build_tokenizer(corpus)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            text_encoder = build_text_encoder(tokenizer, width=chosen.text_width, layers=chosen.text_layers)
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * len(chosen.vae),  # type: ignore[arg-type]
                up_block_types=("UpDecoderBlock2D",) * len(chosen.vae),  # type: ignore[arg-type]
                block_out_channels=chosen.vae,  # type: ignore[arg-type]
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=8,
            )
            built = CODECS[codec](vae, **NEW_CODECS.get(codec, {}))
            unet = UNet2DConditionModel(
                sample_size=16,
                in_channels=built.channels,
                out_channels=built.channels,
                block_out_channels=chosen.unet,
                layers_per_block=chosen.layers,
                down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (len(chosen.unet) - 1)),
                up_block_types=(*("CrossAttnUpBlock2D",) * (len(chosen.unet) - 1), "UpBlock2D"),
                cross_attention_dim=chosen.text_width,
                attention_head_dim=4,
                norm_num_groups=16,
            )
        return cls(
            vae,
            unet,
            text_encoder,
            tokenizer,
            dict(SCHEDULER),
            schedule_from_config(SCHEDULER),
            built,
            codec,
            UNTRAINED,
        ).frozen()

    @classmethod
    def load(cls, folder: Path) -> "Foundation":
        """The foundation in a Stable Diffusion folder; nothing is downloaded.

        Raises:
            ModelError: a part is missing or damaged, or does not fit the others.
        """
        folder = Path(folder)
        for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
            if not (folder / part).is_dir():
                raise ModelError(
                    f"{folder}: not a Stable Diffusion folder, '{part}/' is missing; give a folder in diffusers' "
                    "layout, or make one with: delineate pretrain"
                )
        ours, scheduler = _read_configs(folder)
        name = ours.get("codec", "vae")
        with _no_progress_bars(), building(folder, FIX):
            vae = _module(AutoencoderKL, folder / "vae", torch_dtype=torch.float32)
            unet = _module(UNet2DConditionModel, folder / "unet", torch_dtype=torch.float32)
            text = _module(CLIPTextModel, folder / "text_encoder", dtype=torch.float32)
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            schedule = schedule_from_config(scheduler)
            codec = CODECS[name](vae, **ours.get("codec_config", {}))
        words, known = len(tokenizer), text.config.vocab_size
        if not 256 < words <= known:  # without its file a tokenizer loads empty; every byte has a word of its own
            raise ModelError(
                f"{folder}: the tokenizer has {words} words, the text encoder knows {known}; copy it again"
            )
        if tokenizer.pad_token is None:
            raise ModelError(f"{folder}/tokenizer: has no pad_token; {FIX}")
        if not 2 <= tokenizer.model_max_length <= text.config.max_position_embeddings:
            raise ModelError(
                f"{folder}: the tokenizer gives up to {tokenizer.model_max_length} words, the text encoder reads "
                f"{text.config.max_position_embeddings}; {FIX}"
            )
        if codec.channels != unet.config["in_channels"] or 2 ** (len(vae.config["block_out_channels"]) - 1) != STRIDE:
            raise ModelError(
                f"{folder}: the U-Net takes {unet.config['in_channels']} channels but the codec '{name}' gives "
                f"{codec.channels} at 1/{STRIDE} of the image; inpainting and upscaling variants are not supported"
            )
        if unet.config["cross_attention_dim"] != text.config.hidden_size:
            raise ModelError(
                f"{folder}: the U-Net reads text of width {unet.config['cross_attention_dim']}, the text encoder "
                f"gives {text.config.hidden_size}; take all parts from one model"
            )
        pretraining = ours.get("pretraining", "weights of the user's own Stable Diffusion folder")
        return cls(vae, unet, text, tokenizer, scheduler, schedule, codec, name, pretraining).frozen()

    def save(self, folder: Path) -> None:
        """Write the Stable Diffusion folder (safetensors only)."""
        folder = Path(folder)
        with _no_progress_bars():
            for name in ("vae", "unet", "text_encoder"):
                getattr(self, name).save_pretrained(folder / name, safe_serialization=True)
                config = read_json(folder / name / "config.json", dict[str, Any], fix=FIX)
                config.pop("_name_or_path", None)  # where it lay on this machine
                write_json(folder / name / "config.json", config)
        self.tokenizer.save_pretrained(str(folder / "tokenizer"))
        scheduler: Any = DDIMScheduler.from_config(self.scheduler_config)
        scheduler.save_pretrained(folder / "scheduler")
        write_json(
            folder / "model_index.json",
            {
                "_class_name": "StableDiffusionPipeline",
                "feature_extractor": [None, None],
                "safety_checker": [None, None],
                "scheduler": ["diffusers", "DDIMScheduler"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            },
        )
        ours = {"codec": self.codec_name, "codec_config": self.codec.config(), "pretraining": self.pretraining}
        write_json(folder / "delineate.json", ours)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The parts with weights, by the name of their folder."""
        return {"vae": self.vae, "unet": self.unet, "text_encoder": self.text_encoder}

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.unet.parameters()).device

    def to(self, device: torch.device | str) -> "Foundation":
        """Itself, moved."""
        for module in self.modules.values():
            module.to(device)
        return self

    def frozen(self) -> "Foundation":
        """Itself, with every weight frozen and in evaluation mode."""
        for module in self.modules.values():
            module.requires_grad_(False).eval()
        return self

    def encode_text(self, texts: list[str]) -> Encoded:
        """Texts as tokens and pooled vectors."""
        return encode_text(self.text_encoder, self.tokenizer, texts)

    def fingerprint(self) -> str:
        """SHA-256 over every weight: equal before and after whatever must not change it."""
        digest = hashlib.sha256()
        for part, module in sorted(self.modules.items()):
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(f"{part}.{name}".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _module(kind: Any, folder: Path, **how: Any) -> Any:
    """A part with weights, all of which its file has and none of which is infinite."""
    module, told = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **how
    )
    if absent := sorted(map(str, told["missing_keys"])):  # which the libraries leave to chance
        raise ModelError(f"{folder}: the weight '{absent[0]:.100}' is missing; {FIX}")
    refuse_infinite(module.state_dict().items(), folder, FIX)
    return module


def _read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """delineate.json, {} where there is none, and the schedule's configuration; that of every part is looked at."""
    for part, shape in PARTS.items():
        read_json(folder / part / "config.json", shape, fix=FIX)
    for path in sorted((folder / "tokenizer").glob("*.json")):
        own = path.name == "tokenizer_config.json"
        read_json(path, TokenizerConfig if own else dict[str, Any], fix=FIX, most_bytes=MOST_WORDS)
    scheduler = read_json(path := folder / "scheduler" / "scheduler_config.json", dict[str, Any], fix=FIX)
    checked(scheduler, SchedulerConfig, path, fix=FIX)
    if not (own := folder / "delineate.json").exists():
        return {}, scheduler
    ours = read_json(own, dict[str, Any], fix=FIX)
    checked(ours, OwnConfig, own, fix=FIX)
    return ours, scheduler


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Silence the libraries' bars for weights that load in a blink; put back as they were."""
    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
