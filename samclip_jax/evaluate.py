"""python -m samclip_jax.evaluate --config=configs/eval.py:TASK --checkpoint=DIR [--report=FILE]"""

import json
import time

from absl import flags
from etils import epath

from samclip_jax import config
from samclip_jax.errors import UserError, os_errors

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "workdir, checkpoint or released weights")
REPORT = flags.DEFINE_string("report", None, "JSON file for the results")


def main(values):
    from samclip_jax import checkpoint, evals, models
    from samclip_jax.inference.model import load

    if not CHECKPOINT.value:
        raise UserError("set --checkpoint to a workdir, a checkpoint or released weights")
    options = values.to_dict()
    began = time.monotonic()
    model = load(CHECKPOINT.value, options.pop("dtype"))
    alpha = options.pop("wise_ft")
    if alpha != 1:
        if not checkpoint.is_run(CHECKPOINT.value):
            raise UserError(
                "wise_ft goes from a run's start to its end: --checkpoint is no workdir"
            )
        _, start, _ = checkpoint.load_model(CHECKPOINT.value, initial=True)
        model = model.with_params(models.wise_ft(start, model.params, alpha))
    results = evals.evaluate(model, **options)
    report = {
        "task": values.task,
        "checkpoint": CHECKPOINT.value,
        **results,
        "seconds": round(time.monotonic() - began, 1),
        "config": json.loads(values.to_json_best_effort()),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if REPORT.value:
        with os_errors(f"{REPORT.value} was not written"):
            epath.Path(REPORT.value).write_text(text + "\n")


if __name__ == "__main__":
    config.run(main)
