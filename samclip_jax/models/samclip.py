"""The three models: SAM, CLIP, and the two merged into one encoder with several heads."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from samclip_jax.config import MASKS, TEXT_HEAD
from samclip_jax.models.clip_head import ClipHead
from samclip_jax.models.clip_text import ClipText
from samclip_jax.models.clip_vision import ClipVision
from samclip_jax.models.image_encoder import ImageEncoder
from samclip_jax.models.layers import unit
from samclip_jax.models.mask_decoder import MaskDecoder
from samclip_jax.models.prompt_encoder import ABSENT, PromptEncoder

LOGIT_SCALE = math.log(100)  # where CLIP clips its own (arXiv 2103.00020, section 2.5)


class Sam(nnx.Module):
    """Segment Anything (segment_anything.modeling.Sam)."""

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

    def __init__(self, config, rngs):
        self.config = config
        self.vision = ClipVision(config.vision, rngs)
        self.text = ClipText(config.text, rngs)
        self.logit_scale = nnx.Param(jnp.float32(LOGIT_SCALE))  # log of what multiplies cosines

    def encode_image(self, images, dtype=jnp.float32):
        """uint8 [B, H, W, 3] -> unit [B, D], resized to the tower's own size."""
        return unit(self.vision(self.vision.preprocess(images, dtype)))

    def encode_dense(self, images, dtype=jnp.float32, values=False, grid=None):
        """uint8 [B, H, W, 3] -> unit [B, h, w, D], the patch tokens; see ClipVision.dense.

        grid: (h, w), by default that of the tower's own image size.
        """
        return unit(self.vision.dense(self.vision.preprocess(images, dtype, grid), values))

    def encode_text(self, tokens, dtype=jnp.float32):
        """int [N, T] -> unit [N, D]."""
        return unit(self.text(tokens, dtype))


class SamClip(Sam):
    """SAM-CLIP (arXiv 2310.15308): one encoder, SAM's decoder, a CLIP head, CLIP's text tower.

    `heads` has the CLIP head, TEXT_HEAD, and those that learn from other teachers, by name.
    """

    def __init__(self, config, rngs):
        super().__init__(config.sam, rngs)
        self.heads = nnx.Dict(
            {name: ClipHead(head, config.sam.encoder, rngs) for name, head in config.heads.items()}
        )
        self.text = ClipText(config.text, rngs)
        self.logit_scale = nnx.Param(jnp.float32(LOGIT_SCALE))  # the CLIP teacher's
        self.config = config

    def outputs(self, batch, wanted, dtype, remat=False):
        """{(head, target): output} of one pass of the encoder, for these pairs and more.

        batch: {"image": uint8 [B, H, W, 3], "size" where it is padded}. The head "mask_decoder"
        gives "masks", (points, labels) -> MaskOutput; every one of `heads` "summary", [B, D], and
        "patches", [B, h, w, D].
        """
        encoded = self.encode(batch["image"], batch.get("size"), dtype, remat)
        outputs = {}
        for head in dict.fromkeys(head for head, _ in wanted):
            if head == MASKS:
                masks = functools.partial(self.predict_masks, encoded.embedding)
                outputs[head, "masks"] = masks
            else:
                pooled, dense = self.heads[head](encoded.tokens, remat)
                outputs |= {(head, "summary"): pooled, (head, "patches"): dense}
        return outputs

    @property
    def text_head(self):
        return self.heads[TEXT_HEAD]

    def encode_image(self, images, dtype=jnp.float32):
        """uint8 [B, H, W, 3] -> unit [B, D], from the CLIP head."""
        return unit(self.text_head(self.encode(images, dtype=dtype).tokens).pooled)

    def encode_dense(self, images, dtype=jnp.float32, **attention):
        """uint8 [B, H, W, 3] -> unit [B, h, w, D], every patch in the text space. attention: see
        ClipHead."""
        return unit(self.text_head(self.encode(images, dtype=dtype).tokens, **attention).dense)

    def encode_text(self, tokens, dtype=jnp.float32):
        """int [N, T] -> unit [N, D]."""
        return unit(self.text(tokens, dtype))


def start_params(config, params, clip_params=None, seed=0):
    """The flat params of `config`, a SamClipConfig, that training starts from.

    params: of a SAM, or of a merged model with some of the heads. A SAM gets the text tower and the
    logit_scale of clip_params. The layers of a new head are copies of the encoder's last block;
    its LayerNorm is new, its MLP random (SAM-CLIP appendix A).
    """
    started = dict(params)
    if "logit_scale" not in params:
        is_text = ("text/", "logit_scale")
        started |= {name: leaf for name, leaf in clip_params.items() if name.startswith(is_text)}
    new = [name for name in config.heads if f"heads/{name}/norm/scale" not in params]
    for number, head_name in enumerate(new):
        head = config.heads[head_name]
        state = nnx.state(ClipHead(head, config.sam.encoder, nnx.Rngs(seed + number)))
        for name, leaf in traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/").items():
            if name.startswith("blocks/"):
                leaf = jnp.repeat(params[f"encoder/global_{name}"][-1:], head.depth, 0)
            started[f"heads/{head_name}/{name}"] = leaf
    return started


def same_texts(params, teacher):
    """Whether two flat models have the same text tower, once rounded to the teacher's dtypes."""
    towers = [{k: v for k, v in x.items() if k.startswith("text/")} for x in (params, teacher)]
    if jax.tree.map(jnp.shape, towers[0]) != jax.tree.map(jnp.shape, towers[1]):
        return False

    def equal(a, b):
        return jnp.stack([jnp.array_equal(a[k].astype(b[k].dtype), b[k]) for k in a]).all()

    return bool(jax.jit(equal)(*towers))
