"""SAM's mask decoder: a two-way transformer between prompt tokens and the image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from samclip_jax import sharding
from samclip_jax.models.layers import LayerNorm, Linear, Mlp, Upscale, gelu, normal, stack
from samclip_jax.ops.attention import attention


class MaskOutput(NamedTuple):
    low_res_masks: jax.Array  # float32 [B, P, masks, 4h, 4w], logits; mask 0 is the single mask
    iou: jax.Array  # float32 [B, P, masks], the decoder's estimate of each mask's IoU


class DecoderAttention(nnx.Module):
    """Attention with an inner width (segment_anything.modeling.transformer.Attention)."""

    def __init__(self, width, inner, heads, rngs):
        self.heads = heads
        self.q, self.k, self.v = (Linear(width, inner, rngs) for _ in range(3))
        self.out = Linear(inner, width, rngs)

    def __call__(self, q, k, v, mask=None):  # [B, N, width], [B, M, width], mask [B, M]
        q, k, v = (
            layer(x).reshape(*x.shape[:2], self.heads, -1)
            for layer, x in ((self.q, q), (self.k, k), (self.v, v))
        )
        mask = None if mask is None else mask[:, None, None]
        out = attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        return self.out(out.reshape(*out.shape[:2], -1))


class TwoWayBlock(nnx.Module):
    """TwoWayAttentionBlock; the first one has no positional encoding in its self-attention."""

    def __init__(self, width, heads, mlp_width, first, rngs):
        self.first = first
        self.self_attention = DecoderAttention(width, width, heads, rngs)
        self.norm1 = LayerNorm(width, 1e-5)
        self.token_to_image = DecoderAttention(width, width // 2, heads, rngs)
        self.norm2 = LayerNorm(width, 1e-5)
        self.mlp = Mlp((width, mlp_width, width), "relu", rngs)
        self.norm3 = LayerNorm(width, 1e-5)
        self.image_to_token = DecoderAttention(width, width // 2, heads, rngs)
        self.norm4 = LayerNorm(width, 1e-5)

    def __call__(self, tokens, image, tokens_pe, image_pe, present):
        if self.first:
            tokens = self.self_attention(tokens, tokens, tokens, present)
        else:
            q = tokens + tokens_pe
            tokens = tokens + self.self_attention(q, q, tokens, present)
        tokens = self.norm1(tokens)
        k = image + image_pe
        tokens = self.norm2(tokens + self.token_to_image(tokens + tokens_pe, k, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        q = tokens + tokens_pe
        image = self.norm4(image + self.image_to_token(k, q, tokens, present))
        return tokens, image


class MaskDecoder(nnx.Module):
    """segment_anything MaskDecoder; all masks always come out, mask 0 and the multimasks."""

    def __init__(self, width, config, rngs):
        masks = config.multimask_outputs + 1
        self.iou_token = normal(rngs, (1, width), std=1.0)
        self.mask_tokens = normal(rngs, (masks, width), std=1.0)
        self.blocks = nnx.Dict(
            {
                f"block{i}": TwoWayBlock(width, config.heads, config.mlp_width, i == 0, rngs)
                for i in range(config.depth)
            }
        )
        self.final_attention = DecoderAttention(width, width // 2, config.heads, rngs)
        self.final_norm = LayerNorm(width, 1e-5)
        self.upscale1 = Upscale(width, width // 4, rngs)
        self.upscale_norm = LayerNorm(width // 4, 1e-6)
        self.upscale2 = Upscale(width // 4, width // 8, rngs)
        self.hypernetworks = stack(
            lambda rngs: Mlp((width, width, width, width // 8), "relu", rngs), (masks,), rngs
        )
        hidden = (config.iou_width,) * (config.iou_depth - 1)
        self.iou_head = Mlp((width, *hidden, masks), "relu", rngs)

    def __call__(self, embedding, image_pe, sparse, dense, present):
        """Masks for every prompt of every image.

        embedding [B, h, w, C]; image_pe [h, w, C]; sparse [B, P, N, C], present bool [B, P, N]
        says which of its tokens exist; dense [C] or [B, P, h, w, C].
        """
        b, h, w, c = embedding.shape
        prompts = sparse.shape[1]
        dtype = embedding.dtype
        image = jnp.broadcast_to(embedding[:, None] + dense.astype(dtype), (b, prompts, h, w, c))
        image = sharding.shard_parts(image.reshape(b * prompts, h * w, c))
        image_pe = image_pe.astype(dtype).reshape(1, h * w, c)

        own = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]])
        own = jnp.broadcast_to(own, (b * prompts, *own.shape))
        sparse = sparse.reshape(b * prompts, -1, c)
        tokens_pe = tokens = jnp.concatenate([own, sparse], 1).astype(dtype)
        present = present.reshape(b * prompts, -1)
        present = jnp.concatenate([jnp.ones(own.shape[:2], bool), present], 1)

        for i in range(len(self.blocks)):
            tokens, image = self.blocks[f"block{i}"](tokens, image, tokens_pe, image_pe, present)
        attended = self.final_attention(tokens + tokens_pe, image + image_pe, image)
        tokens = self.final_norm(tokens + attended)

        image = gelu(self.upscale_norm(self.upscale1(image.reshape(b * prompts, h, w, c))))
        image = gelu(self.upscale2(image))  # [B * P, h, w, 2, 2, 2, 2, c / 8]
        masks = self.mask_tokens.shape[0]
        graph, state = nnx.split(self.hypernetworks)
        kernels = jax.vmap(lambda state, x: nnx.merge(graph, state)(x), (0, 1), 1)(
            state, tokens[:, 1 : 1 + masks]
        )
        logits = jnp.einsum(
            "bmc,bhwikjlc->bmhijwkl", kernels, image, preferred_element_type=jnp.float32
        )
        iou = self.iou_head(tokens[:, 0]).astype(jnp.float32)
        return MaskOutput(
            logits.reshape(b, prompts, masks, 4 * h, 4 * w), iou.reshape(b, prompts, masks)
        )
