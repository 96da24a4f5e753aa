"""checkpoint.py: whole or not at all, on any number of devices, a sentence for every mistake."""

import json
import os
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from samclip_jax import checkpoint, sharding
from samclip_jax.errors import UserError
from samclip_jax.models.config import (
    ClipConfig,
    ClipHeadConfig,
    ImageEncoderConfig,
    SamClipConfig,
    SamConfig,
)

CONFIG = SamConfig(ImageEncoderConfig(width=64, depth=8, heads=4))
TRAINABLE = ("head/kernel", "head/bias")


def make_params(seed=0):
    shapes = {"encoder/kernel": (3, 256, 512), "head/kernel": (512, 256), "head/bias": (256,)}
    random = np.random.default_rng(seed)
    return {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def make_state(params, step=0):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    trainable = {name: jnp.asarray(params[name]) for name in TRAINABLE}
    positions = {"clip": jnp.int32(2 * step), "sam": jnp.int32(3 * step)}
    return {
        "step": jnp.int32(step),
        "positions": positions,
        "params": trainable,
        "opt_state": optimizer.init(trainable),
    }


def assert_same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.fixture
def run(tmp_path):
    """A workdir: the model that training starts from, its steps 10 and 20 with other weights."""
    checkpoint.save_model(tmp_path / "run", CONFIG, make_params(), "{}")
    steps = checkpoint.TrainCheckpoints(tmp_path / "run", every_steps=10, keep=2)
    for step in 10, 20:
        steps.save(step, make_state(make_params(step), step))
    steps.close()
    return tmp_path / "run"


def test_a_model_comes_back_as_it_was_saved(tmp_path):
    source = {"name": "sam_vit_b.pth", "sha256": "ec2d"}
    checkpoint.save_model(tmp_path / "a" / "sam", CONFIG, make_params(), None, source)
    config, params, tokenizer_json = checkpoint.load_model(tmp_path / "a" / "sam")
    assert config == CONFIG and tokenizer_json is None
    assert_same(params, make_params())
    assert all(
        isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in params.values()
    )
    assert json.loads((tmp_path / "a/sam/model.json").read_text())["source"] == source
    assert sorted(os.listdir(tmp_path / "a")) == ["sam"]
    assert sorted(os.listdir(tmp_path / "a" / "sam")) == ["model.json", "params"]


def test_a_tokenizer_travels_with_the_model_into_a_directory_that_holds_other_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")  # of a save that was interrupted
    checkpoint.save_model(tmp_path, ClipConfig(), make_params(), '{"version": "1.0"}')
    assert checkpoint.load_model(tmp_path)[2] == '{"version": "1.0"}'
    found = sorted(os.listdir(tmp_path))
    assert found == ["config.json", "model.json", "params", "tokenizer.json"]


def test_a_checkpoint_is_never_overwritten(tmp_path):
    checkpoint.save_model(tmp_path / "sam", CONFIG, make_params())
    with pytest.raises(UserError, match="holds a checkpoint already.*choose another"):
        checkpoint.save_model(tmp_path / "sam", CONFIG, make_params(1))
    assert_same(checkpoint.load_model(tmp_path / "sam")[1], make_params())


def test_a_run_loads_with_the_parameters_of_its_newest_step(run):
    config, params, _ = checkpoint.load_model(run)
    newest = {name: make_params(20)[name] for name in TRAINABLE}
    assert config == CONFIG
    assert_same(params, {**make_params(), **newest})
    assert_same(checkpoint.load_model(run, initial=True)[1], make_params())


def test_a_merged_model_without_a_logit_scale_gets_the_usual_one(tmp_path):
    """Checkpoints of before it was kept, read onto a device and onto a mesh."""
    checkpoint.save_model(tmp_path / "merged", SamClipConfig(), make_params())
    for mesh in (None, sharding.make_mesh()):
        _, params, _ = checkpoint.load_model(tmp_path / "merged", mesh=mesh)
        scale = params.pop("logit_scale")
        assert (scale.shape, scale.dtype) == ((), jnp.float32)
        assert np.exp(scale) == pytest.approx(100)
        assert mesh is None or scale.sharding == jax.NamedSharding(mesh, jax.P())
        assert_same(params, make_params())


@pytest.mark.parametrize(
    "old, new",
    [
        ("encoder/neck/conv2", "encoder/neck/conv2/kernel"),
        ("clip_head/mlp/fc1/kernel", "heads/clip/mlp/fc1/kernel"),
    ],
)
def test_a_parameter_of_an_older_name_gets_its_own(old, new, tmp_path):
    """Of a model, and of a step of a run that trained it."""
    checkpoint.save_model(tmp_path, CONFIG, {old: np.float32([1]), "head/bias": np.float32([2])})
    assert checkpoint.load_model(tmp_path)[1] == {new: 1, "head/bias": 2}
    steps = checkpoint.TrainCheckpoints(tmp_path, every_steps=1, keep=1)
    steps.save(1, {"params": {old: jnp.float32([3])}})
    steps.close()
    assert checkpoint.load_model(tmp_path)[1] == {new: 3, "head/bias": 2}
    assert checkpoint.load_model(tmp_path, initial=True)[1] == {new: 1, "head/bias": 2}


def test_a_merged_model_of_a_time_when_it_had_one_head_is_read(tmp_path):
    config = SamClipConfig(heads={"clip": ClipHeadConfig(depth=2)})
    checkpoint.save_model(tmp_path, config, {"clip_head/norm/bias": np.float32([1])})
    described = json.loads((tmp_path / "model.json").read_text())
    described["config"]["clip_head"] = described["config"].pop("heads")["clip"]
    (tmp_path / "model.json").write_text(json.dumps(described))
    assert checkpoint.load_config(tmp_path) == config
    assert "heads/clip/norm/bias" in checkpoint.load_model(tmp_path)[1]


def test_steps_are_saved_when_due_or_forced_and_only_the_newest_are_kept(tmp_path):
    steps = checkpoint.TrainCheckpoints(tmp_path, every_steps=10, keep=2)
    due, saved = [], []
    for step in range(1, 36):
        due += [step] if steps.due(step) else []
        saved += [step] if steps.save(step, {"params": {"a": jnp.ones(3)}}) else []
    assert due == saved == [10, 20, 30]
    assert steps.save(35, {"params": {"a": jnp.ones(3)}}, force=True)
    assert not steps.save(35, {"params": {"a": jnp.ones(3)}}, force=True), "it is there already"
    steps.close()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["30", "35"]


def test_a_state_may_be_donated_while_it_is_being_saved(tmp_path):
    add_one = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    steps = checkpoint.TrainCheckpoints(tmp_path, every_steps=1, keep=9)
    state = {"params": {"a": jnp.zeros((1500, 1500))}, "step": jnp.int32(0)}
    for step in range(1, 5):
        state = add_one(state)
        steps.save(step, state)
    state = add_one(add_one(state))
    restored = steps.restore(jax.eval_shape(lambda: state))
    steps.close()
    assert int(restored["step"]) == 4 and (restored["params"]["a"] == 4).all()


def test_a_run_without_steps_restores_nothing(tmp_path):
    steps = checkpoint.TrainCheckpoints(tmp_path, every_steps=1, keep=1)
    assert steps.latest_step is None and steps.restore(make_state(make_params())) is None
    steps.close()


def test_a_state_of_another_configuration_is_refused_with_every_difference(run):
    other = make_params()
    other["head/kernel"] = np.zeros((512, 128), np.float32)
    state = make_state(other)
    state["positions"]["depth"] = jnp.int32(0)
    steps = checkpoint.TrainCheckpoints(run, every_steps=10, keep=2)
    with pytest.raises(UserError) as error:
        steps.restore(state)
    steps.close()
    lines = str(error.value).splitlines()
    assert "20 is of another configuration or of an earlier version, 4 arrays differ" in lines[0]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["missing", "positions/depth"],
        ["shape", "opt_state/1/0/mu/head/kernel"],
        ["shape", "opt_state/1/0/nu/head/kernel"],
        ["shape", "params/head/kernel"],
    ]


