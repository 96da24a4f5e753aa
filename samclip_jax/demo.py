"""The whole job at toy size: two teachers imported, merged in three stages, every claim measured.

python -m samclip_jax.demo --workdir=runs/demo

Writes WORKDIR/{teachers/sam,teachers/clip,distill_only,stage1,stage2,stage3}, each a checkpoint
that `samclip_jax.load` takes, and WORKDIR/report.json and report.html. What was finished by an
earlier call is not done again.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags, logging

from configs import demo as demo_config
from samclip_jax import checkpoint, errors, evals, models, train
from samclip_jax.data.shapes import TEMPLATES
from samclip_jax.data.sources import make_source
from samclip_jax.inference.model import load
from samclip_jax.report import write_html

WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "where everything is written")
SEED = flags.DEFINE_integer("seed", 0, "of the CLIP head's start and of the order of the data")

ASSETS = Path(__file__).parent / "assets" / "teachers"
TEACHERS = {"sam": ASSETS / "sam.pth", "clip": ASSETS / "clip"}
STAGES = ("distill_only", "stage1", "stage2", "stage3")
IMAGE_SIZE = 96
OBJECTS = dict(name="shape_objects", split="final", size=1000, image_size=IMAGE_SIZE)
SCENES = dict(name="shape_scenes", split="final", size=200, image_size=IMAGE_SIZE)
TUNING = {**SCENES, "split": "tuning", "size": 100}
ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def import_teachers(workdir):
    """{"sam": DIR, "clip": DIR}: the released files through the importer's command, once."""
    made = {kind: workdir / "teachers" / kind for kind in TEACHERS}
    for kind, source in TEACHERS.items():
        if not (made[kind] / "model.json").exists():
            command = ["tools.convert_weights", "import", source, made[kind]]
            if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
                raise errors.UserError(f"the {kind} teacher could not be imported, see above")
    return made


def run_stages(workdir, teachers, seed):
    """Trains the baseline and the three stages, each from the one before it."""
    init = {"distill_only": teachers["sam"], "stage1": teachers["sam"]}
    init |= {"stage2": workdir / "stage1", "stage3": workdir / "stage2"}
    for number, stage in enumerate(STAGES, 1):
        values = demo_config.get_config(stage)
        values.init = str(init[stage])
        values.teachers.sam, values.teachers.clip = str(teachers["sam"]), str(teachers["clip"])
        values.seed = seed
        print(f"\n[{number}/{len(STAGES)}] {stage}: {values.steps} steps", flush=True)
        train.train(values, workdir / stage)


def measure(model, threshold=None):
    """{metric: value} of everything that a model can do, on scenes nobody was trained or tuned on.

    threshold: the mask logit that was best on the tuning scenes.
    """
    found = {}
    if model.kind != "sam":
        resolutions = dict(image_size=IMAGE_SIZE, templates=TEMPLATES)
        found |= evals.evaluate(model, "zero_shot_classification", OBJECTS, **resolutions)
        found |= evals.evaluate(model, "zero_shot_segmentation", SCENES, **resolutions)
    if model.kind == "clip":
        other = evals.evaluate(
            model, "zero_shot_segmentation", SCENES, templates=TEMPLATES, maskclip=True
        )
        found["maskclip_segmentation_miou"] = other["zero_shot_segmentation_miou"]
    if model.kind != "clip":
        found |= evals.evaluate(model, "box_masks", SCENES, threshold=threshold)
        found |= evals.evaluate(model, "point_masks", SCENES)
    return found


def tuned_threshold(model):
    return evals.evaluate(model, "box_masks", TUNING, threshold="best")["box_threshold"]


def wise_ft(workdir):
    """The baseline interpolated with SAM (appendix D): [{alpha, accuracy, box mIoU}, ...].

    alpha 0 is SAM's encoder and decoder, 1 the baseline; the CLIP head is the baseline's.
    """
    model = load(workdir / "distill_only")
    _, start, _ = checkpoint.load_model(workdir / "distill_only", initial=True)
    rows = []
    for alpha in ALPHAS:
        mixed = models.wise_ft(start, model.params, alpha)
        found = model.with_params(mixed)
        accuracy = evals.evaluate(
            found, "zero_shot_classification", OBJECTS, image_size=IMAGE_SIZE, templates=TEMPLATES
        )
        boxes = evals.evaluate(found, "box_masks", SCENES)
        rows.append(
            {
                "alpha": alpha,
                "zero_shot_accuracy": accuracy["zero_shot_accuracy"],
                "box_miou": boxes["box_miou"],
            }
        )
    return rows


def run(workdir, seed=0):
    """Everything, into workdir; returns the report."""
    began = time.monotonic()
    teachers = import_teachers(workdir)
    run_stages(workdir, teachers, seed)
    trained = time.monotonic()
    places = {
        "clip_teacher": teachers["clip"],
        "sam_teacher": teachers["sam"],
        "distill_only": workdir / "distill_only",
        "stage2": workdir / "stage2",
        "samclip": workdir / "stage3",
    }
    report = {}
    for name, place in places.items():
        print(f"measuring {name}", flush=True)
        model = load(place)
        report[name] = measure(model, None if model.kind == "clip" else tuned_threshold(model))
    report["samclip"] |= evals.evaluate(
        model,
        "refined_segmentation",
        SCENES,
        templates=TEMPLATES,
        refinement=demo_config.REFINEMENT,
    )
    print("measuring the interpolations of distill_only with SAM", flush=True)
    report["wise_ft"] = wise_ft(workdir)
    report["parameters"] = sizes(teachers, model)
    report["training_seconds"] = round(trained - began, 1)
    report["seconds"] = round(time.monotonic() - began, 1)
    (workdir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    scenes = make_source(**SCENES)
    write_html(workdir / "report.html", report, model, scenes, demo_config.REFINEMENT)
    return report


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; options are --name=value")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells every step at INFO
    report = run(Path(WORKDIR.value), SEED.value)
    print(f"{WORKDIR.value}/report.json and report.html, {report['seconds']:.0f} seconds")


def sizes(teachers, model):
    """Parameters and bytes of the merged image side beside the two separate ones."""
    found = {"samclip": model.params}
    found |= {kind: checkpoint.load_model(place)[1] for kind, place in teachers.items()}
    parts = {
        "sam_encoder": ("sam", "encoder/"),
        "clip_encoder": ("clip", "vision/"),
        "samclip_encoder": ("samclip", "encoder/"),
        "clip_head": ("samclip", "clip_head/"),
    }
    return {
        part: models.count({k: v for k, v in found[kind].items() if k.startswith(prefix)})
        for part, (kind, prefix) in parts.items()
    }


if __name__ == "__main__":
    app.run(errors.command(main))
