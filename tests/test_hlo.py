"""hlo.py: loops count for every turn, kernels as they declare, and formulas say the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samclip_jax import families, flops, hlo, models
from samclip_jax.compile_only import topology_devices
from samclip_jax.models.config import (
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ImageEncoderConfig,
    MaskDecoderConfig,
    SamConfig,
)
from samclip_jax.ops.attention import self_attention

SAM = SamConfig(
    ImageEncoderConfig(width=128, depth=6, heads=2, groups=2, mlp_width=512, image_size=256),
    MaskDecoderConfig(mlp_width=512),
)
CLIP = ClipConfig(
    ClipVisionConfig(width=128, depth=4, heads=2, mlp_width=512, embed_dim=64),
    ClipTextConfig(
        width=32, depth=1, heads=2, mlp_width=32, context_length=8, vocab_size=60, embed_dim=64
    ),
)
SIZE = (256, 192)  # 16 x 12 tokens: padded windows, not square


@pytest.fixture
def counted(device_sharding):
    """counted(function, *arguments): Counts of the program, and XLA's own operations of it."""

    def run(function, *arguments):
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device_sharding), arguments
        )
        with jax.set_mesh(device_sharding.mesh):
            compiled = jax.jit(function).lower(*arguments).compile()
        return hlo.count(compiled.as_text()), compiled.cost_analysis()["flops"]

    return run


TPU = pytest.param("v5e:2x2", marks=pytest.mark.slow)