ON_EIGHT_DEVICES = """
import sys, jax
from samclip_jax import checkpoint, sharding
from tests.test_checkpoint import CONFIG, make_params, make_state

old, new = sys.argv[1:]
mesh = sharding.make_mesh(fsdp=8)
config, params, _ = checkpoint.load_model(old, mesh=mesh)
assert params["encoder/kernel"].addressable_shards[0].data.shape == (3, 256, 64)
checkpoint.save_model(new, config, params)

steps = checkpoint.TrainCheckpoints(old, 10, 2)
state = make_state(make_params())
abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s if x.ndim else None),
    state, sharding.shardings(mesh, state),
)
state = steps.restore(abstract)
steps.close()
assert state["params"]["head/kernel"].addressable_shards[0].data.shape == (64, 256)
for scalar in (x for x in jax.tree.leaves(state) if not x.ndim):
    assert scalar.is_fully_replicated and len(scalar.devices()) == 8
steps = checkpoint.TrainCheckpoints(new, 10, 2)
steps.save(30, jax.tree.map(lambda x: x + 1, state), force=True)
steps.close()
"""


def test_one_device_to_eight_and_back(run, tmp_path, run_python):
    """Sharded as told, scalars on every device; what eight devices wrote one device reads."""
    code, _, err = run_python(ON_EIGHT_DEVICES, run, tmp_path / "new", devices=8)
    assert code == 0, err
    newest = {name: make_params(20)[name] + 1 for name in TRAINABLE}
    assert_same(checkpoint.load_model(tmp_path / "new")[1], {**make_params(), **newest})
    steps = checkpoint.TrainCheckpoints(tmp_path / "new", 10, 2)
    state = make_state(make_params(20), 20)
    assert_same(steps.restore(state), jax.tree.map(lambda x: x + 1, state))
    steps.close()


