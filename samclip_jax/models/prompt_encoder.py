"""SAM's prompt encoder: points, boxes (as their two corners) and low-resolution masks."""

import jax
import jax.numpy as jnp
from flax import nnx

from samclip_jax.models.layers import Buffer, LayerNorm, Linear, PatchConv, gelu, normal

# Point labels, as SAM's own (0 to 3, -1); ABSENT marks a slot that holds no token at all.
BACKGROUND, FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, NOT_A_POINT, ABSENT = 0, 1, 2, 3, -1, -2


class PromptEncoder(nnx.Module):
    """segment_anything PromptEncoder. A box is two points labelled 2 and 3."""

    def __init__(self, width, mask_channels, rngs):
        self.gaussian = Buffer(normal(rngs, (2, width // 2), std=1.0)[...])
        self.point_embeddings = normal(rngs, (4, width), std=1.0)  # indexed by label
        self.not_a_point = normal(rngs, (width,), std=1.0)
        self.no_mask = normal(rngs, (width,), std=1.0)
        self.mask_conv1 = PatchConv(2, 1, mask_channels // 4, rngs)
        self.mask_norm1 = LayerNorm(mask_channels // 4, 1e-6)
        self.mask_conv2 = PatchConv(2, mask_channels // 4, mask_channels, rngs)
        self.mask_norm2 = LayerNorm(mask_channels, 1e-6)
        self.mask_conv3 = Linear(mask_channels, width, rngs)

    def points(self, coords, labels, size):
        """Points and box corners to tokens.

        coords [..., N, 2]: x, y in px of the encoder's input, whose size is (height, width);
        labels int [..., N]: see above. Returns tokens [..., N, width], float32. The token of an
        ABSENT slot means nothing: mask it.
        """
        position = self.fourier((coords + 0.5) / jnp.array([size[1], size[0]], jnp.float32))
        labels = labels[..., None]
        learned = self.point_embeddings[...][jnp.maximum(labels[..., 0], 0)]
        return jnp.where(labels < 0, self.not_a_point[...], position + learned)

    def masks(self, masks):  # [..., 4h, 4w] mask logits -> [..., h, w, width]
        """Mask prompts, at four times the resolution of the embedding, to dense embeddings."""
        x = gelu(self.mask_norm1(self.mask_conv1(masks[..., None])))
        x = gelu(self.mask_norm2(self.mask_conv2(x)))
        return self.mask_conv3(x)

    def grid(self, h, w):  # -> [h, w, width]
        """Positional encoding of the image embedding's cells (get_dense_pe)."""
        y, x = jnp.meshgrid((jnp.arange(h) + 0.5) / h, (jnp.arange(w) + 0.5) / w, indexing="ij")
        return self.fourier(jnp.stack([x, y], -1))

    def fourier(self, coords):  # [..., 2] in [0, 1] -> [..., width], float32
        gaussian = jax.lax.stop_gradient(self.gaussian[...])
        angles = 2 * jnp.pi * jnp.matmul(2 * coords - 1, gaussian, precision="highest")
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
