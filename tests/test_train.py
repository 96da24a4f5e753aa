"""train.py: what a run promises, on tiny models and real streams of the procedural world."""

import json
import random
import shutil
import signal
import socket
import time

import jax.numpy as jnp
import numpy as np
import pytest

from configs import demo
from samclip_jax import checkpoint, evals, families, models, train
from samclip_jax.errors import UserError
from samclip_jax.inference.model import load
from samclip_jax.models.config import (
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ImageEncoderConfig,
    MaskDecoderConfig,
    SamConfig,
)

SAM = SamConfig(
    ImageEncoderConfig(
        width=16, depth=2, heads=2, groups=1, patch=12, image_size=48, window=3, mlp_width=32,
        out_channels=16,
    ),
    MaskDecoderConfig(mlp_width=16, iou_width=16),
)  # fmt: skip
CLIP = ClipConfig(
    ClipVisionConfig(width=16, depth=1, heads=2, mlp_width=32, patch=8, image_size=16, embed_dim=8),
    ClipTextConfig(
        width=16, depth=1, heads=2, mlp_width=32, context_length=8, vocab_size=60, embed_dim=8
    ),
)
BOX_MASKS = {"task": "box_masks", "data": {"name": "shape_scenes", "split": "tune", "size": 2}}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, words):
    """{"sam": DIR, "clip": DIR}, random ones."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, config in (("sam", SAM), ("clip", CLIP)):
        _, params = models.split(families.init(config))
        if name == "clip":
            params["logit_scale"] = jnp.log(20.0)
        checkpoint.save_model(folder / name, config, params, words if name == "clip" else None)
    return {name: str(folder / name) for name in ("sam", "clip")}


def experiment(teachers, stage, init, steps=4):
    config = demo.get_config(stage)
    config.teachers, config.init, config.steps = teachers, str(init), steps
    config.heads.clip.mlp_hidden, config.optimizer.warmup_steps = 16, 0
    config.optimizer.weight_decay = 0.0  # so that what changes has a gradient
    config.optimizer.learning_rate = 2e-3
    config.streams.clip.update(batch_size=8, batch_multiple=2, base_resolution=24)
    config.streams.clip.resolutions = (24,)  # each one is a program to compile
    config.checkpoint_every = 2
    if "sam" in config.streams:
        config.streams.sam.update(batch_size=1, image_size=48)
        config.streams.sam.prompts.per_image = 4
    return config


@pytest.fixture(scope="module")
def stages(teachers, tmp_path_factory):
    """A workdir with stage1, at two resolutions, and stage2 in it, four steps each."""
    folder = tmp_path_factory.mktemp("stages")
    config = experiment(teachers, "stage1", teachers["sam"])
    config.streams.clip.resolutions = (24, 36)
    train.train(config, folder / "stage1")
    config = experiment(teachers, "stage2", folder / "stage1")
    config.checkpoints_kept, config.log_every = 2, 1
    train.train(config, folder / "stage2")
    return folder


def changed(workdir, other=None):
    """The first parts of the names that differ from what the run (or `other`) began with."""
    _, before, _ = checkpoint.load_model(other or workdir, initial=other is None)
    _, after, _ = checkpoint.load_model(workdir)
    return {name.split("/")[0] for name in after if (after[name] != before[name]).any()}


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_stage_1_trains_the_head_alone(stages):
    assert changed(stages / "stage1") == {"heads"}


def test_stage_2_trains_encoder_decoder_and_head(stages):
    """The prompt encoder and the text tower stay the teachers' (SAM-CLIP section 3)."""
    assert changed(stages / "stage2") == {"heads", "encoder", "mask_decoder"}


def test_a_stage_starts_where_the_one_before_it_ended(stages):
    _, ended, _ = checkpoint.load_model(stages / "stage1")
    _, started, _ = checkpoint.load_model(stages / "stage2", initial=True)
    assert ended.keys() == started.keys()
    assert all((ended[name] == started[name]).all() for name in ended)


def test_the_head_begins_as_copies_of_the_last_block(stages):
    _, start, _ = checkpoint.load_model(stages / "stage1", initial=True)
    for name in (name for name in start if name.startswith("heads/clip/blocks/")):
        last = start[name.replace("heads/clip/blocks", "encoder/global_blocks")][-1]
        assert start[name].shape[0] == 3 and (start[name] == last).all()


