"""train.make_step: one step is the paper's, sum by sum, and a test fails when a part of it is gone.

The encoder's two heads pull at it together (SAM-CLIP section 3): the gradient of L_CLIP + 10 L_SAM,
a tenth of the learning rate for what SAM already knows.
"""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import SAM

from samclip_jax import families, models, train
from samclip_jax.config import MaskLossConfig

FIRST_UPDATE = """
import dataclasses, json
import jax, jax.numpy as jnp, numpy as np, optax
from configs import stage2
from samclip_jax import families, losses, models, optim, sharding, train
from samclip_jax.models.config import ClipHeadConfig, SamClipConfig
from tests.test_train import CLIP, SAM

decoder = dataclasses.replace(SAM.mask_decoder, depth=1, iou_depth=2)
SAM = dataclasses.replace(SAM, mask_decoder=decoder)

RATE = 100.0  # so large that weights of float32 hold the update
rng = np.random.default_rng(0)


def weights(config):
    graph, abstract = families.split_images(config)
    draw = lambda x: jnp.float32(0.2 * rng.standard_normal(x.shape))
    return graph, jax.tree.map(draw, abstract)


graphs, teachers = {}, {}
for name, config in ("clip", CLIP), ("sam", SAM):
    graphs[name], teachers[name] = weights(config)
student = SamClipConfig(SAM, {"clip": ClipHeadConfig(1, 16, embed_dim=8)}, CLIP.text)
graph, params = weights(student)  # of its own: at the teacher's, L_SAM has no gradient

values = stage2.get_config()
values.dtype, values.remat = "float32", False
batches = {
    "clip": {"image": rng.integers(0, 256, (16, 24, 24, 3), np.uint8)},
    "sam": {
        "image": rng.integers(0, 256, (8, 48, 48, 3), np.uint8),
        "size": np.int32([[48, 36], [30, 48]] * 4),
        "points": np.float32(rng.uniform(0, 30, (8, 3, 2, 2))),
        "labels": np.int32(rng.integers(0, 2, (8, 3, 2))),
    },
}
trainable, frozen, factors = optim.partition(params, values.lr_factors)


def l_clip(params, teacher, batch):
    student, teacher = models.merge(graph, params), models.merge(graphs["clip"], teacher)
    images = batch["image"]
    return 1 - jnp.mean(jnp.sum(student.encode_image(images) * teacher.encode_image(images), -1))


def l_sam(params, teacher, batch):
    outputs = []
    for model in models.merge(graph, params), models.merge(graphs["sam"], teacher):
        embedding = model.encode(batch["image"], batch["size"]).embedding
        outputs.append(model.predict_masks(embedding, batch["points"], batch["labels"]))
    return losses.mask_distillation(*outputs, train.read_config(values).mask_loss)[0]


with sharding.one_device():
    (clip, g_clip), (sam, g_sam) = (
        jax.jit(jax.value_and_grad(loss))(params, teachers[name], batches[name])
        for name, loss in (("clip", l_clip), ("sam", l_sam))
    )
paper = {}
for name in trainable:
    tenth = 1.0 if name.startswith("heads/") else 0.1
    paper[name] = -tenth * (g_clip[name] + 10 * g_sam[name])

floor = {}  # a key's bias has no gradient
for name, leaf in paper.items():
    part = name.split("/")[0]
    floor[part] = max(floor.get(part, 0), 1e-3 * float(abs(leaf).max()))


def error(name, update):
    scale = floor[name.split("/")[0]] + abs(paper[name]).max()
    return float(abs(update / RATE - paper[name]).max() / scale)


report = {"losses": {"clip": float(clip), "sam": float(sam)}}
for devices, micro_batches in (1, 1), (4, 2):
    for stream in values.streams.values():
        stream.micro_batches = micro_batches
    config = train.read_config(values)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices], batches=(16, 8, 4))
    optimizer = optax.chain(optim.scale_by_factors(factors), optax.sgd(RATE, momentum=0.5))
    step = train.make_step(config, graph, graphs, optimizer, mesh)
    start = jax.tree.map(jnp.array, trainable)  # a copy: the step takes the state away
    state = sharding.shard(mesh, train.start_state(values.terms, start, optimizer.init(start)))
    placed = {name: sharding.shard_batch(mesh, len(x["image"]), x) for name, x in batches.items()}
    with jax.set_mesh(mesh):
        state, metrics = step(state, *sharding.shard(mesh, (frozen, teachers)), placed)
    after = jax.device_get(state["params"])
    errors = {name: error(name, after[name] - trainable[name]) for name in trainable}
    losses_there = {name: float(metrics[f"{name}/loss"]) for name in ("clip", "sam")}
    report[f"{devices} x {micro_batches}"] = {"errors": errors, "losses": losses_there}
kept = jax.device_get(state)
placed["sam"]["points"] *= jnp.nan
with jax.set_mesh(mesh):
    state, _ = step(state, *sharding.shard(mesh, (frozen, teachers)), placed)
state = jax.device_get(state)
for part in "params", "opt_state":
    jax.tree.map(np.testing.assert_array_equal, state[part], kept[part])
report["bad step"] = {"step": int(state["step"]), "positions": state["positions"]}
report["bad step"] |= {"counts": state["bad_steps"]["counts"]}
print(json.dumps(report, default=int))
"""