SAVES_FOR_LONG = """
import sys, jax.numpy as jnp, numpy as np
from samclip_jax import checkpoint
from samclip_jax.models.config import SamConfig

big = {str(i): jnp.full((2000, 2500), 2.0) for i in range(12)}
if sys.argv[2] == "model":
    checkpoint.save_model(sys.argv[1], SamConfig(), big)
steps = checkpoint.TrainCheckpoints(sys.argv[1], 1, 3)
steps.save(1, {"params": {name: 0 * x + 1 for name, x in big.items()}})
steps.save(2, {"params": big})
steps.close()
print("done")
"""


def killed_while_it_wrote(process, unfinished):
    """Waits for the first file under `unfinished`, then kill -9."""
    deadline = time.monotonic() + 60
    while not any(path.is_file() for path in unfinished.rglob("*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    return "done" not in process.communicate()[0]


def test_kill_9_in_the_middle_of_a_step_leaves_the_one_before(tmp_path, start_python):
    process = start_python(SAVES_FOR_LONG, tmp_path, "step")
    assert killed_while_it_wrote(process, tmp_path / "checkpoints/2.orbax-checkpoint-tmp")
    steps = checkpoint.TrainCheckpoints(tmp_path, 1, 3)
    assert steps.latest_step == 1
    abstract = {"params": {str(i): jax.ShapeDtypeStruct((2000, 2500), "f4") for i in range(12)}}
    assert all((leaf == 1).all() for leaf in steps.restore(abstract)["params"].values())
    assert steps.save(3, {"params": {"a": jnp.ones(2)}})
    steps.close()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "3"], "the ruins are cleared away"


def test_kill_9_in_the_middle_of_a_model_leaves_no_checkpoint(tmp_path, start_python):
    process = start_python(SAVES_FOR_LONG, tmp_path / "sam", "model")
    assert killed_while_it_wrote(process, tmp_path / "sam.incomplete")
    with pytest.raises(UserError, match="there is no checkpoint at .*/sam: no such directory"):
        checkpoint.load_model(tmp_path / "sam")
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load_model(tmp_path / "sam.incomplete")
    checkpoint.save_model(tmp_path / "sam", CONFIG, make_params())
    assert sorted(os.listdir(tmp_path)) == ["sam"], "the ruins are cleared away"


FAILS = """
import os, sys
import jax.numpy as jnp, numpy as np
from samclip_jax import checkpoint
from samclip_jax.errors import command
from samclip_jax.models.config import SamConfig

small, big = ({"a": np.random.rand(n).astype(np.float32)} for n in (9, 2_000_000))
checkpoint.save_model(sys.argv[2] + "/old", SamConfig(), small)
steps = checkpoint.TrainCheckpoints(sys.argv[2] + "/old", 1, 3)
steps.save(1, {"params": small})
steps.close()

@command
def save(path):
    if sys.argv[1] == "model":
        checkpoint.save_model(path + "/new", SamConfig(), big)
    else:
        steps = checkpoint.TrainCheckpoints(path + "/old", 1, 3)
        try:
            steps.save(2, {"params": big})
        finally:
            steps.close()

if sys.argv[3] == "forbidden":
    for folder, *_ in os.walk(sys.argv[2]):
        os.chmod(folder, 0o555)
    if os.geteuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)
try:
    save(sys.argv[2])
finally:
    if sys.argv[3] == "forbidden":
        os.seteuid(os.getuid())
    params = checkpoint.load_model(sys.argv[2] + "/old")[1]
    assert (params["a"] == small["a"]).all()
    print(sorted(os.listdir(sys.argv[2])))
"""


@pytest.fixture
def full_disk(tmp_path):
    """A command prefix under which tmp_path/full is a file system of 4 MB."""
    (tmp_path / "full").mkdir()
    mount = f'mount -t tmpfs -o size=4m none {tmp_path}/full && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*prefix, "true"], capture_output=True).returncode
    ):
        pytest.skip("mounting a small file system is not allowed here")
    return prefix


