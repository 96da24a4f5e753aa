"""sharding.py: what is cut, what is copied, and that the values stay the same on 8 devices."""

import jax
import numpy as np
import optax
import pytest

from samclip_jax import sharding
from samclip_jax.errors import UserError

EIGHT_DEVICES = """
import jax, numpy as np
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from samclip_jax import sharding
from samclip_jax.errors import UserError

assert jax.device_count() == 8
mesh = sharding.make_mesh(fsdp=4)
assert dict(mesh.shape) == {"data": 2, "fsdp": 4}, mesh
assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)

tree = {
    "blocks/qkv/kernel": np.arange(4 * 128 * 384, dtype=np.float32).reshape(4, 128, 384),
    "odd_last": np.ones((512, 1026), np.float32),
    "indivisible": np.ones((333, 333), np.float32),
    "small": np.ones((128, 8), np.float32),
    "count": np.int32(7),
    "text/token_embed": np.ones((49408, 64), np.float32),
}
specs = {name: s.spec for name, s in sharding.shardings(mesh, tree).items()}
assert specs == {
    "blocks/qkv/kernel": P(None, None, "fsdp"),
    "odd_last": P("fsdp"),
    "indivisible": P(),
    "small": P(),
    "count": P(),
    "text/token_embed": P(None, "fsdp"),
}, specs
placed = sharding.shard(mesh, tree)
for name, value in tree.items():
    np.testing.assert_array_equal(placed[name], value)
kernel = placed["blocks/qkv/kernel"]
assert {s.data.shape for s in kernel.addressable_shards} == {(4, 128, 96)}
assert placed["count"].is_fully_replicated and len(placed["count"].sharding.device_set) == 8

for images, part in (16, 2), (2, 1), (4, 1):
    batch = {"image": np.arange(images * 6, dtype=np.uint8).reshape(images, 6)}
    cut = sharding.shard_batch(mesh, batch)["image"]
    assert len(cut.addressable_shards[0].data) == part, (images, cut.sharding)
    np.testing.assert_array_equal(cut, batch["image"])

def loss(params, batch):
    return jnp.mean(jnp.sin(batch @ params["w"]) ** 2)

params = {"w": np.random.default_rng(0).normal(size=(512, 256)).astype(np.float32)}
batch = {"x": np.random.default_rng(1).normal(size=(16, 512)).astype(np.float32)}
single = jax.grad(loss)(params, batch["x"])["w"]
cut = sharding.shard_batch(mesh, batch)["x"]
several = jax.jit(jax.grad(loss))(sharding.shard(mesh, params), cut)
np.testing.assert_allclose(several["w"], single, rtol=0, atol=1e-6 * np.abs(single).max())

uneven = {"x": np.ones((3, 2))}
for bad in (lambda: sharding.make_mesh(3), lambda: sharding.shard_batch(mesh, uneven)):
    try:
        bad()
    except UserError as error:
        print(error)
"""


def test_state_and_batches_are_cut_over_eight_devices_and_keep_their_values(run_python):
    code, out, err = run_python(EIGHT_DEVICES, devices=8)
    assert code == 0, err
    assert out.splitlines() == [
        "fsdp=3 does not divide the 8 devices here",
        "a batch of 3 images does not divide over 8 devices; "
        "use a batch_size that is a multiple of 8",
    ]


def test_one_device_holds_everything_whole():
    mesh = sharding.make_mesh()
    tree = {"w": np.ones((512, 512), np.float32), "step": np.int32(3)}
    placed = sharding.shard(mesh, tree)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(placed))
    batch = sharding.shard_batch(mesh, {"image": np.ones((3, 4), np.uint8)})
    assert batch["image"].shape == (3, 4) and batch["image"].dtype == np.uint8


def test_optimizer_state_lies_as_its_parameters():
    """Adam's moments are named mu/NAME and nu/NAME: the overrides must reach them."""
    abstract = {"token_embed": jax.ShapeDtypeStruct((1024, 256), np.float32)}
    mesh = jax.sharding.AbstractMesh((1, 2), ("data", "fsdp"))
    state = jax.eval_shape(optax.adam(1e-3).init, abstract)
    specs = {s.spec for s in jax.tree.leaves(sharding.shardings(mesh, state))}
    assert specs == {jax.P(), jax.P(None, "fsdp")}


def test_fsdp_must_divide_the_devices():
    with pytest.raises(UserError, match="fsdp=2 does not divide the 1 devices"):
        sharding.make_mesh(2)
