"""The whole job at toy size: two teachers imported, merged in three stages, every claim measured.

python -m samclip_jax.demo --workdir=runs/demo

Writes WORKDIR/{teachers/sam,teachers/clip,distill_only,stage1,stage2,stage3}, each a checkpoint
that `samclip_jax.load` takes, and WORKDIR/report.json, report.html and picture.jpg. What was
finished by an earlier call is not done again.
"""

import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import jax
from absl import app, flags, logging
from tqdm import tqdm

from samclip_jax import (
    checkpoint,
    compilation,
    demo_stages,
    errors,
    evals,
    interrupt,
    models,
    page,
    progress,
    train,
)
from samclip_jax.data.shapes import TEMPLATES
from samclip_jax.data.sources import make_source
from samclip_jax.data.worker import end_with
from samclip_jax.inference.model import load
from samclip_jax.metrics import write_json
from samclip_jax.paths import local_path
from samclip_jax.report import claims

WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "where everything is written")
SEED = flags.DEFINE_integer("seed", 0, "of the CLIP head's start and of the order of the data")

ASSETS = Path(__file__).parent / "assets" / "teachers"
TEACHERS = {"sam": ASSETS / "sam.pth", "clip": ASSETS / "clip"}
INIT = {  # what each stage starts from
    "distill_only": "teachers/sam",
    "stage1": "teachers/sam",
    "stage2": "stage1",
    "stage3": "stage2",
}
IMAGE_SIZE = 96
DATA = {  # what is measured on: images that nobody was trained on; only "tuning" chose anything
    "objects": dict(name="shape_objects", split="final", size=1000, image_size=IMAGE_SIZE, seed=1),
    "scenes": dict(name="shape_scenes", split="final", size=200, image_size=IMAGE_SIZE, seed=1),
    "tuning": dict(name="shape_scenes", split="tuning", size=100, image_size=IMAGE_SIZE),
}
ALPHAS = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.7, 1.0)  # dense where it is close


def run(workdir, seed=0):
    """Everything, into workdir; returns the report."""
    began = time.monotonic()
    import_teachers(workdir)
    configs = {stage: stage_config(stage, workdir, seed) for stage in INIT}
    report = side_by_side((baseline, workdir, configs, DATA), (merged, workdir, configs, DATA))
    report["claims"] = claims(report)
    report["seconds"] = round(time.monotonic() - began, 1)
    write_json(workdir / "report.json", report)
    shown = {"sam": load(workdir / "teachers/sam"), "samclip": load(workdir / "stage3")}
    runs = {stage: workdir / stage / "metrics.jsonl" for stage in INIT}
    scenes = make_source(**DATA["scenes"])
    page.write(workdir / "report.html", report, shown, runs, scenes, demo_stages.REFINEMENT)
    page.write_picture(workdir / "picture.jpg", shown["samclip"], scenes, demo_stages.REFINEMENT)
    return report


def baseline(workdir, configs, data):
    """The report of both teachers and of the paper's baseline."""
    report = {
        f"{kind}_teacher": measure(load(workdir / "teachers" / kind), data) for kind in TEACHERS
    }
    train.train(configs["distill_only"], workdir / "distill_only", "baseline")
    report["distill_only"] = measure(load(workdir / "distill_only"), data)
    report["wise_ft"] = wise_ft(workdir, data)
    return report


def merged(workdir, configs, data):
    """The report of the paper's three stages."""
    for number in (1, 2, 3):
        stage = f"stage{number}"
        train.train(configs[stage], workdir / stage, f"stage {number} of 3")
    model = load(workdir / "stage3")
    report = {"stage2": measure(load(workdir / "stage2"), data), "samclip": measure(model, data)}
    for prefix, refinement in (("", demo_stages.REFINEMENT), ("paper_", {})):
        both = evals.evaluate(
            model,
            "refined_segmentation",
            data["scenes"],
            templates=TEMPLATES,
            refinement=refinement,
        )
        key = "refined_segmentation_miou"
        report["samclip"][prefix + key] = both[key]
    report["parameters"] = sizes(workdir, model)
    return report


def side_by_side(*lanes):
    """What (function, *arguments) of every lane return, together; each lane is a process on its
    share of the cores, for models this small leave a second one idle. An error ends them all."""
    context = multiprocessing.get_context("spawn")
    lock = context.RLock()  # of the terminal
    with futures.ProcessPoolExecutor(len(lanes), context, tqdm.set_lock, (lock,)) as pool:
        running = [
            pool.submit(in_lane, line, cores, *lane)
            for line, (cores, lane) in enumerate(zip(shares(len(lanes)), lanes, strict=True))
        ]
        done, unfinished = futures.wait(running, return_when=futures.FIRST_EXCEPTION)
        if unfinished:
            for process in multiprocessing.active_children():
                process.terminate()
        return {name: part for lane in done for name, part in lane.result().items()}


def shares(count):
    """The cores of this process in `count` parts; None where there are too few or none is told."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ()
    if len(cores) < count:
        return [None] * count
    return [cores[i * len(cores) // count : (i + 1) * len(cores) // count] for i in range(count)]


def in_lane(line, cores, function, *arguments):
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    if cores:
        os.sched_setaffinity(0, cores)
    progress.use_line(line)
    set_up()
    return function(*arguments)


def set_up():
    """On the CPU, quietly: two processes cannot share an accelerator, Orbax tells every step."""
    jax.config.update("jax_platforms", "cpu")
    compilation.use_cache()
    logging.set_verbosity(logging.WARNING)


def import_teachers(workdir):
    """WORKDIR/teachers/{sam,clip}: the released files through the importer's command, once."""
    for kind, source in TEACHERS.items():
        made = workdir / "teachers" / kind
        if not (made / "model.json").exists():
            command = ["samclip_jax.convert", "import", source, made]
            if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
                raise errors.UserError(f"the {kind} teacher could not be imported, see above")


