"""SAM's image encoder: ViT-Det, windowed attention with a few global blocks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from samclip_jax import sharding
from samclip_jax.models.layers import (
    Conv,
    LayerNorm,
    Linear,
    Mlp,
    PatchConv,
    checkpoint,
    normal,
    scan,
    stack,
)
from samclip_jax.ops.attention import self_attention
from samclip_jax.ops.resize import resize_grid


class EncoderOutput(NamedTuple):
    tokens: jax.Array  # [B, h, w, width], before the neck: what the heads read
    embedding: jax.Array  # [B, h, w, out_channels], what the mask decoder reads


class ViTDetBlock(nnx.Module):
    """Pre-norm block, attention in windows or (window 0) over the whole grid.

    `table_size`: rows and columns that the relative-position tables are made for.
    Windows are padded with zeros after norm1; the padding takes part, un-masked, as in SAM.
    """

    def __init__(self, width, heads, mlp_width, window, table_size, rngs):
        self.heads, self.window = heads, window
        self.norm1 = LayerNorm(width, 1e-6)
        self.qkv = Linear(width, 3 * width, rngs)
        self.proj = Linear(width, width, rngs)
        self.rel_pos_h = normal(rngs, (2 * table_size - 1, width // heads))
        self.rel_pos_w = normal(rngs, (2 * table_size - 1, width // heads))
        self.norm2 = LayerNorm(width, 1e-6)
        self.mlp = Mlp((width, mlp_width, width), "gelu", rngs)

    def __call__(self, x):  # [B, h, w, width]
        x = x + self.attend(self.norm1(x))
        return sharding.shard_rows(x + self.mlp(self.norm2(x)))

    def attend(self, x):  # [B, h, w, width]
        shape = x.shape
        if self.window:
            x = to_windows(x, self.window)
        rel_pos = self.rel_pos_h[...], self.rel_pos_w[...]
        x = self_attention(self.qkv(x), self.heads, rel_pos, whole=self.window > 0)
        if self.window:
            x = from_windows(x, shape)
        return self.proj(x)


def to_windows(x, window):  # [B, h, w, C] -> [B * windows, window, window, C]
    b, h, w, c = x.shape
    rows, columns = -(-h // window), -(-w // window)
    x = jnp.pad(x, ((0, 0), (0, rows * window - h), (0, columns * window - w), (0, 0)))
    x = x.reshape(b, rows, window, columns, window, c).swapaxes(2, 3)
    x = sharding.pad_parts(x.reshape(b, rows * columns, window, window, c))
    return sharding.shard_parts(x.reshape(-1, window, window, c))


def from_windows(x, shape):  # [B * windows, window, window, C] -> shape = [B, h, w, C]
    b, h, w, c = shape
    window = x.shape[1]
    rows, columns = -(-h // window), -(-w // window)
    x = x.reshape(b, -1, window, window, c)[:, : rows * columns]
    x = x.reshape(b, rows, columns, window, window, c).swapaxes(2, 3)
    return x.reshape(b, rows * window, columns * window, c)[:, :h, :w]


class Neck(nnx.Module):
    """1 x 1 convolution, LayerNorm2d, 3 x 3 convolution, LayerNorm2d; no biases."""

    def __init__(self, width, channels, rngs):
        self.conv1 = Linear(width, channels, rngs, bias=False)
        self.norm1 = LayerNorm(channels, 1e-6)
        self.conv2 = Conv(channels, channels, rngs)
        self.norm2 = LayerNorm(channels, 1e-6)

    def __call__(self, x):  # [B, h, w, width] -> [B, h, w, channels]
        return self.norm2(self.conv2(self.norm1(self.conv1(x))))


class ImageEncoder(nnx.Module):
    """segment_anything ImageEncoderViT, any input size that the patch divides."""

    def __init__(self, config, rngs):
        self.config = config
        grid = config.image_size // config.patch
        sizes = (config.width, config.heads, config.mlp_width)
        windowed = config.depth // config.groups - 1
        self.patch_embed = PatchConv(config.patch, 3, config.width, rngs)
        self.pos_embed = normal(rngs, (grid, grid, config.width))
        self.windowed_blocks = stack(
            lambda rngs: ViTDetBlock(*sizes, config.window, config.window, rngs),
            (config.groups, windowed),
            rngs,
        )
        self.global_blocks = stack(
            lambda rngs: ViTDetBlock(*sizes, 0, grid, rngs), (config.groups,), rngs
        )
        self.neck = Neck(config.width, config.out_channels, rngs)

    def __call__(self, images, remat=False):  # float [B, H, W, 3], normalised
        x = self.patch_embed(images)
        x = sharding.shard_rows(x + resize_grid(self.pos_embed[...], x.shape[1:3]).astype(x.dtype))

        def group(blocks, x):
            x = scan(blocks["windowed"], x, remat)
            block = blocks["global"].__call__
            return (checkpoint(block) if remat else block)(x)

        blocks = nnx.Dict({"windowed": self.windowed_blocks, "global": self.global_blocks})
        x = scan(blocks, x, remat=False, call=group)
        return EncoderOutput(tokens=x, embedding=self.neck(x))
