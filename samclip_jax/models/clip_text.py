"""CLIP's text tower."""

import jax.numpy as jnp
from flax import nnx

from samclip_jax.models.layers import ClipBlock, LayerNorm, Linear, normal, scan, stack


class ClipText(nnx.Module):
    """OpenAI's causal text transformer, pooled at the end token (the highest id)."""

    def __init__(self, config, rngs):
        self.token_embed = normal(rngs, (config.vocab_size, config.width))
        self.pos_embed = normal(rngs, (config.context_length, config.width), std=0.01)
        self.blocks = stack(
            lambda rngs: ClipBlock(
                config.width, config.heads, config.mlp_width, config.activation, rngs
            ),
            (config.depth,),
            rngs,
        )
        self.post_norm = LayerNorm(config.width, 1e-5)
        projected = config.embed_dim is not None
        self.projection = (
            Linear(config.width, config.embed_dim, rngs, bias=False) if projected else None
        )

    def __call__(self, tokens, dtype=jnp.float32):  # int [N, T <= context] -> [N, embed_dim]
        length = tokens.shape[1]
        x = (self.token_embed[...][tokens] + self.pos_embed[:length]).astype(dtype)
        causal = jnp.tril(jnp.ones((length, length), bool))
        x = scan(self.blocks, x, remat=False, call=lambda block, x: block(x, causal))
        pooled = self.post_norm(x[jnp.arange(x.shape[0]), tokens.argmax(-1)])
        return pooled if self.projection is None else self.projection(pooled)
