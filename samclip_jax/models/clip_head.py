"""A head on SAM's encoder: from its tokens to the embeddings of an image and of its patches."""

from typing import NamedTuple

import jax
from flax import nnx

from samclip_jax.models.image_encoder import ViTDetBlock
from samclip_jax.models.layers import LayerNorm, Mlp, scan, stack

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

    def __call__(self, tokens, remat=False):  # [B, h, w, width]
        x = scan(self.blocks, tokens, remat)
        pooled = POOLINGS[self.pooling](x)
        return ClipHeadOutput(self.mlp(self.norm(pooled)), self.mlp(self.norm(x)))
