"""python -m samclip_jax.evaluate --config=configs/eval.py:TASK --checkpoint=DIR [--report=FILE]"""

import json
import time

from absl import flags

from samclip_jax import config
from samclip_jax.errors import UserError, under
from samclip_jax.metrics import write_json
from samclip_jax.paths import output_file
from samclip_jax.validation import Share, check

EXAMPLE = "configs/eval.py:zero_shot_classification"
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "workdir, checkpoint or released weights")
REPORT = flags.DEFINE_string("report", None, "JSON file for the results")


def main(values):
    from samclip_jax import checkpoint, evals, models
    from samclip_jax.inference.model import load

    if not CHECKPOINT.value:
        raise UserError("set --checkpoint to a workdir, a checkpoint or released weights")
    report_file = output_file(REPORT.value) if REPORT.value else None
    options = values.to_dict()
    data, dtype, alpha = (options.pop(key) for key in ("data", "dtype", "wise_ft"))
    check("--config.dtype", dtype, config.Dtype)
    check("--config.wise_ft", alpha, Share)
    evals.read_options("--config.", **options)
    began = time.monotonic()
    with under("--checkpoint: "):
        model = load(CHECKPOINT.value, dtype)
    if alpha != 1:
        if checkpoint.newest_step(CHECKPOINT.value) is None:
            raise UserError(
                "wise_ft goes from a run's start to its end: --checkpoint is no workdir"
            )
        _, start, _ = checkpoint.load_model(CHECKPOINT.value, initial=True)
        model = model.with_params(models.wise_ft(start, model.params, alpha))
    results = evals.evaluate(model, data=data, flag="--config.data", **options)
    report = {
        "task": values.task,
        "checkpoint": CHECKPOINT.value,
        **results,
        "seconds": round(time.monotonic() - began, 1),
        "config": json.loads(values.to_json_best_effort()),
    }
    print(json.dumps(report, indent=2))
    if report_file:
        write_json(report_file, report)


if __name__ == "__main__":
    config.run(main, EXAMPLE)