def test_the_logit_scale_is_the_clip_teachers_in_every_stage(stages, teachers, tmp_path):
    """A run of before it was kept goes on with the usual one, and is evaluated with it."""
    for stage in ("stage1", "stage2"):
        assert np.exp(checkpoint.load_model(stages / stage)[1]["logit_scale"]) == pytest.approx(20)
    run = shutil.copytree(stages / "stage1", tmp_path / "run")
    config, params, tokenizer = checkpoint.load_model(run, initial=True)
    (run / "model.json").unlink()
    del params["logit_scale"]
    checkpoint.save_model(run, config, params, tokenizer)
    config = experiment(teachers, "stage1", teachers["sam"], steps=5)
    config.streams.clip.resolutions = (24, 36)
    objects = {"name": "shape_objects", "split": "tuning", "size": 4}
    with config.unlocked():
        config.evals.objects = {"task": "zero_shot_classification", "data": objects}
    evaluated = train.train(config, run)
    assert 0 <= evaluated["objects/zero_shot_accuracy"] <= 1
    _, params, _ = checkpoint.load_model(run)
    assert np.exp(params["logit_scale"]) == pytest.approx(100)


def test_stage_2_begins_without_any_sam_loss(stages):
    """The student's SAM is the teacher's: L_SAM and its gradient are zero, L_CLIP's are not."""
    first = metrics(stages / "stage2")[0]
    assert abs(first["sam/loss"]) < 1e-6 and first["sam/grad_norm"] < 1e-4
    assert first["clip/loss"] > 1e-3 and first["clip/grad_norm"] > 1e-3