@pytest.fixture(scope="module")
def report(run_python):
    code, out, err = run_python(FIRST_UPDATE, devices=4)
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("run", ["1 x 1", "4 x 2"], ids=["one device", "four, two micro-batches"])
def test_the_first_update_is_the_papers_gradient(report, run):
    """Under plain SGD, by its rate: -(g_clip + 10 g_sam), a tenth of it for encoder and decoder."""
    errors = report[run]["errors"]
    assert {name.split("/")[0] for name in errors} == {"heads", "encoder", "mask_decoder"}
    assert max(errors.values()) < 1e-4
    assert report[run]["losses"] == pytest.approx(report["losses"], rel=1e-5)


def test_a_step_that_is_not_finite_changes_no_weight_and_no_moment(report):
    """NaN among the SAM stream's points: the next step has the next batch."""
    bad = report["bad step"]
    assert bad["step"] == 2 and bad["positions"] == {"clip": 2, "sam": 2}
    counts = {"clip/loss": 0, "clip/grad_norm": 0, "sam/loss": 1, "sam/grad_norm": 1}
    assert bad["counts"] == counts


LOWERED = """
import importlib, json, pathlib, sys
import jax
from samclip_jax import compile_only, streams, train
from samclip_jax.families import to_dict
from samclip_jax.models.config import (
    ClipConfig, ClipTextConfig, ClipVisionConfig, ImageEncoderConfig, MaskDecoderConfig, SamConfig,
)

encoder = ImageEncoderConfig(
    width=128, depth=2, heads=2, groups=1, image_size=256, mlp_width=128, out_channels=32
)
vision = ClipVisionConfig(width=128, depth=1, heads=2, mlp_width=128, embed_dim=64)
text = ClipTextConfig(width=32, depth=1, heads=2, mlp_width=32, vocab_size=60, embed_dim=64)
folders = {}
for name, config in {
    "sam": SamConfig(encoder, MaskDecoderConfig(mlp_width=64)), "clip": ClipConfig(vision, text)
}.items():
    folders[name] = pathlib.Path(sys.argv[1]) / name
    folders[name].mkdir()
    (folders[name] / "model.json").write_text(json.dumps({"config": to_dict(config)}))

for stage, changes in json.loads(sys.argv[2]):
    values = importlib.import_module(f"configs.{stage}").get_config()
    values.init, values.teachers = str(folders["sam"]), {n: str(f) for n, f in folders.items()}
    values.streams.clip.update(batch_size=8, resolutions=(224,), batch_multiple=1)
    if stage == "stage2":
        values.streams.sam.update(batch_size=8, image_size=256)
    values.update_from_flattened_dict(changes)
    config = train.read_config(values)
    run = streams.read_streams(config)
    mesh = streams.make_mesh(config, run)
    (sizes,) = compile_only.programs(streams.batch_sizes(run))
    step, arguments, _ = compile_only.abstract_step(config, run, mesh, sizes)
    with jax.set_mesh(mesh):
        program = step.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    print(program.count("tpu_custom_call"))
"""
SHARED = {"streams.sam.batch_size": 2}  # two chips share an image
PARTS = {"streams.clip.micro_batches": 2, "streams.sam.micro_batches": 2}
FAST, OTHERS = "the frozen encoder, shared images and micro-batches", "every other mode"
MODES = {
    FAST: [
        ("stage1", {}),
        ("stage2", SHARED | {"streams.clip.micro_batches": 2}),
    ],
    OTHERS: [
        ("distill_only", {}),
        ("stage2", {}),
        ("stage2", {"remat": False}),
        ("stage2", {"dtype": "float32"}),
        ("stage2", {"fsdp": 4}),
        ("stage2", PARTS | {"fsdp": 2}),
    ],
}


@pytest.mark.parametrize(
    "modes",
    [pytest.param(name, marks=pytest.mark.slow if i else ()) for i, name in enumerate(MODES)],
)
def test_a_mode_is_lowered_for_four_tpu_chips_with_its_kernels(modes, run_python, tmp_path):
    """A kernel that XLA would have to cut by itself is refused there."""
    code, out, err = run_python(LOWERED, tmp_path, json.dumps(MODES[modes]), devices=4)
    assert code == 0, err
    kernels = [int(line) for line in out.split()]
    assert len(kernels) == len(MODES[modes]) and min(kernels) > 0


def test_prompts_in_groups_give_the_same_loss_and_gradient():
    """With remat the decoder sees 3 of 6 prompts at a time, of both images."""
    rng = np.random.default_rng(0)
    graph, abstract = models.split(families.abstract(SAM))
    params = {k: jnp.float32(0.1 * rng.standard_normal(x.shape)) for k, x in abstract.items()}
    embeddings = jnp.float32(rng.standard_normal((2, 2, 4, 4, 16)))
    batch = {
        "points": jnp.float32(rng.uniform(0, 30, (2, 6, 2, 2))),
        "labels": jnp.int32(rng.integers(0, 2, (2, 6, 2))),
    }
    options = MaskLossConfig(20.0, 1.0, 1.0, 0.25, 2.0, "soft", True, (1.0,) * 4)

    def loss(params, remat):
        config = types.SimpleNamespace(remat=remat, mask_loss=options)
        model = models.merge(graph, params)
        decoders = (functools.partial(model.predict_masks, each) for each in embeddings)
        return train.mask_loss(*decoders, batch, config)

    whole, parts = (
        jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(params, remat)
        for remat in (False, True)
    )
    floor = 1e-3 * max(np.abs(leaf).max() for leaf in whole[1].values())  # a key's bias has none
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=floor), whole, parts)


@pytest.mark.parametrize("prompts, groups", [(1, 1), (4, 1), (6, 2), (13, 13), (32, 8)])
def test_no_group_of_prompts_is_large_and_all_are_equal(prompts, groups):
    assert train.prompt_groups(prompts) == groups
