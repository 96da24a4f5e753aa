"""evaluate.py: one command from a checkpoint to a report, and one sentence for every mistake."""

import json
import signal
import time

import pytest
from flax.serialization import msgpack_restore

from samclip_jax.checkpoint import save_model

CODE = """
import runpy, sys
sys.argv[0] = "evaluate"
runpy.run_module("samclip_jax.evaluate", run_name="__main__", alter_sys=True)
"""
SCENES = ("--config.data.name=shape_scenes", "--config.data.split=tuning", "--config.data.size=2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_clip, words):
    """--checkpoint of a tiny CLIP."""
    folder = tmp_path_factory.mktemp("checkpoints") / "clip"
    save_model(folder, tiny_clip.config, tiny_clip.params, words)
    return f"--checkpoint={folder}"


def test_a_report_holds_the_results_and_what_was_run(checkpoint, run_python, tmp_path):
    report = tmp_path / "report.json"
    code, out, err = run_python(
        CODE,
        "--config=configs/eval.py:zero_shot_segmentation",
        checkpoint,
        *SCENES,
        "--config.templates=('a {}.', 'a small {}.')",
        "--config.batch_size=2",
        f"--report={report}",
        checkpoint.replace("--checkpoint", "--config.baseline"),
    )
    assert code == 0, err
    found = json.loads(report.read_text())
    assert json.loads(out) == found
    assert found["task"] == "zero_shot_segmentation" and found["images"] == 2
    assert 0 <= found["zero_shot_segmentation_miou"] <= 1
    assert found["config"]["templates"] == ["a {}.", "a small {}."]
    assert found["config"]["data"]["name"] == "shape_scenes"
    assert found["seconds"] > 0
    baseline = found["baseline"]
    assert baseline.pop("checkpoint") == found["checkpoint"]
    assert {name: found[name] for name in baseline} == baseline
    assert found["difference"] == {
        "zero_shot_segmentation_miou": 0,
        "zero_shot_segmentation_pixel_accuracy": 0,
    }
    assert list(tmp_path.iterdir()) == [report]


def test_an_evaluation_that_was_stopped_goes_on(checkpoint, start_python, run_python, tmp_path):
    """Ctrl-C, and the same command again: it reads what is left."""
    report = tmp_path / "report.json"
    task, size = "--config=configs/eval.py:zero_shot_segmentation", "--config.data.size=1500"
    options = "--config.templates=('a {}.',)", "--config.batch_size=2", f"--report={report}"
    command = CODE, task, checkpoint, *SCENES, size, *options
    process = start_python(*command)
    while process.poll() is None and not list(tmp_path.iterdir()):
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "", err
    assert err.endswith("stopped; the same command goes on\n") and "Traceback" not in err
    (kept,) = tmp_path.iterdir()
    position = msgpack_restore(kept.read_bytes())["position"]
    assert 0 < position < 1500
    code, _, err = run_python(*command)
    assert code == 0, err
    assert json.loads(report.read_text())["images"] == 1500
    assert list(tmp_path.iterdir()) == [report]


@pytest.mark.parametrize(
    "task, arguments, sentence",
    [
        ("box_mask", (), "name a task"),
        ("box_masks", ("--report=configs",), "is a folder; give the name of a file in it"),
        ("box_masks", ("--config.thresold=1",), 'Did you mean "threshold"'),
        ("box_masks", ("--config.data.name=cocoo_instances",), "did you mean 'coco_instances'"),
        ("box_masks", ("--checkpoint=absent",), "--checkpoint: there is no checkpoint at"),
        ("box_masks", SCENES, "this is a CLIP checkpoint"),
        (
            "box_masks",
            ("--config.baseline=absent",),
            "--config.baseline: there is no",
        ),
        (
            "zero_shot_segmentation",
            (*SCENES, "--config.dtype=float31"),
            "evaluate: --config.dtype must be",
        ),
        ("box_masks", ("--config.wise_ft=2",), "--config.wise_ft must be a number of at least 0"),
        ("box_masks", ("--config.batch_size=0",), "--config.batch_size must be a whole number"),
    ],
)
def test_mistakes_are_one_sentence(checkpoint, last_words, capsys, task, arguments, sentence):
    arguments = f"--config=configs/eval.py:{task}", checkpoint, *arguments
    said = last_words("samclip_jax.evaluate", *arguments)
    assert said.startswith("evaluate: ") and sentence in said and len(said.splitlines()) == 1
    assert capsys.readouterr().out == ""
