"""The whole path at full size on real photographs: seconds a step and peak memory of every part.

python -m benchmarks.full_size --coco=DIR --tokenizer=bpe_simple_vocab_16e6.txt.gz \
    --workdir=runs/full_size [--steps=20] [--report=FILE]

SAM ViT-B and OpenCLIP ViT-L/14 are written in their released layouts with random values, imported,
merged in three stages on a CPU with small batches, and evaluated on instances and panoptic labels.
DIR holds images/, instances.json, panoptic.json and panoptic/ in COCO's formats. Every part is a
process of its own, started as a user would; it says how much memory it took at its peak.
"""

import argparse
import json
import sys

from benchmarks.process import measured
from samclip_jax import families, models
from samclip_jax.convert.clip import OPEN_CLIP
from samclip_jax.convert.export import released, write_safetensors, write_torch
from samclip_jax.convert.sam import SEGMENT_ANYTHING
from samclip_jax.errors import command
from samclip_jax.metrics import write_json
from samclip_jax.models.config import ClipConfig, SamConfig
from samclip_jax.paths import existing, local_path, output_file

BATCHES = [
    "--config.streams.clip.batch_size=8",
    "--config.streams.clip.batch_multiple=1",
    "--config.streams.clip.workers=0",
    "--config.dtype=float32",
    "--config.optimizer.warmup_steps=2",
    "--config.log_every=1",
]
SAM_BATCHES = [
    "--config.streams.sam.batch_size=1",
    "--config.streams.sam.workers=0",
    "--config.streams.sam.prompts.per_image=4",
    "--config.streams.sam.prompts.interior=True",
    "--config.streams.sam.sources.main.name=coco_instances",
]
SMALL_RATE = ["--config.optimizer.learning_rate=1e-4"]  # 8e-4 is for batches of 2048
# 80 templates for each of 133 classes would be a quarter of an hour of text tower on a CPU
TEXTS = ["--config.templates=simple"]


def write_released(folder):
    """Random weights as they would be downloaded."""
    (folder / "clip").mkdir(parents=True, exist_ok=True)
    if not (folder / "sam_vit_b_random.pth").exists():
        _, sam = models.split(families.init(SamConfig()))
        write_torch(folder / "sam_vit_b_random.pth", released(SEGMENT_ANYTHING, sam))
    if not (folder / "clip" / "open_clip_model.safetensors").exists():
        _, clip = models.split(families.init(ClipConfig()))
        tensors = released(OPEN_CLIP, clip)
        write_safetensors(folder / "clip" / "open_clip_model.safetensors", tensors)


def run(name, *arguments):
    return measured([sys.executable, "-m", name, *arguments])


def steps_of(workdir):
    """First and last losses and the median seconds a step, compilation left out, of a run."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {}
    for key in (key for key in lines[0] if key.endswith("/loss")):
        values = [line[key] for line in lines]
        third = max(1, len(values) // 3)
        losses[key] = [sum(part) / third for part in (values[:third], values[-third:])]
    seconds = sorted(line["seconds_per_step"] for line in lines)
    return {"steps": len(lines), "losses": losses, "seconds_per_step": seconds[len(seconds) // 2]}


@command
def main():
    parser = argparse.ArgumentParser(prog="full_size", description=__doc__.split("\n")[0])
    parser.add_argument("--coco", type=existing, required=True)
    parser.add_argument("--tokenizer", type=existing, required=True)
    parser.add_argument("--workdir", type=local_path, default="runs/full_size")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--report", type=output_file)
    options = parser.parse_args()
    work, coco = options.workdir, options.coco
    report = {}

    write_released(work / "released")
    sam, clip = work / "sam", work / "clip"
    for place, arguments in {
        sam: [work / "released" / "sam_vit_b_random.pth", sam],
        clip: [work / "released" / "clip", clip, "--tokenizer", options.tokenizer],
    }.items():
        if not place.exists():
            report[f"import {place.name}"] = run("samclip_jax.convert", "import", *arguments)

    photographs = f"--config.streams.clip.sources.main.path={coco / 'images'}"
    steps = [f"--config.steps={options.steps}", *BATCHES, photographs]
    sam_stream = [
        f"--config.streams.sam.sources.main.annotations={coco / 'instances.json'}",
        f"--config.streams.sam.sources.main.images={coco / 'images'}",
        f"--config.teachers.sam={sam}",
        *SAM_BATCHES,
    ]
    for stage, init, more in (
        ("stage1", sam, SMALL_RATE),
        ("stage2", work / "stage1", sam_stream),
        ("stage3", work / "stage2", SMALL_RATE),
    ):
        report[stage] = run(
            "samclip_jax.main",
            f"--config=configs/{stage}.py",
            f"--workdir={work / stage}",
            f"--config.init={init}",
            f"--config.teachers.clip={clip}",
            *steps,
            *more,
        ) | steps_of(work / stage)

    images = f"--config.data.images={coco / 'images'}"
    instances = [images, f"--config.data.annotations={coco / 'instances.json'}"]
    panoptic = [
        images,
        f"--config.data.annotations={coco / 'panoptic.json'}",
        f"--config.data.maps={coco / 'panoptic'}",
    ]
    for task, data in (
        ("box_masks", instances),
        ("zero_shot_segmentation", [*panoptic, *TEXTS]),
        ("refined_segmentation", [*panoptic, *TEXTS]),
    ):
        answers = work / f"{task}.json"
        report[task] = run(
            "samclip_jax.evaluate",
            f"--config=configs/eval.py:{task}",
            f"--checkpoint={work / 'stage3'}",
            f"--report={answers}",
            *data,
        )
        result = json.loads(answers.read_text())
        report[task] |= {k: v for k, v in result.items() if k not in ("config", "seconds")}
    print(json.dumps(report, indent=2))
    if options.report:
        write_json(options.report, report)


if __name__ == "__main__":
    main()
