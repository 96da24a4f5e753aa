"""train.make_step: one step is the paper's, sum by sum, and a test fails when a part of it is gone.

The encoder's two heads pull at it together (SAM-CLIP section 3): the gradient of L_CLIP + 10 L_SAM,
a tenth of the learning rate for what SAM already knows.
"""

import json

import pytest

FIRST_UPDATE = """
import json
import jax, jax.numpy as jnp, numpy as np, optax
from configs import stage2
from samclip_jax import losses, models, optim, sharding, train
from samclip_jax.models.samclip import combine
from samclip_jax.models.config import ClipHeadConfig
from tests.test_train import CLIP, SAM

rng = np.random.default_rng(0)


def weights(config):
    graph, abstract = models.split(models.abstract(config))
    draw = lambda x: jnp.float32(0.2 * rng.standard_normal(x.shape))
    return graph, jax.tree.map(draw, abstract)


graphs, teachers = {}, {}
for name, config in ("clip", CLIP), ("sam", SAM):
    graphs[name], teachers[name] = weights(config)
head = ClipHeadConfig(depth=1, mlp_hidden=16, embed_dim=8)
student, _ = combine(SAM, teachers["sam"], CLIP, teachers["clip"], head)
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


def student_and(name, params):
    return models.merge(graph, params | frozen), models.merge(graphs[name], teachers[name])


def l_clip(params):
    student, teacher = student_and("clip", params)
    images = batches["clip"]["image"]
    return 1 - jnp.mean(jnp.sum(student.encode_image(images) * teacher.encode_image(images), -1))


def l_sam(params):
    batch, outputs = batches["sam"], []
    for model in student_and("sam", params):
        embedding = model.encode(batch["image"], batch["size"]).embedding
        outputs.append(model.predict_masks(embedding, batch["points"], batch["labels"]))
    return losses.mask_distillation(*outputs, train.read_config(values).mask_loss)[0]


both = jax.jit(lambda params: [jax.value_and_grad(loss)(params) for loss in (l_clip, l_sam)])
(clip, g_clip), (sam, g_sam) = both(trainable)
paper = {}
for name in trainable:
    tenth = 1.0 if name.startswith("clip_head") else 0.1
    paper[name] = -tenth * (g_clip[name] + 10 * g_sam[name])


report = {"losses": {"clip": float(clip), "sam": float(sam)}}
for devices, micro_batches in (1, 1), (4, 2):
    for term in values.terms.values():
        term.micro_batches = micro_batches
    config = train.read_config(values)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices], batches=(16, 8, 4))
    optimizer = optax.chain(optim.scale_by_factors(factors), optax.sgd(1.0))
    step = train.make_step(config, graph, graphs, optimizer, mesh)
    start = jax.tree.map(jnp.array, trainable)  # a copy: the step takes the state away
    state = sharding.shard(mesh, train.start_state(batches, start, optimizer.init(start)))
    placed = {name: sharding.shard_batch(mesh, len(x["image"]), x) for name, x in batches.items()}
    with jax.set_mesh(mesh):
        state, metrics = step(state, *sharding.shard(mesh, (frozen, teachers)), placed)
    update = {name: np.asarray(state["params"][name]) - trainable[name] for name in trainable}
    errors = {n: float(abs(update[n] - paper[n]).max() / abs(paper[n]).max()) for n in paper}
    losses_there = {name: float(metrics[f"{name}/loss"]) for name in ("clip", "sam")}
    report[f"{devices} x {micro_batches}"] = {"errors": errors, "losses": losses_there}
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(run_python):
    code, out, err = run_python(FIRST_UPDATE, devices=4)
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("run", ["1 x 1", "4 x 2"], ids=["one device", "four, two micro-batches"])
def test_the_first_update_is_the_papers_gradient(report, run):
    """Under plain SGD with rate 1: -(g_clip + 10 g_sam), a tenth of it for encoder and decoder."""
    errors = report[run]["errors"]
    assert {name.split("/")[0] for name in errors} == {"clip_head", "encoder", "mask_decoder"}
    print(max(errors.values()))
    assert max(errors.values()) < 1e-3
    assert report[run]["losses"] == pytest.approx(report["losses"], rel=1e-5)