def test_a_run_that_was_stopped_ends_with_the_same_weights(stages, teachers, tmp_path):
    """From what there was after two of four steps: data, optimizer and schedule go on."""
    shutil.copytree(stages / "stage2", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    train.train(experiment(teachers, "stage2", stages / "stage1"), tmp_path / "run")
    assert [line["step"] for line in metrics(tmp_path / "run")][-2:] == [3, 4]
    _, expected, _ = checkpoint.load_model(stages / "stage2")
    _, found, _ = checkpoint.load_model(tmp_path / "run")
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_two_heads_and_a_dense_term_train_together(stages, teachers, tmp_path):
    """From a merged model that has one of the heads. The run does not go on with a third."""
    config = experiment(teachers, "stage1", stages / "stage2")
    with config.unlocked():
        config.heads.other = config.heads.third = config.heads.clip
        config.terms.dense = {**config.terms.clip, "target": "patches"}
        config.terms.other = {**config.terms.clip, "head": "other"}
    run = tmp_path / "run"
    train.train(config, run)
    _, before, _ = checkpoint.load_model(run, initial=True)
    _, after, _ = checkpoint.load_model(run)
    trained = [name for name in after if (after[name] != before[name]).any()]
    assert {name.rsplit("/", 3)[0] for name in trained if name.endswith("kernel")} == {
        *(f"heads/{head}{part}" for head in ("clip", "other") for part in ("", "/blocks"))
    }
    assert {f"{term}/loss" for term in config.terms} <= metrics(run)[0].keys()
    config.terms.other.head = "third"
    with pytest.raises(UserError, match="was begun with the heads clip, other, the terms ask for"):
        train.train(config, run)


ONE_OF_TWO = """
import json, sys
import jax
from ml_collections import ConfigDict

address, index, values, workdir = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(index))
assert jax.process_count() == 2
from samclip_jax import train
train.train(ConfigDict(json.loads(values)), workdir)
"""


A_RUN = """
import json, sys
from ml_collections import ConfigDict
from samclip_jax import train
train.train(ConfigDict(json.loads(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.slow
def test_killed_at_ten_moments_it_loses_and_doubles_nothing(
    teachers, tmp_path, start_python, run_python
):
    """kill -9 while it starts, trains, saves; then to the end: as a run that nobody stopped."""
    config = experiment(teachers, "stage1", teachers["sam"], steps=100)
    config.log_every, config.checkpoint_every = 1, 5
    given = config.to_json_best_effort()
    assert run_python(A_RUN, given, tmp_path / "whole")[0] == 0
    rng, reached = random.Random(0), []
    log = tmp_path / "run" / "metrics.jsonl"

    def lines():
        return log.read_text().count("\n") if log.exists() else 0

    for kill in range(10):
        process, until = start_python(A_RUN, given, tmp_path / "run"), lines() + rng.randint(1, 20)
        while kill % 4 and lines() < until and process.poll() is None:  # each fourth as it starts
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
        saved = (tmp_path / "run" / "checkpoints").glob("[0-9]*")
        reached.append(max((int(path.name) for path in saved if path.name.isdigit()), default=0))
    assert reached[-1] >= 5
    print("newest checkpoint after each kill:", reached)
    assert run_python(A_RUN, given, tmp_path / "run")[0] == 0
    _, expected, _ = checkpoint.load_model(tmp_path / "whole")
    _, found, _ = checkpoint.load_model(tmp_path / "run")
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    losses = [
        {line["step"]: line["clip/loss"] for line in metrics(tmp_path / name)}
        for name in ("whole", "run")
    ]
    assert losses[0] == losses[1] and list(losses[1]) == list(range(1, 101))


def test_two_processes_train_what_one_does_and_one_goes_on(
    stages, teachers, tmp_path, start_python
):
    """Two steps by two processes of two devices, then two more by one: every device has CLIP images
    of its own, and all four share the SAM image. They evaluate what one does, too: three of five
    objects and two."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    config = experiment(teachers, "stage2", stages / "stage1", steps=2)
    config.log_every = 1
    evaluation = dict(task="zero_shot_classification", image_size=24, batch_size=1)
    data = {"name": "shape_objects", "split": "tuning", "size": 5}
    with config.unlocked():
        config.evals.objects = evaluation | {"data": data}
    given = config.to_json_best_effort(), tmp_path / "run"
    processes = [start_python(ONE_OF_TWO, address, index, *given, devices=2) for index in range(2)]
    errors = [process.communicate(timeout=600)[1] for process in processes]  # each compiles
    assert [process.returncode for process in processes] == [0, 0], errors
    (evaluated,) = (line for line in metrics(tmp_path / "run") if "objects/images" in line)
    alone = evals.evaluate(load(tmp_path / "run"), data=data, **evaluation)
    assert {name: evaluated[f"objects/{name}"] for name in alone} == alone
    assert not list((tmp_path / "run/evaluation").iterdir())
    config.steps, config.evals = 4, {}
    train.train(config, tmp_path / "run")
    _, expected, _ = checkpoint.load_model(stages / "stage2")
    _, params, _ = checkpoint.load_model(tmp_path / "run")
    for name, leaf in expected.items():
        np.testing.assert_allclose(params[name], leaf, rtol=0, atol=1e-4, err_msg=name)
    lines, wanted = metrics(tmp_path / "run"), metrics(stages / "stage2")
    lines.remove(evaluated)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for name in ("clip/loss", "clip/grad_norm", "sam/loss", "sam/grad_norm"):  # Adam sees no scale
        values = [[line[name] for line in each] for each in (lines, wanted)]
        np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-6, err_msg=name)


