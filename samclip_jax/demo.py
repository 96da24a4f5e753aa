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
    interrupt,
    models,
    page,
    progress,
    train,
)
from samclip_jax.data.shapes import OBJECT_CLASSES, TEMPLATES
from samclip_jax.data.sources import make_source
from samclip_jax.data.worker import end_with
from samclip_jax.demo_stages import CLIP_SIZE, REFINEMENT, SAM_SIZE
from samclip_jax.evals import (
    box_masks,
    point_masks,
    refined_segmentation,
    results,
    zero_shot_classification,
    zero_shot_segmentation,
)
from samclip_jax.evals.batches import collect
from samclip_jax.inference.model import load
from samclip_jax.inference.refine import Refinement
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
DATA = {  # what is measured on: images that nobody was trained on; only "tuning" chose anything
    "objects": dict(name="shape_objects", split="final", size=1000, image_size=CLIP_SIZE, seed=1),
    "scenes": dict(name="shape_scenes", split="final", size=200, image_size=SAM_SIZE, seed=1),
    "tuning": dict(name="shape_scenes", split="tuning", size=100, image_size=SAM_SIZE),
}
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def run(workdir, seed=0):
    """Everything, into workdir; returns the report."""
    began = time.monotonic()
    import_teachers(workdir)
    configs = {stage: stage_config(stage, workdir, seed) for stage in INIT}
    report = side_by_side((baseline, workdir, configs, DATA), (train_stages, workdir, configs))
    report |= side_by_side((measure_merged, workdir, DATA), (both_heads, workdir, DATA))
    report["samclip"] |= report.pop("both_heads")
    report["claims"] = claims(report)
    report["seconds"] = round(time.monotonic() - began, 1)
    write_json(workdir / "report.json", report)
    shown = {"sam": load(workdir / "teachers/sam"), "samclip": load(workdir / "stage3")}
    runs = {stage: workdir / stage / "metrics.jsonl" for stage in INIT}
    scenes = make_source(**DATA["scenes"])
    page.write(workdir / "report.html", report, shown, runs, scenes, REFINEMENT)
    page.write_picture(workdir / "picture.jpg", shown["samclip"], scenes, REFINEMENT)
    return report


def baseline(workdir, configs, data):
    """The report of both teachers and of the paper's baseline."""
    data = sources(data)
    report = {
        f"{kind}_teacher": measure(load(workdir / "teachers" / kind), data) for kind in TEACHERS
    }
    train.train(configs["distill_only"], workdir / "distill_only", "baseline")
    report["distill_only"] = measure(load(workdir / "distill_only"), data)
    report["wise_ft"] = wise_ft(workdir, data)
    return report


def train_stages(workdir, configs):
    """The paper's three stages; nothing to report yet."""
    for number in (1, 2, 3):
        stage = f"stage{number}"
        train.train(configs[stage], workdir / stage, f"stage {number} of 3")
    return {}


def measure_merged(workdir, data):
    """The report of the merged model, but for both heads together."""
    data, model = sources(data), load(workdir / "stage3")
    masks = measure_masks(model, data)  # of stage 2 too: stage 3 trains the CLIP head alone
    return {
        "stage2": measure_text(load(workdir / "stage2"), data) | masks,
        "samclip": measure_text(model, data) | masks,
        "parameters": sizes(workdir, model),
    }


def both_heads(workdir, data):
    """The merged model's mIoU by text after the SAM head, in the paper's form and the tuned one."""
    model, scenes = load(workdir / "stage3"), sources({"scenes": data["scenes"]})["scenes"]
    return {"both_heads": measure_both_heads(model, scenes)}


