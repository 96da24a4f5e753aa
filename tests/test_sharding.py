"""sharding.py: what is cut, what is copied, and that the values stay the same on 8 devices."""

from unittest import mock

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
assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "image": 1}, mesh
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

shared = sharding.make_mesh(fsdp=2, batches=(16, 4))
assert dict(shared.shape) == {"data": 2, "fsdp": 2, "image": 2}, shared
for images, part in (16, (2, 6)), (4, (1, 3)):
    batch = {"image": np.arange(images * 6, dtype=np.uint8).reshape(images, 6)}
    cut = sharding.shard_batch(shared, images, batch)["image"]
    assert cut.addressable_shards[0].data.shape == part, (images, cut.sharding)
    np.testing.assert_array_equal(cut, batch["image"])

def loss(params, batch):
    return jnp.mean(jnp.sin(batch @ params["w"]) ** 2)

params = {"w": np.random.default_rng(0).normal(size=(512, 256)).astype(np.float32)}
batch = {"x": np.random.default_rng(1).normal(size=(16, 512)).astype(np.float32)}
single = jax.grad(loss)(params, batch["x"])["w"]
cut = sharding.shard_batch(mesh, 16, batch)["x"]
several = jax.jit(jax.grad(loss))(sharding.shard(mesh, params), cut)
np.testing.assert_allclose(several["w"], single, rtol=0, atol=1e-6 * np.abs(single).max())

uneven = {"x": np.ones((3, 2))}
for bad in (
    lambda: sharding.make_mesh(3),
    lambda: sharding.make_mesh(4, batches=(16, 2)),
    lambda: sharding.shard_batch(mesh, 3, uneven),
):
    try:
        bad()
    except UserError as error:
        print(error)
"""


def test_state_and_batches_are_cut_over_eight_devices_and_keep_their_values(run_python):
    code, out, err = run_python(EIGHT_DEVICES, devices=8)
    assert code == 0, err
    assert out.splitlines() == [
        "--config.fsdp=3 does not divide the 8 devices here",
        "--config.fsdp=4 does not divide 2 groups that share images, of the 8 devices here",
        "a batch of 3 images does not divide over 8 devices; "
        "use a batch_size that is a multiple of 8",
    ]


def test_one_device_holds_everything_whole():
    mesh = sharding.make_mesh()
    tree = {"w": np.ones((512, 512), np.float32), "step": np.int32(3)}
    placed = sharding.shard(mesh, tree)
    assert all(leaf.sharding.spec == jax.P() for leaf in jax.tree.leaves(placed))
    batch = sharding.shard_batch(mesh, 3, {"image": np.ones((3, 4), np.uint8)})
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


WHOLE = """
import re
import jax, numpy as np
import jax.numpy as jnp
from samclip_jax import families, models, sharding
from samclip_jax.models.config import ClipConfig, ClipTextConfig, ClipVisionConfig

vision = ClipVisionConfig(
    width=128, depth=2, heads=2, mlp_width=512, patch=8, image_size=32, embed_dim=8
)
text = ClipTextConfig(
    width=8, depth=1, heads=2, mlp_width=8, context_length=8, vocab_size=60, embed_dim=8
)
graph, abstract = models.split(families.abstract(ClipConfig(vision, text)))
rng = np.random.default_rng(0)
params = {k: np.float32(0.1 * rng.standard_normal(x.shape)) for k, x in abstract.items()}
images = rng.integers(0, 256, (64, 32, 32, 3), np.uint8)

def loss(params, images):
    with sharding.activations(mesh, 64):
        return models.merge(graph, params).encode_image(images)[:, 0].mean()

def gradient(mesh):
    rests = sharding.shardings(mesh, params)
    arguments = sharding.shard(mesh, params), sharding.shard_batch(mesh, 64, {"": images})[""]
    program = jax.jit(jax.grad(loss), out_shardings=rests).lower(*arguments).compile()
    return program.as_text(), program(*arguments)

mesh = sharding.make_mesh(devices=jax.devices()[:1])
_, wanted = gradient(mesh)
mesh = sharding.make_mesh(fsdp=8)
text, found = gradient(mesh)
scale = max(np.abs(leaf).max() for leaf in wanted.values())
for name, leaf in wanted.items():
    np.testing.assert_allclose(found[name], leaf, rtol=0, atol=1e-5 * scale, err_msg=name)
for moved in sorted(set(re.findall(r"(f32\\[\\S*\\])\\S* all-(?:gather|to-all)\\(", text))):
    print(moved)
