"""What each way to read a map of classes does in the demo's world, and what it takes.

python -m benchmarks.reading [--workdirs=runs/demo_seeds/seed0,...] [--report=FILE]

The workdirs are those of `python -m benchmarks.demo`, a seed each. Every option is measured alone,
and a few together: mIoU on the tuning scenes, on which one may choose, and on the final ones, and
how much the latter is over the form that the option is added to. The milliseconds an image are
those of the final scenes, on all cores, with what is compiled compiled.
"""

import argparse
import time

import numpy as np

from benchmarks.demo import spread, table
from samclip_jax import demo
from samclip_jax.data.shapes import TEMPLATES
from samclip_jax.demo_stages import REFINEMENT, SAM_SIZE
from samclip_jax.errors import command
from samclip_jax.evals import refined_segmentation, zero_shot_segmentation
from samclip_jax.evals.batches import results
from samclip_jax.inference.model import load
from samclip_jax.inference.reading import Reading
from samclip_jax.inference.refine import Refinement
from samclip_jax.metrics import write_json
from samclip_jax.paths import local_path, output_file

PAPER_FORM, TUNED = "the paper's form", "tuned, as all that follow"
RECURSIVE, CORRELATED = dict(attention="recursive"), dict(self_correlation=True)
WINDOWS = dict(window=96, stride=48, short=192)
VOTE = dict(vote_points=8, vote_iou=0.7, vote_stability=0.8)
READINGS = {
    "values attend to values, last block": dict(attention="values"),
    "values attend to values, all three blocks": dict(attention="values", blocks=3),
    "recursive attention, last block": RECURSIVE,
    "recursive attention, all three blocks": RECURSIVE | dict(blocks=3),
    "the map correlated with itself": CORRELATED,
    "windows of 96 px": WINDOWS,
    "windows of 96 px, of an image 1.5 times as large": WINDOWS | dict(short=288),
    "classes nowhere over 0.5 left out": dict(prune=0.5),
    "vote of everything's masks": VOTE,
    "recursive, correlated, windows": RECURSIVE | CORRELATED | WINDOWS,
    "recursive, correlated, windows, vote": RECURSIVE | CORRELATED | WINDOWS | VOTE,
}
REFINEMENTS = {
    "the point is the peak": dict(peak=True),
    "a box, too": dict(box=True),
    "a box, the peak, over a predicted IoU of 0.7": dict(box=True, peak=True, min_iou=0.7),
    "the same, over 0.9": dict(box=True, peak=True, min_iou=0.9),
    "mask prompts times 0.5": dict(mask_scale=0.5),
    "mask prompts times 0.1": dict(mask_scale=0.1),
}


def head(reading):
    """(model, scenes) -> an Evaluation of the CLIP head alone."""
    return lambda model, scenes: zero_shot_segmentation(
        model, scenes, SAM_SIZE, TEMPLATES, reading=Reading(**reading)
    )


def both(reading, refinement):
    """The same of both heads."""
    return lambda model, scenes: refined_segmentation(
        model, scenes, Refinement(**refinement), TEMPLATES, reading=Reading(**reading)
    )


def forms():
    """((heads, form), function as `head` makes one), ..."""
    yield ("CLIP head", PAPER_FORM), head({})
    for name, reading in READINGS.items():
        yield ("CLIP head", name), head(reading)
    yield ("both heads", PAPER_FORM), both({}, {})
    yield ("both heads", TUNED), both({}, REFINEMENT)
    for name, refinement in REFINEMENTS.items():
        yield ("both heads", name), both({}, REFINEMENT | refinement)
    for name, reading in READINGS.items():
        yield ("both heads", name), both(reading, REFINEMENT)


@command
def main():
    parser = argparse.ArgumentParser(prog="reading", description=__doc__.split("\n")[0])
    seeds = ",".join(f"runs/demo_seeds/seed{seed}" for seed in range(3))
    parser.add_argument("--workdirs", default=seeds)
    parser.add_argument("--report", type=output_file)
    options = parser.parse_args()
    demo.set_up()
    models = [load(local_path(each) / "stage3") for each in options.workdirs.split(",")]
    scenes = demo.sources(demo.DATA)
    rows = [["heads", "form", "tuning scenes", "final scenes", "more", "ms an image"]]
    report, added_to = [], {}
    for (heads, form), evaluation in forms():
        measured = {"tuning": [], "scenes": [], "ms": []}
        for model in models:
            for split in ("tuning", "scenes"):
                each, began = evaluation(model, scenes[split]), time.monotonic()
                figures = results(each)
                name = f"{each.name}_miou"
                measured[split].append(100 * figures[name])
            measured["ms"].append(1000 * (time.monotonic() - began) / figures["images"])
        report.append({"heads": heads, "form": form} | measured)
        if form in (PAPER_FORM, TUNED):
            added_to[heads] = measured["scenes"]
        more = np.mean(measured["scenes"]) - np.mean(added_to[heads])
        mious = [spread(measured[split]) for split in ("tuning", "scenes")]
        rows.append([heads, form, *mious, f"{more:+.1f}", f"{min(measured['ms']):.0f}"])
        print(*rows[-1], sep=" | ", flush=True)
    print("\n" + table(rows))
    if options.report:
        write_json(options.report, report)


if __name__ == "__main__":
    main()
