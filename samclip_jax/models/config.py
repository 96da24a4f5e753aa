"""Sizes of every model, as frozen dataclasses that go to JSON and back."""

from dataclasses import dataclass, field
from typing import Literal

from samclip_jax.config import TEXT_HEAD, HeadConfig
from samclip_jax.errors import UserError
from samclip_jax.validation import PositiveFloat, PositiveInt, Validated

Activation = Literal["gelu", "quick_gelu"]
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
OPENAI_MEAN = (122.7709383, 116.7460125, 104.09373615)
OPENAI_STD = (68.5005327, 66.6321579, 70.3231630)


@dataclass(frozen=True)
class ImageEncoderConfig(Validated):
    """ViT-Det encoder of SAM (segment_anything.modeling.ImageEncoderViT); defaults: ViT-B.

    The layers are `groups` runs of (depth / groups - 1) windowed blocks and one global block.
    `image_size` is the square size, in px, of the positional tables; other inputs resize them.
    """

    width: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12
    groups: PositiveInt = 4
    patch: PositiveInt = 16
    image_size: PositiveInt = 1024
    window: PositiveInt = 14
    mlp_width: PositiveInt = 3072
    out_channels: PositiveInt = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of uint8 values, 0 to 255
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD

    def __post_init__(self):
        super().__post_init__()
        divides = (self.depth, self.groups), (self.width, self.heads), (self.image_size, self.patch)
        if any(a % b for a, b in divides) or self.depth < 2 * self.groups:
            raise UserError(
                "depth must divide by groups (at least two blocks a group), width by heads and "
                f"image_size by patch, got {self}"
            )


@dataclass(frozen=True)
class MaskDecoderConfig(Validated):
    """Two-way transformer and heads (segment_anything.modeling.MaskDecoder); SAM has one size."""

    depth: PositiveInt = 2
    heads: PositiveInt = 8
    mlp_width: PositiveInt = 2048
    multimask_outputs: PositiveInt = 3
    iou_depth: PositiveInt = 3
    iou_width: PositiveInt = 256
    mask_channels: PositiveInt = 16  # of the prompt encoder's mask embedding


@dataclass(frozen=True)
class SamConfig(Validated):
    encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    mask_decoder: MaskDecoderConfig = field(default_factory=MaskDecoderConfig)

    @property
    def sam(self):
        """Itself, as a merged model's config has it."""
        return self


@dataclass(frozen=True)
class ClipVisionConfig(Validated):
    """CLIP image tower; defaults: ViT-L/14 of OpenCLIP. `embed_dim` None: no projection."""

    width: PositiveInt = 1024
    depth: PositiveInt = 24
    heads: PositiveInt = 16
    mlp_width: PositiveInt = 4096
    patch: PositiveInt = 14
    image_size: PositiveInt = 224
    embed_dim: PositiveInt | None = 768
    activation: Activation = "gelu"  # quick_gelu is what OpenAI trained with
    mean: tuple[float, float, float] = OPENAI_MEAN  # of uint8 values, 0 to 255
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = OPENAI_STD


@dataclass(frozen=True)
class ClipTextConfig(Validated):
    """CLIP text tower; defaults: the one that goes with ViT-L/14."""

    width: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12
    mlp_width: PositiveInt = 3072
    context_length: PositiveInt = 77
    vocab_size: PositiveInt = 49408
    embed_dim: PositiveInt | None = 768
    activation: Activation = "gelu"


@dataclass(frozen=True)
class ClipConfig(Validated):
    vision: ClipVisionConfig = field(default_factory=ClipVisionConfig)
    text: ClipTextConfig = field(default_factory=ClipTextConfig)


@dataclass(frozen=True)
class ClipHeadConfig(HeadConfig):
    """A head of a merged model. Its blocks have the encoder's width, heads and MLP."""

    embed_dim: PositiveInt = 768  # of what it learns, such as the text tower's


@dataclass(frozen=True)
class SamClipConfig(Validated):
    """A SAM with heads on its encoder, TEXT_HEAD among them."""

    sam: SamConfig = field(default_factory=SamConfig)
    heads: dict[str, ClipHeadConfig] = field(
        default_factory=lambda: {TEXT_HEAD: ClipHeadConfig()}, hash=False
    )
    text: ClipTextConfig = field(default_factory=ClipTextConfig)

    def __post_init__(self):
        super().__post_init__()
        if TEXT_HEAD not in self.heads:
            raise UserError(f"heads must have one named {TEXT_HEAD}, got {', '.join(self.heads)}")