@pytest.fixture(params=["cpu", TPU])
def device_sharding(request):
    if request.param == "cpu":
        device = jax.devices()[0]
    else:
        pytest.importorskip("libtpu", reason="the compiler for TPUs is not installed")
        device = topology_devices(request.param)[0]
    mesh = jax.sharding.Mesh([device], ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.sharding.NamedSharding(mesh, jax.P())


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def encoder_forward():
    graph, params = models.split(families.abstract(SAM))
    images = shape(1, *SIZE, 3, dtype=jnp.uint8)
    return lambda params, x: models.merge(graph, params).encode(x).embedding, params, images


def tower_gradient():
    """Of CLIP's, at 65 tokens: attention keeps its weights, XLA finds nothing made twice."""
    vision = dataclasses.replace(CLIP.vision, image_size=112, depth=8)
    graph, params = models.split(families.abstract(dataclasses.replace(CLIP, vision=vision)))

    def loss(params, images):
        return jnp.square(models.merge(graph, params).vision(images)).sum()

    return jax.grad(loss), params, shape(2, 112, 112, 3)


@pytest.mark.parametrize("case", [encoder_forward, tower_gradient])
def test_scanned_and_unrolled_layers_count_the_same(counted, monkeypatch, case):
    """XLA's count, right without loops, is ours of the unrolled ones, less of the scanned ones."""
    scanned, once = counted(*case())
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    unrolled, everything = counted(*case())
    assert abs(scanned.flops / unrolled.flops - 1) < 0.02
    assert once < 0.7 * everything
    assert unrolled.flops < everything < 1.15 * unrolled.flops  # XLA counts additions and such too


@pytest.mark.parametrize("device_sharding", ["cpu"], indirect=True)
def test_the_encoder_counts_what_its_formula_says(counted):
    """Windows that fill the grid: the formula leaves out their padding. The count leaves out that
    of the neck's convolution, 2.8 % on a grid as small as this."""
    sam = dataclasses.replace(SAM, encoder=dataclasses.replace(SAM.encoder, window=4))
    graph, params = models.split(families.abstract(sam))
    found, _ = counted(
        lambda params, images: models.merge(graph, params).encode(images).embedding,
        params,
        shape(2, *SIZE, 3, dtype=jnp.uint8),
    )
    formula = flops.encoder(sam.encoder, SIZE) + flops.neck(sam.encoder, SIZE)
    assert abs(found.flops / (2 * formula) - 1) < 0.03


def test_the_decoder_counts_what_its_formula_says(counted):
    graph, params = models.split(families.abstract(SAM))
    found, _ = counted(
        lambda params, *arguments: models.merge(graph, params).predict_masks(*arguments),
        params,
        shape(1, 16, 12, 256),
        shape(1, 8, 3, 2),
        shape(1, 8, 3, dtype=jnp.int32),
    )
    assert abs(found.flops / (8 * flops.mask_decoder(SAM, SIZE, 3)) - 1) < 0.05


def test_the_clip_tower_counts_what_its_formula_says(counted):
    graph, params = models.split(families.abstract(CLIP))
    found, _ = counted(
        lambda params, images: models.merge(graph, params).encode_image(images),
        params,
        shape(2, 224, 224, 3, dtype=jnp.uint8),
    )
    assert abs(found.flops / (2 * flops.clip_image(CLIP.vision)) - 1) < 0.02


@pytest.mark.parametrize("device_sharding", [TPU], indirect=True)
@pytest.mark.parametrize("grid, width", [((14, 14), 64), ((16, 12), 80)])
def test_a_kernel_counts_what_its_formula_says(counted, grid, width):
    """q k^T, the values, q with the tables, one-hot channels; for the gradient two of each (one of
    the last), and what is made again: all but the values."""
    h, w = grid
    arrays = shape(2, h, w, 3 * 8 * width), *(shape(2 * n - 1, width) for n in grid)

    def loss(qkv, *tables):
        return jnp.square(self_attention(qkv, 8, tables)).sum()

    scores = 2 * 8 * (h * w) ** 2 * 2 * width
    tables = 2 * 8 * h * w * 2 * width * (2 * h - 1 + 2 * w - 1)
    one_hot = 2 * 8 * (h * w) ** 2 * 2 * (h + w)
    forward, _ = counted(loss, *arrays)
    assert abs(forward.flops / (2 * scores + tables + one_hot) - 1) < 1e-3
    both, _ = counted(jax.grad(loss, range(3)), *arrays)
    assert abs(both.flops / (7 * scores + 4 * tables + 3 * one_hot) - 1) < 0.02


EIGHT_DEVICES = """
import jax, jax.numpy as jnp
from samclip_jax import hlo

mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
cases = {
    "all-reduce": (lambda x: jax.lax.psum(x, "b"), 2 * 3 / 4),
    "all-gather": (lambda x: jax.lax.all_gather(x, ("a", "b")), 7),
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, "b"), 3 / 4),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, "b", 0, 0), 3 / 4),
    "permute": (lambda x: jax.lax.ppermute(x, "b", [(0, 1), (1, 2), (2, 3), (3, 0)]), 1),
}
for name, (function, share) in cases.items():
    each = jax.shard_map(function, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
    looped = lambda x: jax.lax.scan(lambda c, _: (c + each(x * c.mean()).sum(), 0), x, None, 5)[0]
    text = jax.jit(looped).lower(jnp.ones((4, 256), jnp.float32)).compile().as_text()
    found, expected = hlo.count(text).collective_bytes, 5 * share * 4 * 256 * 4
    assert found == expected, (name, found, expected)
"""


def test_collectives_count_what_a_device_sends_every_turn(run_python):
    code, _, err = run_python(EIGHT_DEVICES, devices=8)
    assert code == 0, err


def test_groups_that_are_not_written_are_all_devices():
    program = """HloModule sums, num_partitions=8

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %sum = f32[4]{0} all-reduce(%x), channel_id=1, replica_groups={}, to_apply=%add
}
"""
    assert hlo.count(program).collective_bytes == 2 * 7 / 8 * 16


@pytest.mark.slow
def test_collectives_in_fusions_count_once():
    """TPUs spread a gather over the fusions that it runs beside, and cut a sum within one."""
    pytest.importorskip("libtpu", reason="the compiler for TPUs is not installed")
    devices = np.array(topology_devices("v5e:4x8"))
    mesh = jax.sharding.Mesh(devices.ravel(), ("a",), axis_types=(jax.sharding.AxisType.Auto,))

    def array(shape, *spec):
        there = jax.NamedSharding(mesh, jax.P(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=there)

    def layer(x, matrices):
        for matrix in matrices:
            whole = jax.lax.with_sharding_constraint(matrix, jax.NamedSharding(mesh, jax.P()))
            x = jnp.sin(x @ whole)
        return x, None

    def layers(x, *stacks):
        return jax.lax.scan(layer, x, stacks)[0]

    def scatter(x):
        return jax.lax.psum_scatter(x, "a", scatter_dimension=0, tiled=True)

    x, stack = array((32768, 1024), "a"), array((6, 1024, 1024), None, "a")
    matrix = 1024 * 1024 * 2 * 31 / 32

    gathers = jax.jit(layers).lower(x, stack, stack).compile().as_text()
    assert "AsyncCollectiveDone" in gathers
    assert hlo.count(gathers).collective_bytes == 2 * 6 * matrix
    scatter = jax.shard_map(scatter, mesh=mesh, in_specs=jax.P(), out_specs=jax.P("a"))
    scatters = jax.jit(scatter).lower(array((1024, 1024))).compile().as_text()
    assert "all-reduce-scatter" in scatters
    assert hlo.count(scatters).collective_bytes == matrix
