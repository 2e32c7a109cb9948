"""What the JSON files of a foundation's folder may hold: of those of the libraries, what sizes are made of."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Interval, Len

from delineate.diffusion.codec import CODECS
from delineate.storage.schema import Channels, Line, Name, Share, Widths

Layers = Annotated[int, Interval(ge=1, le=64)]
Blocks = Annotated[tuple[Name, ...], Len(1, 12)]
Token = Annotated[int, Interval(ge=0, lt=1_000_000)]
Small = Annotated[float, Interval(gt=0, le=1)]


@dataclass(frozen=True)
class CodecConfig:
    """Numbers of a codec, as `Codec.config` tells them."""

    scale: Annotated[float, Interval(gt=0, le=1e6)] = 1.0
    level: Share = 0.0
    shift: Annotated[float, Interval(ge=-1e6, le=1e6)] = 0.0


@dataclass(frozen=True)
class OwnConfig:
    """delineate.json; more fields may follow."""

    codec: str = "vae"
    codec_config: CodecConfig = field(default_factory=CodecConfig)
    pretraining: Line = ""

    def __post_init__(self):
        if self.codec not in CODECS:
            raise ValueError(f"codec is one of {', '.join(CODECS)}; got '{self.codec:.40}'")


@dataclass(frozen=True)
class SchedulerConfig:
    """scheduler_config.json."""

    num_train_timesteps: Annotated[int, Interval(ge=1000, le=10_000)] = 1000  # samplers begin at 999
    beta_start: Small = 0.0001
    beta_end: Small = 0.02
    beta_schedule: Name = "linear"
    trained_betas: Annotated[tuple[Share, ...], Len(1000, 10_000)] | None = None
    prediction_type: Name = "epsilon"
    rescale_betas_zero_snr: bool = False


@dataclass(frozen=True)
class VaeConfig:
    """vae/config.json."""

    block_out_channels: Widths = (64,)
    down_block_types: Blocks = ("DownEncoderBlock2D",)
    up_block_types: Blocks = ("UpDecoderBlock2D",)
    layers_per_block: Layers = 1
    in_channels: Annotated[int, Interval(ge=3, le=3)] = 3
    out_channels: Annotated[int, Interval(ge=3, le=3)] = 3
    latent_channels: Channels = 4
    norm_num_groups: Channels = 32
    scaling_factor: Annotated[float, Interval(gt=0, le=1e6)] = 0.18215
    act_fn: Name = "silu"


@dataclass(frozen=True)
class UNetConfig:
    """unet/config.json."""

    in_channels: Channels = 4
    out_channels: Channels = 4
    block_out_channels: Widths = (320, 640, 1280, 1280)
    down_block_types: Blocks = ("CrossAttnDownBlock2D",)
    up_block_types: Blocks = ("UpBlock2D",)
    mid_block_type: Name | None = None
    layers_per_block: Layers | Annotated[tuple[Layers, ...], Len(1, 12)] = 2
    transformer_layers_per_block: Layers | Annotated[tuple[Layers, ...], Len(1, 12)] = 1
    attention_head_dim: Channels | Widths = 8
    num_attention_heads: Channels | Widths | None = None
    cross_attention_dim: Channels = 1280
    norm_num_groups: Channels = 32
    norm_eps: Small = 1e-5
    act_fn: Name = "silu"
    time_embedding_dim: Channels | None = None
    num_class_embeds: Channels | None = None
    downsample_padding: Annotated[int, Interval(ge=0, le=8)] = 1
    conv_in_kernel: Annotated[int, Interval(ge=1, le=9)] = 3
    conv_out_kernel: Annotated[int, Interval(ge=1, le=9)] = 3
    dropout: Share = 0.0
    mid_block_scale_factor: Annotated[float, Interval(gt=0, le=1e6)] = 1
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[float, Interval(ge=0, le=1)] = 0
    center_input_sample: bool = False


@dataclass(frozen=True)
class TextConfig:
    """text_encoder/config.json."""

    vocab_size: Annotated[int, Interval(ge=257, le=1_000_000)] = 49408
    hidden_size: Channels = 512
    intermediate_size: Annotated[int, Interval(ge=1, le=65_536)] = 2048
    num_hidden_layers: Layers = 12
    num_attention_heads: Annotated[int, Interval(ge=1, le=256)] = 8
    max_position_embeddings: Annotated[int, Interval(ge=2, le=8192)] = 77
    layer_norm_eps: Small = 1e-5
    hidden_act: Name = "quick_gelu"
    attention_dropout: Share = 0.0
    bos_token_id: Token | None = None
    eos_token_id: Token = 0
    pad_token_id: Token | None = None


@dataclass(frozen=True)
class TokenizerConfig:
    """tokenizer/tokenizer_config.json."""

    model_max_length: Annotated[int, Interval(ge=2, le=8192)] = 77


PARTS = {"vae": VaeConfig, "unet": UNetConfig, "text_encoder": TextConfig}