def test_a_clip_of_other_texts_is_refused(stages, teachers, tmp_path, words):
    _, params = models.split(families.init(CLIP, seed=1))
    checkpoint.save_model(tmp_path / "other", CLIP, params, words)
    config = experiment(teachers, "stage2", stages / "stage1")
    config.teachers.clip = str(tmp_path / "other")
    with pytest.raises(UserError, match="not the student's"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_in_bfloat16(stages, teachers, tmp_path):
    """The real stages' dtype: the student's float32 text tower is that of a teacher in bfloat16.
    Gradients, too, and their sum over two micro-batches. Its losses are those in float32."""
    config = experiment(teachers, "stage2", stages / "stage1")
    config.dtype = config.gradient_dtype = "bfloat16"
    config.streams.clip.micro_batches, config.log_every = 2, 1
    train.train(config, tmp_path / "run")
    assert changed(tmp_path / "run") == {"heads", "encoder", "mask_decoder"}
    for half, single in zip(metrics(tmp_path / "run"), metrics(stages / "stage2"), strict=True):
        assert half["clip/loss"] == pytest.approx(single["clip/loss"], rel=0.01)
        assert half["sam/loss"] == pytest.approx(single["sam/loss"], abs=3e-4)
    assert {leaf.dtype for leaf in checkpoint.load_model(tmp_path / "run")[1].values()} == {
        jnp.dtype("float32")
    }


def test_a_run_without_a_finite_loss_stops_with_the_weights_it_had(stages, teachers, tmp_path):
    """For a teacher that answers NaN. It stops before anything of those steps is saved."""
    config, params, tokenizer = checkpoint.load_model(teachers["clip"])
    params["vision/projection/kernel"] *= np.nan
    checkpoint.save_model(tmp_path / "clip", config, params, tokenizer)
    config = experiment(teachers, "stage1", teachers["sam"], steps=9)
    config.teachers.clip, config.log_every = str(tmp_path / "clip"), 1
    config.max_bad_steps, config.checkpoint_every = 3, 9
    with pytest.raises(
        UserError, match=r"^3 steps in a row .* step 3 \(so far .*clip/loss 3 times"
    ):
        train.train(config, tmp_path / "run")
    assert checkpoint.newest_step(tmp_path / "run") is None
    assert [line["bad_steps/clip/loss"] for line in metrics(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("learning_rte", 1.0, "config has no key 'learning_rte'"),
        ("init", "", "config.init"),
        ("init", "nowhere", "^--config.init: there is no checkpoint at"),
        ("teachers", {"clip": ""}, "config.teachers.clip"),
        ("lr_factors", (("clip_haed", 1.0), (".*", None)), "matches no parameter"),
        ("streams", {}, "streams has no 'clip'"),
        ("terms", {}, "terms is empty"),
        ("lr_factors", (("heads", -1.0), (".*", None)), "lr_factors must be"),
        ("lr_factors", (("heads(", 1.0), (".*", None)), "'heads.' is no regex"),
        ("fsdp", 7, "fsdp=7"),
        ("dtype", "bf16", "dtype must be float32 or bfloat16, got 'bf16'"),
        ("evals", {"eye": {"task": "box_masks"}}, "evals.eye lacks the key 'data'"),
        ("evals", {"eye": BOX_MASKS | {"batch_size": 0}}, "evals.eye.batch_size must be"),
        (
            "evals",
            {"eye": BOX_MASKS | {"data": {"name": "sa1b", "path": "no"}}},
            "no does not exist",
        ),
        ("log_every", 0, "^--config.log_every must be a whole number of at least 1, got 0"),
    ],
)
def test_mistakes_in_a_config_are_one_sentence(teachers, tmp_path, key, value, message):
    """And begin nothing: the next start is a new one."""
    config = experiment(teachers, "stage1", teachers["sam"])
    with config.unlocked():
        config[key] = value
    with pytest.raises(UserError, match=message):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("streams.clip.micro_batches", 0, "streams.clip.micro_batches must be a whole"),
        ("streams.clip.micro_batches", 3, "micro_batches=3 does not divide the 8 images .* 24 px"),
        ("terms.clip.teacher", "cilp", "terms.clip.teacher must be one of clip, sam, got 'cilp'"),
        ("terms.clip.loss", "masks", "config.terms.clip.loss must be cosine for target summary"),
        ("terms.clip.stream", "sam", "terms.clip.stream must be of kind clip for target summary"),
        ("streams.clip.sources.main", {}, "streams.clip.sources.main lacks the key 'name'"),
        ("streams.clip.batch_multiple", 0, "streams.clip.batch_multiple must be"),
        ("streams.clip.workers", -1, "streams.clip.workers must be a whole number"),
        ("streams.sam.batch_size", 0, "streams.sam.batch_size must be a whole number"),
        ("streams.sam.prompts.per_image", 0, "streams.sam.prompts.per_image must be"),
        ("fsdp", 0, "fsdp must be a whole number"),
    ],
)
def test_sizes_that_cannot_be_are_one_sentence(teachers, tmp_path, key, value, message):
    config = experiment(teachers, "stage2", teachers["sam"])
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_the_wrong_kind_is_refused(teachers, tmp_path):
    config = experiment(teachers, "stage1", teachers["sam"])
    config.teachers.clip = teachers["sam"]
    with pytest.raises(UserError, match="is a SAM checkpoint"):
        train.train(config, tmp_path / "run")