@pytest.mark.parametrize("what", ["model", "step"])
def test_no_space_is_one_sentence_and_the_old_checkpoint_survives(
    what, tmp_path, run_python, full_disk
):
    code, out, err = run_python(FAILS, what, tmp_path / "full", "full", wrapper=full_disk)
    assert code == 1
    assert err.startswith("-c: ") and "No space left on device; free some space or" in err
    assert len(err.splitlines()) == 1
    assert out == "['old']\n"


@pytest.mark.parametrize("what", ["model", "step"])
def test_no_permission_is_one_sentence_and_the_old_checkpoint_survives(what, tmp_path, run_python):
    for folder in tmp_path, *tmp_path.parents[:2]:
        folder.chmod(0o755)
    code, out, err = run_python(FAILS, what, tmp_path, "forbidden")
    assert code == 1
    assert "was not written: Permission denied; choose a directory that you may use" in err
    assert len(err.splitlines()) == 1
    assert out == "['old']\n"


def test_what_is_no_checkpoint_is_named_with_what_was_found(tmp_path, run):
    (tmp_path / "empty").mkdir()
    (tmp_path / "huggingface").mkdir()
    for name in "config.json", "model.safetensors":
        (tmp_path / "huggingface" / name).touch()
    (tmp_path / "sam_vit_b.pth").touch()
    for name, message in {
        "absent": "there is no checkpoint at .*absent: no such directory",
        "empty": "has no model.json, it is empty",
        "huggingface": "has no model.json, it holds config.json, model.safetensors",
        "sam_vit_b.pth": "is a file.*samclip_jax.convert import .*sam_vit_b.pth OUTPUT",
        "run/checkpoints/20": "is one step of a run; give the run, .*/run$",
    }.items():
        with pytest.raises(UserError, match=message):
            checkpoint.load_model(tmp_path / name)


def test_a_checkpoint_of_another_kind_is_refused_before_anything_is_read(tmp_path):
    checkpoint.save_model(tmp_path / "sam", CONFIG, make_params())
    shutil.rmtree(tmp_path / "sam" / "params")
    message = "sam is a SAM checkpoint; a CLIP or a merged SAM-CLIP one is needed"
    with pytest.raises(UserError, match=message):
        checkpoint.load_model(tmp_path / "sam", {"summary"})
    with pytest.raises(UserError, match="sam is incomplete"):
        checkpoint.load_model(tmp_path / "sam", {"masks"})


@pytest.mark.parametrize("part", ["model.json", "params/state/_METADATA", "params/state/**/d/*"])
def test_damaged_files_are_named(tmp_path, part):
    """Half of a file is gone: of the config, of the list of parameters, of the weights."""
    checkpoint.save_model(tmp_path / "sam", CONFIG, make_params())
    file = max((tmp_path / "sam").glob(part), key=os.path.getsize)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load_model(tmp_path / "sam")
