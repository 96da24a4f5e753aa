"""--compile_only: what a run would take on a pod that is not here. Most need libtpu, none a TPU."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import demo, stage1, stage2, stage3
from samclip_jax import checkpoint, families, models, sharding, train
from samclip_jax import compile_only as co
from samclip_jax.errors import UserError
from samclip_jax.models.config import (
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ImageEncoderConfig,
    MaskDecoderConfig,
    SamClipConfig,
    SamConfig,
)
from samclip_jax.streams import batch_sizes, make_mesh, read_streams


def tpu(test):
    found = pytest.mark.skipif(not co.has_compiler(), reason="the compiler for TPUs is absent")
    return pytest.mark.slow(found(test))


def test_without_checkpoints_it_is_the_papers_models():
    student, teachers = co.model_configs(train.read_config(stage2.get_config()))
    assert student == SamClipConfig()
    assert teachers == {"clip": ClipConfig(), "sam": SamConfig()}


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    def absent(**_):
        raise RuntimeError("no libtpu")

    monkeypatch.setattr(co.topologies, "get_topology_desc", absent)
    with pytest.raises(UserError, match=r"pip install 'samclip_jax\[tpu\]'.*no libtpu"):
        co.topology_devices("v5e:2x4")


@pytest.fixture(scope="module")
def small(tmp_path_factory, words):
    """{"init": DIR, "teachers": {name: DIR}} of models that compile soon."""
    sam = SamConfig(
        ImageEncoderConfig(
            width=128, depth=2, heads=2, groups=1, image_size=256, window=7, mlp_width=256,
            out_channels=32,
        ),
        MaskDecoderConfig(mlp_width=64, iou_width=32),
    )  # fmt: skip
    clip = ClipConfig(
        ClipVisionConfig(width=128, depth=2, heads=2, mlp_width=256, image_size=224, embed_dim=64),
        ClipTextConfig(
            width=32, depth=1, heads=2, mlp_width=32, context_length=8, vocab_size=60, embed_dim=64
        ),
    )
    folder = tmp_path_factory.mktemp("small")
    for name, config in (("sam", sam), ("clip", clip)):
        _, params = models.split(families.init(config))
        checkpoint.save_model(folder / name, config, params, words if name == "clip" else None)
    return {"sam": str(folder / "sam"), "clip": str(folder / "clip")}


def experiment(small, clip_batch=16, sam_batch=4):
    config = demo.get_config("stage2")
    config.init, config.teachers, config.dtype = small["sam"], small, "bfloat16"
    config.streams.clip.update(
        batch_size=clip_batch, base_resolution=224, resolutions=(224, 448), batch_multiple=1
    )
    config.streams.sam.update(batch_size=sam_batch, image_size=256)
    return config


@tpu
@pytest.mark.parametrize("stage", [stage1, stage2, stage3])
def test_every_program_of_a_stage_can_be_cut_over_256_chips(stage):
    """Traced, not compiled. Of 128 photographs of 1024 px, two chips share each."""
    values = stage.get_config()
    values.fsdp = 8
    config = train.read_config(values)
    streams = read_streams(config)
    mesh = make_mesh(config, streams, co.topology_devices("v5e:16x16"))
    assert mesh.size == 256
    for sizes in co.programs(batch_sizes(streams)):
        step, arguments, _ = co.abstract_step(config, streams, mesh, sizes)
        with jax.set_mesh(mesh):
            step.trace(*arguments)


@tpu
def test_several_slices_are_cut_along_the_batch():
    """State and the devices that share an image stay within a slice."""
    mesh = sharding.make_mesh(2, (16, 8), co.topology_devices("v5e:2x2*4"))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "image": 2}
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (slices == np.arange(4)[:, None, None]).all()
    with pytest.raises(UserError, match="4 slices need a data axis that they divide, it is 2"):
        sharding.make_mesh(2, (16, 4), co.topology_devices("v5e:2x2*4"))


@tpu
def test_the_report_has_an_entry_for_every_program(small, tmp_path, capsys):
    """Eight chips, of which two share each of the 4 images of 448 px."""
    config = experiment(small)
    del config.terms.sam
    found = co.compile_only(config, "v5e:2x4", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert found["mesh"] == {"data": 4, "fsdp": 1, "image": 2} and found["devices"] == 8
    assert [program["resolutions"] for program in found["programs"]] == [
        {"clip": 224},
        {"clip": 448},
    ]
    for entry in (found, *found["programs"]):
        assert entry["fits"] and entry["hbm_bytes_per_device"] < entry["hbm_limit_bytes"] == 16e9
        assert 1 < entry["flops_per_device"] / entry["ideal_flops_per_device"] < 2
        assert entry["bytes_accessed_per_device"] > entry["hbm_bytes_accessed_per_device"] > 0
        assert entry["collective_bytes_per_device"] > 0 and entry["compile_seconds"] > 0
    said = capsys.readouterr().out
    assert "v5e:2x4: 8 chips as data 4 x fsdp 1 x image 2" in said and "of 16 GB: fits" in said


@tpu
def test_what_does_not_fit_says_what_to_change(small, tmp_path, monkeypatch):
    """Less memory in the table than both terms take, where two chips share each of 4 SAM images:
    the report is written, the sentence tells."""
    monkeypatch.setitem(co.CHIPS, "TPU v5 lite", co.CHIPS["TPU v5 lite"]._replace(memory=1e6))
    config = experiment(small)
    config.streams.clip.resolutions = (224,)
    with pytest.raises(
        UserError, match=r"not hold this step .*--config.*micro_batches .*--config.fsdp"
    ):
        co.compile_only(config, "v5e:2x4", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["fits"] and report["mesh"]["image"] == 2
    (program,) = report["programs"]
    assert program["resolutions"] == {"clip": 224, "sam": 256}
    assert 1 < program["flops_per_device"] / program["ideal_flops_per_device"] < 2


@tpu
def test_the_compilers_own_refusal_says_the_same(small, tmp_path):
    """65536 images on 4 chips."""
    config = experiment(small, clip_batch=2**16)
    config.streams.clip.resolutions = (224,)
    with pytest.raises(UserError, match="v5e:2x2 does not hold this step"):
        co.compile_only(config, "v5e:2x2", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["fits"] and report["hbm_bytes_per_device"] > 16e9


@tpu
@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--compile_only=v9:2x2"], "--compile_only=v9:2x2: no such topology"),
        (["--compile_only=v5e:2x4*"], "--compile_only=v5e:2x4*: no such topology"),
        (["--compile_only=v5e:2x4", "--config.fsdp=3"], "fsdp=3 does not divide the 8 devices"),
        (
            ["--compile_only=v5e:16x16", "--config.streams.sam.batch_size=2"],
            "128 devices cannot share an image of 64 rows of patches and 32 prompts evenly",
        ),
        (["--compile_only=v5e:2x4", "--workdir=run"], "leave out --workdir"),
        (["--report=report.json", "--workdir=run"], "--report goes with --compile_only"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, last_words):
    assert sentence in last_words("samclip_jax.main", "--config=configs/stage2.py", *arguments)


@tpu
def test_the_command_needs_no_tpu(environment):
    command = [sys.executable, "-m", "samclip_jax.main", "--config=configs/stage2.py"]
    command += ["--compile_only=v5e:2x4", "--config.fsdp=3"]
    environment = {k: v for k, v in environment.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "fsdp=3 does not divide the 8 devices" in done.stderr.splitlines()[-1]


@tpu
def test_a_model_that_answers_compiles_for_four_chips(small):
    """As evaluation runs it, with the attention kernel, and no chip waits for another."""
    from samclip_jax.inference import model as inference

    config = checkpoint.load_config(small["sam"])
    devices = co.topology_devices("v5e:2x2")
    model = inference.Model(config, {}, dtype=jnp.dtype("bfloat16"), devices=devices)

    def there(spec, shape, dtype):
        place = jax.NamedSharding(model.mesh, jax.P(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    _, params = models.split(families.abstract(config))
    params = {name: there((), leaf.shape, leaf.dtype) for name, leaf in params.items()}
    frames = there(["rows"], (8, 256, 256, 3), jnp.uint8), there(["rows"], (8, 2), jnp.int32)
    encode = model.program(inference._encode_frames, dtype=model.dtype)
    text = encode.lower(params, frames, ()).compile().as_text()
    assert "tpu_custom_call" in text
    points = there(["rows"], (16, 2, 2), jnp.float32)
    prompts = there(["rows"], (16,), jnp.int32), points, there(["rows"], (16, 2), jnp.int32)
    embedding = there((), (8, 16, 16, 32), jnp.float32)
    decode = model.program(inference._masks, multimask=False)
    text += decode.lower(params, prompts, (embedding,)).compile().as_text()
    assert not re.search("all-gather|all-reduce|collective-permute|all-to-all", text)