def sources(data):
    """{name: source} of DATA; every image is drawn once."""
    return {name: make_source(**options, keep=True) for name, options in data.items()}


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
    start = [sys.executable, "-m", "samclip_jax.convert", "import"]
    folders = {kind: workdir / "teachers" / kind for kind in TEACHERS}
    running = {
        kind: subprocess.Popen([*start, TEACHERS[kind], folder])
        for kind, folder in folders.items()
        if not (folder / "model.json").exists()
    }
    failed = [kind for kind, process in running.items() if process.wait()]
    if failed:
        raise errors.UserError(f"the {failed[0]} teacher could not be imported, see above")


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
    """{metric: value} of everything that a model can do; `data` of `sources`."""
    text = measure_text(model, data) if model.gives("text") else {}
    return text | (measure_masks(model, data) if model.gives("masks") else {})


def measure_text(model, data):
    """Accuracy and the text's masks; a CLIP's also by its last block's values (after MaskCLIP)."""
    metrics = classify(model, data["objects"]) | segment(model, data["scenes"])
    if not model.gives("masks"):
        by_values = segment(model, data["scenes"], maskclip=True)
        metrics |= {f"maskclip_{name}": value for name, value in by_values.items()}
    return metrics


def classify(model, objects):
    metrics = results(zero_shot_classification(model, objects, CLIP_SIZE, TEMPLATES))
    return {"zero_shot_accuracy": metrics["zero_shot_accuracy"]}


def segment(model, scenes, maskclip=False):
    """mIoU, and the share of the grounds' pixels that are called a ground, any of them."""
    evaluation = zero_shot_segmentation(model, scenes, SAM_SIZE, TEMPLATES, maskclip=maskclip)
    totals = collect(evaluation)
    grounds = totals["pixels"][len(OBJECT_CLASSES) :]
    return {name: float(value) for name, value in evaluation.results(totals)} | {
        "ground_pixels": float(grounds[:, len(OBJECT_CLASSES) :].sum() / grounds.sum())
    }


def measure_masks(model, data):
    """Masks from boxes, at logit 0 and at the threshold of the tuning scenes, and from points."""
    threshold = results(box_masks(model, data["tuning"], "best"))["box_threshold"]
    metrics = results(box_masks(model, data["scenes"], threshold))
    return metrics | results(point_masks(model, data["scenes"]))


def measure_both_heads(model, scenes):
    metrics, miou = {}, "refined_segmentation_miou"
    for prefix, refinement in (("", Refinement()), ("tuned_", Refinement(**REFINEMENT))):
        evaluation = refined_segmentation(model, scenes, refinement, TEMPLATES)
        metrics[prefix + miou] = results(evaluation)[miou]
    return metrics


def wise_ft(workdir, data):
    """The baseline interpolated with SAM (appendix D): [{alpha, accuracy, box mIoU}, ...].

    alpha 0 is SAM's encoder and decoder, 1 the baseline; the CLIP head is the baseline's.
    """
    model = load(workdir / "distill_only")
    _, start, _ = checkpoint.load_model(workdir / "distill_only", initial=True)
    rows = []
    for alpha in progress.Bar(ALPHAS, "interpolations", unit="of them"):
        mixed = model.with_params(models.wise_ft(start, model.params, alpha))
        masks = results(box_masks(mixed, data["scenes"]))
        accuracy = classify(mixed, data["objects"])
        rows.append({"alpha": alpha, **accuracy, "box_miou": masks["box_miou"]})
    return rows


def sizes(workdir, model):
    """Parameters of the merged image side beside the two separate ones."""
    params = {"samclip": model.params}
    params |= {kind: checkpoint.load_model(workdir / "teachers" / kind)[1] for kind in TEACHERS}
    parts = {
        "sam_encoder": ("sam", "encoder/"),
        "clip_encoder": ("clip", "vision/"),
        "samclip_encoder": ("samclip", "encoder/"),
        "clip_head": ("samclip", "heads/clip/"),
    }
    return {
        part: models.count({k: v for k, v in params[kind].items() if k.startswith(prefix)})
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
        f"{claim['claim']:<{width}}  {claim['points']:>8.1f}  {claim['asked']:>8}"
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
