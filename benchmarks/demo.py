"""The demo with several seeds: its table and the paper's claims, mean and range.

python -m benchmarks.demo [--seeds=3] [--dense] [--workdir=runs/demo_seeds] [--report=FILE]

A seed is the CLIP head's start and the order of the data; teachers and scenes are the same. With
--dense also stage 2 with the dense term of configs/stage2_dense.py, and stage 3 after it.
"""

import argparse
import json
import sys

from benchmarks.process import measured
from samclip_jax import demo, recipe, train
from samclip_jax.errors import command
from samclip_jax.inference.model import load
from samclip_jax.metrics import write_json
from samclip_jax.paths import local_path, output_file
from samclip_jax.report import COLUMNS, ROWS

DENSE = "dense"  # its row in a report


def with_dense_term(workdir, seed):
    """The figures after stage 3 where in stage 2 every patch learnt the CLIP's own too."""
    demo.set_up()
    configs = {stage: demo.stage_config(stage, workdir, seed) for stage in ("stage2", "stage3")}
    configs["stage2"].terms.clip_patches = recipe.clip_term()
    configs["stage2"].terms.clip_patches.target = "patches"
    configs["stage3"].init = str(workdir / f"{DENSE}_stage2")
    for stage, config in configs.items():
        train.train(config, workdir / f"{DENSE}_{stage}", f"{stage}, with the dense term")
    data, model = demo.sources(demo.DATA), load(workdir / f"{DENSE}_stage3")
    return demo.measure(model, data) | demo.measure_both_heads(model, data["scenes"])


def spread(values, digits=1):
    """'mean (lowest to highest)' of numbers, one where they are the same, '' of none."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{sum(values) / len(values):.{digits}f} ({low} to {high})"


def table(rows):
    """Markdown; the first row is the head."""
    head, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])


def metric(reports, name, key):
    values = [report[name].get(key) for report in reports]
    return spread([None if value is None else 100 * value for value in values])


@command
def main():
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--workdir", type=local_path, default="runs/demo_seeds")
    parser.add_argument("--report", type=output_file)
    options = parser.parse_args()
    reports = []
    for seed in range(options.seeds):
        workdir = options.workdir / f"seed{seed}"
        command = [sys.executable, "-m", "samclip_jax.demo", f"--workdir={workdir}"]
        cost = measured([*command, f"--seed={seed}"])
        reports.append(json.loads((workdir / "report.json").read_text()) | cost)
        if options.dense:
            reports[-1][DENSE] = with_dense_term(workdir, seed)

    rows = [*ROWS, (DENSE, "SAM-CLIP, dense term too")] if options.dense else ROWS
    figures = [["", *(title for _, title, _ in COLUMNS)]]
    figures += [
        [title, *(metric(reports, name, key) for key, *_ in COLUMNS)] for name, title in rows
    ]
    claims = [["claim", "points", "asked", "seeds that reach it"]]
    for same in zip(*(report["claims"] for report in reports), strict=True):
        points, holds = ([each[key] for each in same] for key in ("points", "holds"))
        asked = f"at least {same[0]['asked']}"
        claims.append([same[0]["claim"], spread(points), asked, f"{sum(holds)} of {len(holds)}"])
    interpolations = [["alpha", "zero-shot accuracy", "mask IoU from a box"]]
    for same in zip(*(report["wise_ft"] for report in reports), strict=True):
        values = ([100 * row[key] for row in same] for key in ("zero_shot_accuracy", "box_miou"))
        interpolations.append([f"{same[0]['alpha']:.2f}", *map(spread, values)])
    print(table(figures), table(claims), table(interpolations), sep="\n\n")
    print("\nseconds:", spread([report["seconds"] for report in reports], 0))
    if options.report:
        write_json(options.report, reports)


if __name__ == "__main__":
    main()
