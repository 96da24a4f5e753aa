"""CLIP's image tower."""

import jax
import jax.numpy as jnp
from flax import nnx

from samclip_jax.models.layers import ClipBlock, LayerNorm, Linear, PatchConv, normal, scan, stack
from samclip_jax.ops.resize import resize_grid, resize_images


class ClipVision(nnx.Module):
    """OpenAI's VisionTransformer, class-token pooling; float32 parameters, any input size."""

    def __init__(self, config, rngs):
        self.config = config
        grid = config.image_size // config.patch
        self.patch_embed = PatchConv(config.patch, 3, config.width, rngs, bias=False)
        self.class_token = normal(rngs, (config.width,))
        self.class_pos_embed = normal(rngs, (config.width,))
        self.pos_embed = normal(rngs, (grid, grid, config.width))
        self.pre_norm = LayerNorm(config.width, 1e-5)
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

    def preprocess(self, images, dtype=jnp.float32, grid=None):  # uint8 -> [B, H, W, 3]
        """Resized to the tower's own image size, or to a grid (h, w) of its patches; normalised."""
        size = [self.config.patch * n for n in grid] if grid else [self.config.image_size] * 2
        images = resize_images(images, size)
        return ((images - jnp.array(self.config.mean)) / jnp.array(self.config.std)).astype(dtype)

    def __call__(self, images):  # float [B, H, W, 3], normalised -> [B, embed_dim]
        return self.project(self.tokens(images)[:, 0])

    def dense(self, images, values=False):  # -> [B, h, w, embed_dim]
        """The patch tokens in the text space: as the last block leaves them or (values=True) as its
        value path alone does, without attention, residual and MLP (after MaskCLIP, 2112.01071)."""
        tokens = self.last_values(images) if values else self.tokens(images)
        h, w = (size // self.config.patch for size in images.shape[1:3])
        return self.project(tokens[:, 1:]).reshape(images.shape[0], h, w, -1)

    def tokens(self, images):  # -> [B, 1 + h * w, width], the class token first
        return scan(self.blocks, self.embed(images), remat=False)

    def embed(self, images):
        x = self.patch_embed(images)
        x = x + resize_grid(self.pos_embed[...], x.shape[1:3]).astype(x.dtype)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        first = (self.class_token[...] + self.class_pos_embed[...]).astype(x.dtype)
        first = jnp.broadcast_to(first, (x.shape[0], 1, x.shape[-1]))
        return self.pre_norm(jnp.concatenate([first, x], 1))

    def last_values(self, images):
        graph, state = nnx.split(self.blocks)
        before = jax.tree.map(lambda leaf: leaf[:-1], state)
        last = jax.tree.map(lambda leaf: leaf[-1], state)
        x = scan(nnx.merge(graph, before), self.embed(images), remat=False)
        return nnx.merge(graph, last).values(x)

    def project(self, tokens):  # [..., width] -> [..., embed_dim]
        tokens = self.post_norm(tokens)
        return tokens if self.projection is None else self.projection(tokens)
