"""evals/batches.py, totals.py: many devices and processes count what one does, and go on."""

import json
import socket
import types

import numpy as np
import pytest

from samclip_jax.checkpoint import save_model
from samclip_jax.data.decode import BadRecord
from samclip_jax.errors import UserError
from samclip_jax.evals import batches, totals
from samclip_jax.evals.batches import Evaluation, collect

EVERY_EVALUATOR = """
import json, sys
import jax

folder, *job = sys.argv[1:]
if job:
    jax.distributed.initialize(job[0], num_processes=2, process_id=int(job[1]))
from samclip_jax.data.shapes import TEMPLATES, ShapeObjects, ShapeScenes
from samclip_jax.errors import UserError
from samclip_jax.evals import EVALUATORS, results
from samclip_jax.inference.model import load


class Captioned(ShapeScenes):
    def __getitem__(self, index):
        return super().__getitem__(index) | {"captions": ["grass", self.draw(index)["caption"]]}


model = load(folder, devices=jax.local_devices())
objects, scenes = ShapeObjects("tuning", 11, 64), Captioned("tuning", 11, 64)
TRAIN = ShapeObjects("train", 20, 64)
options = {
    "zero_shot_classification": dict(image_size=64, templates=TEMPLATES[:1]),
    "retrieval": dict(image_size=64),
    "box_masks": dict(threshold="best"),
    "instance_segmentation": {},
    "zero_shot_segmentation": dict(image_size=64, templates=TEMPLATES[:1]),
    "refined_segmentation": dict(templates=TEMPLATES[:1]),
    "knn": dict(train=TRAIN, image_size=64),
    "classification_probe": dict(train=TRAIN, image_size=64, iterations=20),
    "cascade_segmentation": dict(
        image_size=64, points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0,
        templates=TEMPLATES[:1],
    ),
}
for name, given in options.items():
    classified = name in ("zero_shot_classification", "knn", "classification_probe")
    source = objects if classified else scenes
    options[name] = results(EVALUATORS[name](model, source, batch_size=1, **given))
if job:

    class Failing(Captioned):
        def __getitem__(self, index):
            if index == 10:
                raise UserError("the disk is gone")
            return super().__getitem__(index)

    one = results(EVALUATORS["box_masks"](model, scenes, limit=1))  # one process has no record
    options["images of one"] = one["images"]
    try:
        results(EVALUATORS["retrieval"](model, Failing("tuning", 11, 64), image_size=64))
    except UserError as error:
        options["error"] = str(error)
print(json.dumps(options))
"""


@pytest.fixture(scope="module")
def checkpoint(tiny_samclip, words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged") / "model"
    save_model(folder, tiny_samclip.config, tiny_samclip.params, words)
    return folder


@pytest.fixture(scope="module")
def alone(checkpoint, run_python):
    """What every evaluator but point_masks, which is box_masks, finds on one device."""
    code, out, err = run_python(EVERY_EVALUATOR, checkpoint)
    assert code == 0, err
    return json.loads(out)


def same(found, expected):
    for task, wanted in expected.items():
        assert found[task] == pytest.approx(wanted, rel=1e-6), task
        counts = {name: value for name, value in wanted.items() if isinstance(value, int)}
        assert counts["images"] == 11
        assert {name: found[task][name] for name in counts} == counts


@pytest.mark.parametrize("devices", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_devices_together_find_what_one_does(checkpoint, alone, run_python, devices):
    """Eleven images: the last batch is not full, and the last prompts are no multiple either."""
    code, out, err = run_python(EVERY_EVALUATOR, checkpoint, devices=devices)
    assert code == 0, err
    same(json.loads(out), alone)


def test_two_processes_together_find_what_one_does(checkpoint, alone, start_python):
    """Five of the images and six, by two devices each. An error of one is told by both."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        start_python(EVERY_EVALUATOR, checkpoint, address, index, devices=2) for index in range(2)
    ]
    answers = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    found = [json.loads(out.splitlines()[-1]) for out, _ in answers]  # Gloo prints too
    for each in found:
        same(each, alone)
        assert each["images of one"] == 1
    assert found[1]["error"] == "the disk is gone"
    assert found[0]["error"] == "process 1 of the job failed: UserError: the disk is gone"


class Numbers(list):
    """Records 0, 1, 2, ..."""

    def __getitem__(self, index):
        return {"key": str(index), "image": np.zeros((64, 64, 3), np.uint8)}


def test_an_interrupted_evaluation_goes_on(tmp_path, monkeypatch):
    """From the last batch that was counted; another evaluation's counts are not taken."""
    monkeypatch.setattr(batches, "MEASURERS", 1)
    seen, limit = [], 5

    def measure(samples):
        if len(seen) + len(samples) > limit:
            raise KeyboardInterrupt
        seen.extend(samples)
        return {"sum": np.sum(samples), "each": [np.float32(sample) for sample in samples]}

    evaluation = Evaluation(
        "numbers", Numbers(range(11)), 2, None, lambda r: r["index"], measure, lambda totals: ()
    )
    with pytest.raises(KeyboardInterrupt):
        collect(evaluation, totals.Saved(tmp_path, "numbers", "a"))
    assert seen == [0, 1, 2, 3]
    limit = 100
    found = collect(evaluation, totals.Saved(tmp_path, "numbers", "a"))
    assert seen == list(range(11))
    assert (found["images"], found["sum"], found["each"]) == (11, 55, list(range(11)))
    collect(evaluation, totals.Saved(tmp_path, "numbers", "a"))
    assert len(seen) == 11, "it was done"
    collect(evaluation, totals.Saved(tmp_path, "numbers", "b"))
    assert len(seen) == 22
    (file,) = tmp_path.iterdir()
    totals.Saved(tmp_path, "numbers", "b").remove()
    assert not file.exists()


def test_what_is_counted_is_kept_now_and_then(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(monotonic=iter((0.0, 29.0, 31.0, 31.0, 40.0)).__next__)
    monkeypatch.setattr(totals, "time", clock)
    saved = totals.Saved(tmp_path, "numbers", "a")
    saved.write(0, 9, 1, {"sum": 1})
    assert saved.read(0, 9) is None
    saved.write(0, 9, 2, {"sum": 3})
    saved.write(0, 9, 3, {"sum": 6})
    assert saved.read(0, 9) == (2, {"sum": 3})
    assert saved.read(0, 10) is None, "of other records"
    saved.path.write_bytes(saved.path.read_bytes()[:9])
    assert saved.read(0, 9) is None, "it was cut"


def test_what_cannot_be_evaluated_is_tried_again(tmp_path):
    """When the data are mended the same command finds them."""
    source = Numbers(range(3))

    def absent(record):
        raise BadRecord("absent", record["key"])

    evaluation = Evaluation(
        "numbers", source, 2, None, absent, lambda samples: {}, lambda totals: ()
    )
    saved = totals.Saved(tmp_path, "numbers", "a")
    with pytest.raises(UserError, match="no usable image .*'absent': 3"):
        collect(evaluation, saved)
    assert collect(evaluation._replace(prepare=dict), saved)["images"] == 3
