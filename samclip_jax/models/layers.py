"""The few layers everything is made of. They compute in the dtype of the activations they get;
parameters stay float32, LayerNorm and softmax compute in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from samclip_jax import sharding
from samclip_jax.ops.attention import ATTENDED, attention, self_attention


class Buffer(nnx.Variable):
    """A constant that belongs to the weights: saved with them, never trained."""


def unit(x):  # [..., D] -> [..., D]
    """x / |x| in float32; a zero vector stays zero and has zero gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, -1, keepdims=True)
    return x * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


def gelu(x):
    """x * Phi(x), exact as in SAM and OpenCLIP."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x):
    """x * sigmoid(1.702 x), as OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu, "relu": jax.nn.relu}


def normal(rngs, shape, std=0.02):
    return nnx.Param(std * jax.random.truncated_normal(rngs.params(), -2, 2, shape))


def zeros(shape):
    return nnx.Param(jnp.zeros(shape))


class Linear(nnx.Module):
    """x W + b over the last axis."""

    def __init__(self, inputs, outputs, rngs, bias=True):
        self.kernel = normal(rngs, (inputs, outputs), std=inputs**-0.5)
        self.bias = zeros((outputs,)) if bias else None

    def __call__(self, x):  # [..., inputs] -> [..., outputs]
        kernel = sharding.gathered(self.kernel.astype(x.dtype))
        y = x @ kernel
        return y if self.bias is None else y + self.bias.astype(x.dtype)


class LayerNorm(nnx.Module):
    """Over the last axis, in float32; on [B, h, w, C] it is SAM's LayerNorm2d."""

    def __init__(self, width, eps):
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = zeros((width,))
        self.eps = eps

    def __call__(self, x):
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class Mlp(nnx.Module):
    """Linear layers with an activation between them: widths (in, hidden, ..., out)."""

    def __init__(self, widths, activation, rngs):
        self.activation, self.depth = activation, len(widths) - 1
        for i in range(self.depth):
            setattr(self, f"fc{i + 1}", Linear(widths[i], widths[i + 1], rngs))

    def __call__(self, x):
        for i in range(self.depth):
            if i:
                x = ACTIVATIONS[self.activation](x)
            x = getattr(self, f"fc{i + 1}")(x)
        return x


class PatchConv(Linear):
    """A convolution whose stride is its kernel's size, as one product over every patch."""

    def __init__(self, patch, inputs, outputs, rngs, bias=True):
        super().__init__(patch * patch * inputs, outputs, rngs, bias)
        self.patch = patch

    def __call__(self, x):  # [..., H, W, inputs] -> [..., H/p, W/p, outputs]
        *lead, height, width, c = x.shape
        p = self.patch
        x = x.reshape(*lead, height // p, p, width // p, p, c).swapaxes(-4, -3)
        return super().__call__(x.reshape(*lead, height // p, width // p, p * p * c))


class Conv(nnx.Module):
    """A 3 x 3 convolution, zeros around the grid, no bias."""

    def __init__(self, inputs, outputs, rngs):
        self.kernel = normal(rngs, (3, 3, inputs, outputs), std=(9 * inputs) ** -0.5)

    def __call__(self, x):  # [B, h, w, inputs] -> [B, h, w, outputs]
        kernel = sharding.gathered(self.kernel.astype(x.dtype))
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


class Upscale(nnx.Module):
    """A transposed convolution with kernel 2 and stride 2, every pixel's 2 x 2 block left where
    the pixel is: to bring features into the order of an image costs more than to make them."""

    def __init__(self, inputs, outputs, rngs):
        self.kernel = normal(rngs, (inputs, 2, 2, outputs), std=inputs**-0.5)
        self.bias = zeros((outputs,))

    def __call__(self, x):  # [..., inputs] -> [..., 2, 2, outputs]
        kernel = sharding.gathered(self.kernel.astype(x.dtype))
        y = jnp.einsum("...i,iabo->...abo", x, kernel)
        return y + self.bias.astype(x.dtype)


class ClipBlock(nnx.Module):
    """Pre-norm transformer block of CLIP (open_clip ResidualAttentionBlock)."""

    def __init__(self, width, heads, mlp_width, activation, rngs):
        self.heads = heads
        self.norm1 = LayerNorm(width, 1e-5)
        self.qkv = Linear(width, 3 * width, rngs)
        self.proj = Linear(width, width, rngs)
        self.norm2 = LayerNorm(width, 1e-5)
        self.mlp = Mlp((width, mlp_width, width), activation, rngs)

    def __call__(self, x, mask=None):  # [B, N, width]
        qkv = self.qkv(self.norm1(x))
        if mask is None:
            y = self_attention(qkv[:, None], self.heads)
        else:
            parts = jnp.split(qkv, 3, -1)
            q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in parts)
            y = attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        x = x + self.proj(y.reshape(x.shape))
        return x + self.mlp(self.norm2(x))

    def values(self, x):  # [B, N, width]
        """The block's value path alone: every token attends to itself, nothing is added."""
        return self.proj(jnp.split(self.qkv(self.norm1(x)), 3, -1)[2])


def stack(make, lengths, rngs):
    """`make(rngs)` built for every index of `lengths`: one module with that many leading axes."""
    keys = jax.random.split(rngs.params(), lengths)

    def params(key):
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key))))

    for _ in lengths:
        params = jax.vmap(params)
    return nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0)))), params(keys))


def scan(blocks, x, remat, call=lambda block, x: block(x)):
    """x through stacked blocks one after the other; `call(block, x)` is one step."""
    graph, state = nnx.split(blocks)

    def body(x, state):
        return call(nnx.merge(graph, state), x), None

    return jax.lax.scan(checkpoint(body) if remat else body, x, state)[0]


def checkpoint(function):
    """Its gradient makes everything again but what attention gave to 128 tokens or more, which is
    the dearest for its bytes."""
    policy = jax.checkpoint_policies.save_only_these_names(ATTENDED)
    return jax.checkpoint(function, policy=policy)