def stage_config(stage, workdir, seed):
    """The config of a stage in workdir. UserError where the stage was begun with another one."""
    values = demo_stages.get_config(stage)
    values.init = str(workdir / INIT[stage])
    values.teachers.sam, values.teachers.clip = (
        str(workdir / "teachers" / kind) for kind in ("sam", "clip")
    )
    values.seed = seed
    begun = workdir / stage / "config.json"
    if begun.exists() and json.loads(begun.read_text()) != json.loads(values.to_json_best_effort()):
        raise errors.UserError(
            f"{workdir / stage} was begun with another seed or config: remove {workdir} or choose "
            "another --workdir"
        )
    return values


def measure(model, data):
    """{metric: value} of everything that a model can do; `data` as DATA."""
    found, resolutions = {}, dict(image_size=IMAGE_SIZE, templates=TEMPLATES)
    if model.gives("text"):
        found |= evals.evaluate(model, "zero_shot_classification", data["objects"], **resolutions)
        found |= evals.evaluate(model, "zero_shot_segmentation", data["scenes"], **resolutions)
    if model.gives("text") and not model.gives("masks"):
        other = evals.evaluate(
            model, "zero_shot_segmentation", data["scenes"], templates=TEMPLATES, maskclip=True
        )
        found["maskclip_segmentation_miou"] = other["zero_shot_segmentation_miou"]
    if model.gives("masks"):
        tuned = evals.evaluate(model, "box_masks", data["tuning"], threshold="best")
        threshold = tuned["box_threshold"]
        found |= evals.evaluate(model, "box_masks", data["scenes"], threshold=threshold)
        found |= evals.evaluate(model, "point_masks", data["scenes"])
    return found


def wise_ft(workdir, data):
    """The baseline interpolated with SAM (appendix D): [{alpha, accuracy, box mIoU}, ...].

    alpha 0 is SAM's encoder and decoder, 1 the baseline; the CLIP head is the baseline's.
    """
    model = load(workdir / "distill_only")
    _, start, _ = checkpoint.load_model(workdir / "distill_only", initial=True)
    rows = []
    for alpha in progress.Bar(ALPHAS, "interpolations", unit="of them"):
        mixed = model.with_params(models.wise_ft(start, model.params, alpha))
        found = {"alpha": alpha}
        found |= evals.evaluate(
            mixed,
            "zero_shot_classification",
            data["objects"],
            image_size=IMAGE_SIZE,
            templates=TEMPLATES,
        )
        found |= evals.evaluate(mixed, "box_masks", data["scenes"])
        rows.append({key: found[key] for key in ("alpha", "zero_shot_accuracy", "box_miou")})
    return rows


def sizes(workdir, model):
    """Parameters of the merged image side beside the two separate ones."""
    found = {"samclip": model.params}
    found |= {kind: checkpoint.load_model(workdir / "teachers" / kind)[1] for kind in TEACHERS}
    parts = {
        "sam_encoder": ("sam", "encoder/"),
        "clip_encoder": ("clip", "vision/"),
        "samclip_encoder": ("samclip", "encoder/"),
        "clip_head": ("samclip", "heads/clip/"),
    }
    return {
        part: models.count({k: v for k, v in found[kind].items() if k.startswith(prefix)})
        for part, (kind, prefix) in parts.items()
    }


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; options are --name=value")
    set_up()
    try:
        report = run(local_path(WORKDIR.value), SEED.value)
    except KeyboardInterrupt:
        print("stopped, and saved; the same command goes on", file=sys.stderr)
        sys.exit(interrupt.EXIT_CODE + signal.SIGINT)
    print(ending(report, WORKDIR.value))


def ending(report, workdir):
    """What is printed at the end: the claims, where the page is, and what to try next."""
    width = max(len(claim["claim"]) for claim in report["claims"])
    lines = [f"{'SAM-CLIP, in points':<{width}}  measured  at least"]
    lines += [
        f"{claim['claim']:<{width}}  {claim['points']:>+8.1f}  {claim['asked']:>+8.1f}"
        f"  {'holds' if claim['holds'] else 'does not hold'}"
        for claim in report["claims"]
    ]
    lines += [
        "",
        f"{report['seconds'] / 60:.0f} minutes. Pictures and tables: {workdir}/report.html",
    ]
    return "\n".join([*lines, "", "To try next, with this model:", *what_to_try(workdir)])


def what_to_try(workdir):
    """Commands for the model in workdir; some need the checkout's configs/."""
    near = Path(sys.executable).is_relative_to(Path.cwd())
    python = os.path.relpath(sys.executable) if near else sys.executable
    start, folder = f"  {shlex.quote(python)} -m samclip_jax", shlex.quote(workdir)
    commands = [
        f"{start}.convert export {folder}/stage3 {folder}/sam.pth --layout segment_anything"
    ]
    if Path("configs/demo.py").exists():
        commands += [
            f"{start}.evaluate --config=configs/eval.py:box_masks --checkpoint={folder}/stage3 \\",
            "      --config.data.name=shape_scenes --config.data.split=final --config.data.size=50",
            f"{start}.main --config=configs/demo.py:stage3 --workdir={folder}/longer \\",
            f"      --config.init={folder}/stage3 --config.teachers.clip={folder}/teachers/clip",
        ]
    return commands


if __name__ == "__main__":
    app.run(errors.command(main))
