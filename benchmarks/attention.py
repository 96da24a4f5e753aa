"""Attention with relative position on one TPU, compiled and not run: bytes, operations, memory.

python -m benchmarks.attention [--topology=v5e:2x2] [--report=FILE]      (needs libtpu, no TPU)

One photograph of 1024 px through one layer of SAM ViT-B in bfloat16, in the form of the original,
whose bias has an entry for every pair of tokens, and in the form of ops/attention.py; the whole
encoder; each forward and with the gradient.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from samclip_jax import families, hlo, models, sharding
from samclip_jax.compile_only import topology_devices
from samclip_jax.errors import command
from samclip_jax.metrics import write_json
from samclip_jax.models.config import SamConfig
from samclip_jax.ops.attention import self_attention
from samclip_jax.paths import output_file

LAYERS = {"global": (1, (64, 64)), "windows": (25, (14, 14))}  # images or windows, their grid
HEADS, WIDTH = 12, 64


def with_bias(qkv, rel_pos_h, rel_pos_w):
    """segment_anything's form."""
    batch, h, w, _ = qkv.shape
    tokens, heads, width = h * w, HEADS, WIDTH
    q, k, v = (x.reshape(batch, tokens, heads, width) for x in jnp.split(qkv, 3, -1))
    rows, columns = (rel_pos[np.arange(n)[:, None] - np.arange(n) + n - 1]
                     for rel_pos, n in ((rel_pos_h, h), (rel_pos_w, w)))  # fmt: skip
    q_grid = q.reshape(batch, h, w, heads, width)
    bias = jnp.einsum("bijnd,ikd->bnijk", q_grid, rows)[..., None]
    bias = bias + jnp.einsum("bijnd,jkd->bnijk", q_grid, columns)[..., None, :]
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    scores = scores * width**-0.5 + bias.reshape(batch, heads, tokens, tokens)
    out = jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores, -1).astype(v.dtype), v)
    return out.reshape(batch, h, w, -1)


def fused(qkv, *rel_pos):
    with sharding.one_device():
        return self_attention(qkv, HEADS, rel_pos)


def layer(attention, batch, grid):
    """(function, its arguments) of one attention."""
    shapes = [(batch, *grid, 3 * HEADS * WIDTH)] + [(2 * n - 1, WIDTH) for n in grid]
    return attention, [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]


def encoder(dtype):
    """(function, its arguments) of SAM ViT-B's encoder, its parameters in `dtype`."""
    graph, params = models.split(families.abstract(SamConfig()))
    params = {name: jax.ShapeDtypeStruct(x.shape, dtype) for name, x in params.items()}
    images = jax.ShapeDtypeStruct((1, 1024, 1024, 3), jnp.uint8)

    def encode(params, images):
        with sharding.one_device():
            encoded = models.merge(graph, params).encode(images, dtype=jnp.bfloat16, remat=True)
        return encoded.embedding

    return encode, [params, images]


def with_gradient(function, arguments):
    """The same with gradients to all that is no photograph."""
    numbers = [i for i, x in enumerate(arguments) if getattr(x, "dtype", None) != jnp.uint8]

    def loss(*arguments):
        return jnp.square(function(*arguments).astype(jnp.float32)).sum()

    return jax.grad(loss, numbers), arguments


def measure(function, arguments, device):
    mesh = jax.sharding.Mesh([device], ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    there = jax.sharding.NamedSharding(mesh, jax.P())
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), arguments
    )
    began = time.monotonic()
    with jax.set_mesh(mesh):
        program = jax.jit(function).lower(*arguments).compile()
    counts = hlo.count(program.as_text())
    return {
        "bytes_accessed": counts.bytes,
        "hbm_bytes_accessed": counts.hbm_bytes,
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "flops": counts.flops,
        "compile_seconds": time.monotonic() - began,
    }


@command
def main():
    parser = argparse.ArgumentParser(prog="attention", description=__doc__.split("\n")[0])
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--report", type=output_file)
    options = parser.parse_args()
    device = topology_devices(options.topology)[0]
    forms = {"original": with_bias, "samclip_jax": fused}
    cases = {
        f"{name}, {form}": layer(attention, *sizes)
        for name, sizes in LAYERS.items()
        for form, attention in forms.items()
    }
    cases["encoder"] = encoder(jnp.float32)
    cases["encoder, bfloat16 parameters"] = encoder(jnp.bfloat16)
    report = {}
    print("| | bytes accessed, GB | in main memory | temporaries | TFLOP | compiled, s |")
    print("|---|---|---|---|---|---|")
    for name, case in cases.items():
        for suffix, (function, arguments) in {"": case, ", gradient": with_gradient(*case)}.items():
            counts = report[name + suffix] = measure(function, arguments, device)
            print(
                f"| {name}{suffix} | {counts['bytes_accessed'] / 1e9:.2f} | "
                f"{counts['hbm_bytes_accessed'] / 1e9:.2f} | "
                f"{counts['temporary_bytes'] / 1e9:.2f} | "
                f"{counts['flops'] / 1e12:.2f} | {counts['compile_seconds']:.0f} |",
                flush=True,
            )
    if options.report:
        write_json(options.report, report)


if __name__ == "__main__":
    main()
