"""Sizes of every model, as frozen dataclasses that go to JSON and back."""

import dataclasses
from dataclasses import dataclass, field

from samclip_jax.config import build
from samclip_jax.errors import UserError

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
OPENAI_MEAN = (122.7709383, 116.7460125, 104.09373615)
OPENAI_STD = (68.5005327, 66.6321579, 70.3231630)


@dataclass(frozen=True)
class ImageEncoderConfig:
    """ViT-Det encoder of SAM (segment_anything.modeling.ImageEncoderViT); defaults: ViT-B.

    The layers are `groups` runs of (depth / groups - 1) windowed blocks and one global block.
    `image_size` is the square size, in px, of the positional tables; other inputs resize them.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    groups: int = 4
    patch: int = 16
    image_size: int = 1024
    window: int = 14
    mlp_width: int = 3072
    out_channels: int = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of uint8 values, 0 to 255
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        divides = (self.depth, self.groups), (self.width, self.heads), (self.image_size, self.patch)
        if any(a % b for a, b in divides) or self.depth < 2 * self.groups:
            raise UserError(
                "depth must divide by groups (at least two blocks a group), width by heads and "
                f"image_size by patch, got {self}"
            )


@dataclass(frozen=True)
class MaskDecoderConfig:
    """Two-way transformer and heads (segment_anything.modeling.MaskDecoder); SAM has one size."""

    depth: int = 2
    heads: int = 8
    mlp_width: int = 2048
    multimask_outputs: int = 3
    iou_depth: int = 3
    iou_width: int = 256
    mask_channels: int = 16  # of the prompt encoder's mask embedding


@dataclass(frozen=True)
class SamConfig:
    encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    mask_decoder: MaskDecoderConfig = field(default_factory=MaskDecoderConfig)


@dataclass(frozen=True)
class ClipVisionConfig:
    """CLIP image tower; defaults: ViT-L/14 of OpenCLIP. `embed_dim` None: no projection."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_width: int = 4096
    patch: int = 14
    image_size: int = 224
    embed_dim: int | None = 768
    activation: str = "gelu"  # or quick_gelu, as OpenAI trained
    mean: tuple[float, float, float] = OPENAI_MEAN  # of uint8 values, 0 to 255
    std: tuple[float, float, float] = OPENAI_STD


@dataclass(frozen=True)
class ClipTextConfig:
    """CLIP text tower; defaults: the one that goes with ViT-L/14."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    context_length: int = 77
    vocab_size: int = 49408
    embed_dim: int | None = 768
    activation: str = "gelu"


@dataclass(frozen=True)
class ClipConfig:
    vision: ClipVisionConfig = field(default_factory=ClipVisionConfig)
    text: ClipTextConfig = field(default_factory=ClipTextConfig)


@dataclass(frozen=True)
class ClipHeadConfig:
    """The CLIP head (SAM-CLIP appendix A). Its blocks have the encoder's width, heads and MLP."""

    depth: int = 3
    mlp_hidden: int = 768  # two hidden layers; 768 gives the paper's "about 25 %" (appendix E)
    embed_dim: int = 768  # of the text tower
    pooling: str = "max"  # or mean; max was better (appendix A)


@dataclass(frozen=True)
class SamClipConfig:
    sam: SamConfig = field(default_factory=SamConfig)
    clip_head: ClipHeadConfig = field(default_factory=ClipHeadConfig)
    text: ClipTextConfig = field(default_factory=ClipTextConfig)


KINDS = {"sam": SamConfig, "clip": ClipConfig, "samclip": SamClipConfig}


def kind_of(config) -> str:
    """'sam', 'clip' or 'samclip'."""
    return next(kind for kind, cls in KINDS.items() if type(config) is cls)


def to_dict(config) -> dict:
    """A JSON-able dict with the model's kind; `from_dict` reads it back."""
    return {"kind": kind_of(config), **dataclasses.asdict(config)}


def from_dict(values: dict):
    """The config that `to_dict` wrote. UserError on an unknown kind or key."""
    values = dict(values)
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f"model config: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return build(KINDS[kind], values, f"model config: {kind}")
