"""The three models: SAM, CLIP, and the two merged into one encoder with several heads.

Distillation compares what two of them give for a batch, `outputs`: "summary", one vector an image
[B, D], not always of unit length; "masks", a function of prompts, (points, labels) -> MaskOutput.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from samclip_jax.models.clip_head import ClipHead
from samclip_jax.models.clip_text import ClipText
from samclip_jax.models.clip_vision import ClipVision
from samclip_jax.models.config import SamClipConfig
from samclip_jax.models.image_encoder import ImageEncoder
from samclip_jax.models.mask_decoder import MaskDecoder
from samclip_jax.models.prompt_encoder import ABSENT, PromptEncoder

LOGIT_SCALE = math.log(100)  # where CLIP clips its own (arXiv 2103.00020, section 2.5)


def unit(x):  # [..., D] -> [..., D]
    """x / |x| in float32; a zero vector stays zero and has zero gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, -1, keepdims=True)
    return x * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


class Sam(nnx.Module):
    """Segment Anything (segment_anything.modeling.Sam)."""

    OUTPUTS = ("masks",)

    def __init__(self, config, rngs):
        self.config = config
        width = config.encoder.out_channels
        self.encoder = ImageEncoder(config.encoder, rngs)
        self.prompt_encoder = PromptEncoder(width, config.mask_decoder.mask_channels, rngs)
        self.mask_decoder = MaskDecoder(width, config.mask_decoder, rngs)

    def encode(self, images, sizes=None, dtype=jnp.float32, remat=False):
        """uint8 [B, H, W, 3] -> EncoderOutput. Normalised, then zero outside `sizes`.

        sizes: int [B, 2], height and width in px of the photograph at the top left.
        """
        config = self.encoder.config
        x = (images.astype(jnp.float32) - jnp.array(config.mean)) / jnp.array(config.std)
        if sizes is not None:
            rows = jnp.arange(x.shape[1])[None, :, None] < sizes[:, 0, None, None]
            columns = jnp.arange(x.shape[2])[None, None] < sizes[:, 1, None, None]
            x = jnp.where((rows & columns)[..., None], x, 0)
        return self.encoder(x.astype(dtype), remat)

    def outputs(self, batch, names, dtype, remat=False):
        """{name: output} of one pass of the encoder over {"image", "size" where it has one}."""
        encoded = self.encode(batch["image"], batch.get("size"), dtype, remat)
        return {name: self.output(name, encoded, remat) for name in names}

    def output(self, name, encoded, remat):
        assert name == "masks", name
        return functools.partial(self.predict_masks, encoded.embedding)

    def predict_masks(self, embedding, points, labels, masks=None):
        """Masks for prompts, MaskOutput.

        embedding [B, h, w, C]; points float [B, P, N, 2]: x, y in px of the encoder's input;
        labels int [B, P, N], see prompt_encoder; masks: logits [B, P, 4h, 4w] of an earlier
        answer, or None. In the original a prompt without a box ends in one NOT_A_POINT.
        """
        h, w = embedding.shape[1:3]
        patch = self.encoder.config.patch
        sparse = self.prompt_encoder.points(points, labels, (h * patch, w * patch))
        if masks is None:
            dense = self.prompt_encoder.no_mask[...]
        else:
            dense = self.prompt_encoder.masks(masks)
        image_pe = self.prompt_encoder.grid(h, w)
        return self.mask_decoder(embedding, image_pe, sparse, dense, labels != ABSENT)


class Clip(nnx.Module):
    """CLIP: two towers into one space."""

    OUTPUTS = ("summary",)

    def __init__(self, config, rngs):
        self.config = config
        self.vision = ClipVision(config.vision, rngs)
        self.text = ClipText(config.text, rngs)
        self.logit_scale = nnx.Param(jnp.float32(LOGIT_SCALE))  # log of what multiplies cosines

    def outputs(self, batch, names, dtype, remat=False):
        """{name: output} for {"image": uint8 [B, H, W, 3]}."""
        return {name: self.encode_image(batch["image"], dtype) for name in names}

    def encode_image(self, images, dtype=jnp.float32):
        """uint8 [B, H, W, 3] -> unit [B, D], resized to the tower's own size."""
        return unit(self.vision(self.vision.preprocess(images, dtype)))

    def encode_dense(self, images, dtype=jnp.float32, values=False):
        """uint8 [B, H, W, 3] -> unit [B, h, w, D], the patch tokens; see ClipVision.dense."""
        return unit(self.vision.dense(self.vision.preprocess(images, dtype), values))

    def encode_text(self, tokens, dtype=jnp.float32):
        """int [N, T] -> unit [N, D]."""
        return unit(self.text(tokens, dtype))


class SamClip(Sam):
    """SAM-CLIP (arXiv 2310.15308): one encoder, SAM's heads, a CLIP head, CLIP's text tower."""

    OUTPUTS = ("summary", "masks")

    def __init__(self, config, rngs):
        super().__init__(config.sam, rngs)
        self.clip_head = ClipHead(config.clip_head, config.sam.encoder, rngs)
        self.text = ClipText(config.text, rngs)
        self.logit_scale = nnx.Param(jnp.float32(LOGIT_SCALE))  # the CLIP teacher's
        self.config = config

    def output(self, name, encoded, remat):
        if name == "summary":
            return self.clip_head(encoded.tokens, remat).pooled
        return super().output(name, encoded, remat)

    def encode_image(self, images, dtype=jnp.float32):
        """uint8 [B, H, W, 3] -> unit [B, D], from the CLIP head."""
        return unit(self.clip_head(self.encode(images, dtype=dtype).tokens).pooled)

    def encode_dense(self, images, dtype=jnp.float32):
        """uint8 [B, H, W, 3] -> unit [B, h, w, D], every patch in the text space."""
        return unit(self.clip_head(self.encode(images, dtype=dtype).tokens).dense)

    def encode_text(self, tokens, dtype=jnp.float32):
        """int [N, T] -> unit [N, D]."""
        return unit(self.text(tokens, dtype))


def combine(sam_config, sam_params, clip_config, clip_params, head_config, seed=0):
    """The model that training starts from: (SamClipConfig, flat params).

    SAM's weights, CLIP's text tower and logit_scale, and a CLIP head whose layers are copies of the
    encoder's last block; only its LayerNorm and MLP are random (SAM-CLIP appendix A).
    """
    config = SamClipConfig(sam_config, head_config, clip_config.text)
    head = nnx.state(ClipHead(head_config, sam_config.encoder, nnx.Rngs(seed)))
    head = traverse_util.flatten_dict(nnx.to_pure_dict(head), sep="/")
    for name in head:
        if name.startswith("blocks/"):
            last = sam_params[f"encoder/global_{name}"][-1:]
            head[name] = jnp.repeat(last, head_config.depth, 0)
    head = {f"clip_head/{name}": leaf for name, leaf in head.items()}
    text = {name: leaf for name, leaf in clip_params.items() if name.startswith("text/")}
    return config, {**sam_params, **text, "logit_scale": clip_params["logit_scale"], **head}


def same_texts(params, teacher):
    """Whether two flat models have the same text tower, once rounded to the teacher's dtypes."""
    towers = [{k: v for k, v in x.items() if k.startswith("text/")} for x in (params, teacher)]
    if jax.tree.map(jnp.shape, towers[0]) != jax.tree.map(jnp.shape, towers[1]):
        return False

    def equal(a, b):
        return jnp.stack([jnp.array_equal(a[k].astype(b[k].dtype), b[k]) for k in a]).all()

    return bool(jax.jit(equal)(*towers))
