"""Resizing as PyTorch does it: half-pixel centres, Keys cubic with a = -0.75, no antialias."""

import jax
import jax.numpy as jnp


def resize_grid(table, size):  # [h, w, C], (H, W) -> [H, W, C]
    """A positional table at another grid, F.interpolate(mode="bicubic"). Float32."""
    if table.shape[:2] == tuple(size):
        return table
    shape = (*size, table.shape[-1])
    return jax.image.resize(table.astype(jnp.float32), shape, "cubic-pytorch", antialias=False)


def resize_line(table, length):  # [n, C], -> [length, C]
    """A relative-position table at another length, F.interpolate(mode="linear"). Float32."""
    if table.shape[0] == length:
        return table
    shape = (length, table.shape[-1])
    return jax.image.resize(table.astype(jnp.float32), shape, "linear", antialias=False)


def resize_maps(maps, size):  # [..., h, w, C], (H, W) -> [..., H, W, C]
    """Masks, logits or features at another size, F.interpolate(mode="bilinear"). Float32."""
    shape = (*maps.shape[:-3], *size, maps.shape[-1])
    return jax.image.resize(maps.astype(jnp.float32), shape, "linear", antialias=False)


def resize_images(images, size):  # uint8 [B, h, w, C], (H, W) -> float32 [B, H, W, C] in [0, 255]
    """Photographs at another size, antialiased bicubic (as Pillow, up to its rounding)."""
    images = images.astype(jnp.float32)
    if images.shape[1:3] == tuple(size):
        return images
    shape = (images.shape[0], *size, images.shape[-1])
    return jnp.clip(jax.image.resize(images, shape, "cubic", antialias=True), 0, 255)
