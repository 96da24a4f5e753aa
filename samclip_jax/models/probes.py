"""What is trained on frozen features: classifiers of images and of every pixel.

The segmentation heads are those of CVNets (apple/ml-cvnets, cvnets/models/segmentation/heads), the
code base of SAM-CLIP's authors.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from samclip_jax.models.layers import LayerNorm

POOLS = (1, 2, 3, 6)  # PSPNet's grids
RATES = (6, 12, 18)  # DeepLabv3's dilations
CHANNELS = 512  # of both, in CVNets' recipes
DROPOUT = 0.1
MOMENTUM = 0.1  # of running averages, as torch has it


class Linear(nnx.Module):
    """Of the pooled feature, or (CVNets' simple_seg_head) of every patch."""

    def __init__(self, channels, classes, rngs):
        self.classifier = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, x):  # [..., C] -> [..., classes]
        return self.classifier(x)


class Attentive(nnx.Module):
    """A learnt query that attends to all patches, LayerNorm, a linear layer."""

    def __init__(self, channels, classes, rngs, heads=8):
        self.query = nnx.Param(0.02 * jax.random.normal(rngs.params(), (channels,)))
        self.attention = nnx.MultiHeadAttention(heads, channels, decode=False, rngs=rngs)
        self.norm = LayerNorm(channels, 1e-6)
        self.classifier = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, patches):  # [B, h, w, C] -> [B, classes]
        keys = patches.reshape(len(patches), -1, patches.shape[-1])
        query = jnp.broadcast_to(self.query[...], (len(keys), 1, keys.shape[-1]))
        return self.classifier(self.norm(self.attention(query, keys)[:, 0]))


class BatchNorm(nnx.Module):
    """torch.nn.BatchNorm2d, by the batch in training and by running averages in evaluation."""

    def __init__(self, channels):
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.var = (nnx.BatchStat(f(channels)) for f in (jnp.zeros, jnp.ones))
        self.use_running_average = False  # which train() and eval() set

    def __call__(self, x):  # [B, h, w, C] -> [B, h, w, C]
        mean, var = self.mean[...], self.var[...]
        if not self.use_running_average:
            mean = x.mean((0, 1, 2))
            var = jnp.square(x - mean).mean((0, 1, 2))
            count = x.size // x.shape[-1]
            self.mean[...] += MOMENTUM * (jax.lax.stop_gradient(mean) - self.mean[...])
            unbiased = jax.lax.stop_gradient(var) * (count / max(1, count - 1))
            self.var[...] += MOMENTUM * (unbiased - self.var[...])
        return (x - mean) * jax.lax.rsqrt(var + 1e-5) * self.scale[...] + self.bias[...]


class ConvNormRelu(nnx.Module):
    def __init__(self, inputs, outputs, rngs, kernel=1, dilation=1):
        options = dict(use_bias=False, kernel_dilation=dilation, rngs=rngs)
        self.conv = nnx.Conv(inputs, outputs, (kernel, kernel), **options)
        self.norm = BatchNorm(outputs)

    def __call__(self, x):  # [B, h, w, inputs] -> [B, h, w, outputs]
        return nnx.relu(self.norm(self.conv(x)))


class DeepLabV3(nnx.Module):
    """Atrous spatial pyramid pooling (arXiv 1706.05587): one pixel, three dilations, the image."""

    def __init__(self, channels, classes, rngs):
        self.pixel = ConvNormRelu(channels, CHANNELS, rngs)
        self.dilated = nnx.Dict(
            {str(rate): ConvNormRelu(channels, CHANNELS, rngs, 3, rate) for rate in RATES}
        )
        self.image = ConvNormRelu(channels, CHANNELS, rngs)
        self.project = ConvNormRelu(5 * CHANNELS, CHANNELS, rngs)
        self.dropout = nnx.Dropout(DROPOUT, broadcast_dims=(1, 2), rngs=rngs)
        self.classifier = nnx.Linear(CHANNELS, classes, rngs=rngs)

    def __call__(self, x):  # [B, h, w, C] -> [B, h, w, classes]
        image = self.image(x.mean((1, 2), keepdims=True))
        image = jnp.broadcast_to(image, (*x.shape[:3], CHANNELS))
        parts = [self.pixel(x), *(self.dilated[str(rate)](x) for rate in RATES), image]
        return self.classifier(self.dropout(self.project(jnp.concatenate(parts, -1))))


class PSPNet(nnx.Module):
    """Pyramid scene parsing (arXiv 1612.01105): beside every pixel what coarse grids hold."""

    def __init__(self, channels, classes, rngs):
        reduced = max(16, channels // len(POOLS) // 16 * 16)
        self.grids = nnx.Dict({str(grid): ConvNormRelu(channels, reduced, rngs) for grid in POOLS})
        self.fusion = ConvNormRelu(channels + len(POOLS) * reduced, CHANNELS, rngs, 3)
        self.dropout = nnx.Dropout(DROPOUT, broadcast_dims=(1, 2), rngs=rngs)
        self.classifier = nnx.Linear(CHANNELS, classes, rngs=rngs)

    def __call__(self, x):  # [B, h, w, C] -> [B, h, w, classes]
        size = x.shape[1:3]
        coarse = [enlarged(self.grids[str(grid)](pooled(x, (grid, grid))), size) for grid in POOLS]
        return self.classifier(self.dropout(self.fusion(jnp.concatenate([x, *coarse], -1))))


def pooled(x, size):  # [B, h, w, C] -> [B, *size, C]
    """torch's adaptive average pooling."""
    rows, columns = (_averages(*sides) for sides in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x)


def enlarged(x, size):  # [B, h, w, C] -> [B, *size, C]
    """torch's bilinear interpolation with align_corners=True, CVNets' of all maps."""
    rows, columns = (_lines(*sides) for sides in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x)


def _averages(inputs, outputs):  # -> float32 [outputs, inputs]
    matrix = np.zeros((outputs, inputs), np.float32)
    for i in range(outputs):
        window = slice(i * inputs // outputs, -(-(i + 1) * inputs // outputs))
        matrix[i, window] = 1 / (window.stop - window.start)
    return matrix


def _lines(inputs, outputs):  # -> float32 [outputs, inputs]
    place = np.linspace(0, inputs - 1, outputs) if outputs > 1 else np.zeros(1)
    matrix = 1 - np.abs(place[:, None] - np.arange(inputs))
    return np.maximum(matrix, 0).astype(np.float32)
