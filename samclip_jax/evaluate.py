"""python -m samclip_jax.evaluate --config=configs/eval.py:TASK --checkpoint=DIR [--report=FILE]

All devices of this host work together, with --distributed those of all hosts. With --report, what
is counted is kept beside the file, now and then, until it is there: the same command goes on with
an evaluation that was stopped.
"""

import json
import signal
import sys
import time

import jax
from absl import flags

from samclip_jax import config, interrupt
from samclip_jax.distributed import join_hosts, set_up_process
from samclip_jax.errors import UserError, under
from samclip_jax.metrics import write_json
from samclip_jax.paths import output_file
from samclip_jax.validation import Share, check

EXAMPLE = "configs/eval.py:zero_shot_classification"
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "workdir, checkpoint or released weights")
REPORT = flags.DEFINE_string("report", None, "JSON file for the results")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "join the other hosts of a TPU pod first")


def main(values):
    from samclip_jax import cache, checkpoint, evals, models, sharding
    from samclip_jax.evals.totals import Saved
    from samclip_jax.inference.model import load

    if not CHECKPOINT.value:
        raise UserError("set --checkpoint to a workdir, a checkpoint or released weights")
    report_file = output_file(REPORT.value) if REPORT.value else None
    options = values.to_dict()
    data, dtype, alpha = (options.pop(key) for key in ("data", "dtype", "wise_ft"))
    check("--config.dtype", dtype, config.Dtype)
    check("--config.wise_ft", alpha, Share)
    evals.read_options("--config.", **options)
    if DISTRIBUTED.value:
        join_hosts()
    set_up_process()
    began = time.monotonic()
    with under("--checkpoint: "):
        model = load(CHECKPOINT.value, dtype, jax.local_devices())
    if alpha != 1:
        if checkpoint.newest_step(CHECKPOINT.value) is None:
            raise UserError(
                "wise_ft goes from a run's start to its end: --checkpoint is no workdir"
            )
        _, start, _ = checkpoint.load_model(CHECKPOINT.value, initial=True)
        start = sharding.copies(model.mesh, start)
        model = model.with_params(models.wise_ft(start, model.params, alpha))
    settings = json.loads(values.to_json_best_effort())
    saved = None
    if report_file:
        described = repr(model.config) + json.dumps(settings, sort_keys=True)
        key = cache.digest(model.params, described)
        saved = Saved(report_file.parent, f"{report_file.name}.unfinished", key)
    try:
        results = evals.evaluate(model, data=data, flag="--config.data", saved=saved, **options)
    except KeyboardInterrupt:
        print("stopped" + ("; the same command goes on" if saved else ""), file=sys.stderr)
        sys.exit(interrupt.EXIT_CODE + signal.SIGINT)
    report = {
        "task": values.task,
        "checkpoint": CHECKPOINT.value,
        **results,
        "seconds": round(time.monotonic() - began, 1),
        "config": settings,
    }
    if jax.process_index() == 0:
        print(json.dumps(report, indent=2))
    if report_file:
        if jax.process_index() == 0:
            write_json(report_file, report)
        saved.remove()


if __name__ == "__main__":
    config.run(main, EXAMPLE)