"""


def test_cut_matrices_move_and_no_activations(run_python):
    code, out, err = run_python(WHOLE, devices=8)
    assert code == 0, err
    assert out.split() == ["f32[1,128,384]", "f32[1,128,512]", "f32[1,512,128]"]


def test_hosts_that_share_images_unevenly_are_told(monkeypatch):
    """Three hosts of two devices, three devices an image: the second host needs all."""
    devices = [mock.Mock(process_index=i // 2) for i in range(6)]
    ranges = {device: range(2 * (i // 3), 2 * (i // 3) + 2) for i, device in enumerate(devices)}
    monkeypatch.setattr(sharding.BatchAxes, "ranges", lambda *_: ranges)
    with pytest.raises(UserError, match="a batch of 4 images does not divide over 3 hosts; use a"):
        sharding.process_part(sharding.make_mesh(), 4)


SHARED_IMAGES = """
import jax, numpy as np
import jax.numpy as jnp
from samclip_jax import families, models, sharding
from samclip_jax.models.config import (
    ClipConfig, ClipTextConfig, ClipVisionConfig, ImageEncoderConfig, MaskDecoderConfig, SamConfig
)

count = 6
encoder = ImageEncoderConfig(
    width=32, depth=4, heads=2, groups=2, patch=4, image_size=64, window=12, mlp_width=32,
    out_channels=16,
)
vision = ClipVisionConfig(
    width=16, depth=1, heads=2, mlp_width=16, patch=8, image_size=96, embed_dim=8
)
text = ClipTextConfig(
    width=8, depth=1, heads=2, mlp_width=8, context_length=8, vocab_size=60, embed_dim=8
)
rng = np.random.default_rng(0)

def random(config):
    graph, abstract = models.split(families.abstract(config))
    draw = lambda x: np.float32(0.1 * rng.standard_normal(x.shape))
    return graph, {name: draw(leaf) for name, leaf in abstract.items()}

clip = models.merge(*random(ClipConfig(vision, text)))
graph, params = random(SamConfig(encoder, MaskDecoderConfig(mlp_width=16)))
batch = {
    "image": rng.integers(0, 256, (count, 64, 64, 3), np.uint8),
    "size": np.int32([[64, 48], [40, 64]] * (count // 2)),
    "points": np.float32(rng.uniform(0, 40, (count, 4, 2, 2))),
    "labels": np.int32(rng.integers(0, 2, (count, 4, 2))),
}

def loss(params, batch):
    with sharding.activations(mesh, count):
        target = clip.encode_image(batch["image"]).mean()
        model = models.merge(graph, params)
        encoded = model.encode(batch["image"], batch["size"], remat=True).embedding
        masks = model.predict_masks(encoded, batch["points"], batch["labels"])
        return jnp.square(masks.low_res_masks).mean() + masks.iou.mean() + target

mesh = sharding.make_mesh(batches=(count,), devices=jax.devices()[:1])
alone, wanted = jax.jit(jax.value_and_grad(loss))(params, batch)
mesh = sharding.make_mesh(batches=(count,))
assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "image": 4}, mesh
cut = sharding.shard_batch(mesh, count, batch)
assert cut["image"].addressable_shards[0].data.shape == (count // 2, 16, 64, 3)
together, found = jax.jit(jax.value_and_grad(loss))(sharding.shard(mesh, params), cut)
np.testing.assert_allclose(together, alone, rtol=1e-5)
floor = 1e-3 * max(np.abs(leaf).max() for leaf in wanted.values())  # a key's bias has none
for name, leaf in wanted.items():
    scale = floor + np.abs(leaf).max()
    np.testing.assert_allclose(found[name] / scale, leaf / scale, atol=1e-4, err_msg=name)
"""


def test_devices_that_share_images_compute_what_one_does(run_python):
    """Six images over two groups of devices, of which each has 4 rows of tokens, a window and a
    prompt of every image. One image a group: test_train's two processes."""
    code, _, err = run_python(SHARED_IMAGES, devices=8)
    assert code == 0, err


FORGOTTEN = """
import jax, jax.numpy as jnp
from samclip_jax import sharding

shard = jax.jit(lambda x: sharding.shard_rows(x) + 0)
try:
    shard(jnp.ones((8, 8)))
except RuntimeError as error:
    print(error)
with sharding.one_device():
    assert (shard(jnp.ones((8, 8))) == 1).all()
"""


def test_a_forgotten_context_is_an_error(run_python):
    """With several devices; with one there is nothing to say."""
    code, out, err = run_python(FORGOTTEN, devices=2)
    assert code == 0, err
    assert "which of the 2 devices" in out and "sharding.activations(mesh, images)" in out
    assert run_python(FORGOTTEN)[:2] == (0, "")


SHARES = """
import jax, numpy as np
from samclip_jax import sharding

mesh = sharding.replicas(jax.devices())


def function(params, rows, whole):
    (x,), (y,) = rows, whole
    return params["two"] * x + len(x) + y.sum()


params = sharding.copies(mesh, {"two": np.float32(2)})
assert params["two"].sharding.is_fully_replicated
found = sharding.on_shares(function, mesh)(params, (np.arange(8.0),), (np.ones(3),))
np.testing.assert_array_equal(found, 2 * np.arange(8.0) + 8 / mesh.size + 3)
"""


@pytest.mark.parametrize("devices", [1, 4])
def test_each_device_works_on_its_share_of_the_rows(run_python, devices):
    code, _, err = run_python(SHARES, devices=devices)
    assert code == 0, err
