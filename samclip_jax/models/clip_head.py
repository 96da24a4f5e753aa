"""A head on SAM's encoder: from its tokens to the embeddings of an image and of its patches."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from samclip_jax.models.image_encoder import ViTDetBlock
from samclip_jax.models.layers import LayerNorm, Mlp, scan, stack, unit
from samclip_jax.ops.attention import attention as plain_attention
from samclip_jax.ops.attention import self_attention
from samclip_jax.ops.correlation import correlated

Attention = Literal["softmax", "values", "recursive"]

POOLINGS = {"max": lambda x: x.max((1, 2)), "mean": lambda x: x.mean((1, 2))}


class ClipHeadOutput(NamedTuple):
    pooled: jax.Array  # [B, D]: pool -> LayerNorm -> MLP, the image
    dense: jax.Array  # [B, h, w, D]: LayerNorm -> MLP for every patch


class ClipHead(nnx.Module):
    """Transformer layers -> pooling -> LayerNorm -> MLP with two hidden layers (appendix A).

    It reads the encoder's tokens before the neck, whose width its layers share. `pooled` and
    `dense` do not commute: the MLP comes after the pooling. Neither is of unit length.
    """

    def __init__(self, config, encoder, rngs):
        grid = encoder.image_size // encoder.patch
        self.pooling = config.pooling
        self.blocks = stack(
            lambda rngs: ViTDetBlock(
                encoder.width, encoder.heads, encoder.mlp_width, 0, grid, rngs
            ),
            (config.depth,),
            rngs,
        )
        self.norm = LayerNorm(encoder.width, 1e-6)
        hidden = (config.mlp_hidden,) * 2
        self.mlp = Mlp((encoder.width, *hidden, config.embed_dim), "gelu", rngs)

    def __call__(self, tokens, remat=False, **attention):  # [B, h, w, width]
        return ClipHeadOutput(*map(self.mlp, self.features(tokens, remat, **attention)))

    def features(self, tokens, remat=False, attention="softmax", blocks=1):
        """The same before the MLP: [B, width], [B, h, w, width].

        attention: how the last `blocks` layers attend, see `attend`; learnt is "softmax".
        """
        if attention == "softmax":
            x = scan(self.blocks, tokens, remat)
        else:
            graph, state = nnx.split(self.blocks)
            usual = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[:-blocks], state))
            last = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[-blocks:], state))
            x = scan(usual, tokens, remat)
            x = scan(last, x, remat, functools.partial(attended_by, attention))
        return self.norm(POOLINGS[self.pooling](x)), self.norm(x)


def attended_by(attention, block, x):
    """A block of the head with another attention than it has learnt, for maps with less of the
    whole image in every patch."""
    x = x + attend(attention, block, block.norm1(x))
    return x + block.mlp(block.norm2(x))


def attend(attention, block, x):  # [B, h, w, width] -> [B, h, w, width]
    """ "values": softmax(v v^T / sqrt(D)) v. "recursive": s, the block's own answer, of unit length
    in each head, says which values go together, see ops/correlation.py (RADSeg's self-correlating
    recursive attention)."""
    qkv, heads = block.qkv(x), block.heads
    v = in_heads(jnp.split(qkv, 3, -1)[2], heads)
    if attention == "values":
        y = plain_attention(v, v, v, scale=v.shape[-1] ** -0.5)
    else:
        rel_pos = block.rel_pos_h[...], block.rel_pos_w[...]
        answer = block.proj(self_attention(qkv, heads, rel_pos))
        s, v = (x.swapaxes(1, 2) for x in (unit(in_heads(answer, heads)), v))
        y = correlated(s, v).swapaxes(1, 2)
    return block.proj(y.reshape(x.shape).astype(x.dtype))


def in_heads(x, heads):  # [B, h, w, C] -> [B, h * w, heads, C / heads]
    return x.reshape(len(x), -1, heads, x.shape[-1] // heads)
