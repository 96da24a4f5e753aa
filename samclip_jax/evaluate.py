"""python -m samclip_jax.evaluate --config=configs/eval.py:TASK --checkpoint=DIR [--report=FILE]

All devices of this host work together, with --distributed those of all hosts. With --report, what
is counted is kept beside the file, now and then, until it is there: the same command goes on with
an evaluation that was stopped. With --config.baseline another checkpoint answers, too.
"""

import json
import os
import signal
import sys
import time

import jax
from absl import flags

from samclip_jax import config, interrupt
from samclip_jax.distributed import join_hosts, set_up_process
from samclip_jax.errors import UserError, under
from samclip_jax.metrics import write_json
from samclip_jax.paths import is_remote, output_file
from samclip_jax.validation import Share, check

FILES = ("detections", "names", "clip")  # options that are paths
EXAMPLE = "configs/eval.py:zero_shot_classification"
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "workdir, checkpoint or released weights")
REPORT = flags.DEFINE_string("report", None, "JSON file for the results")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "join the other hosts of a TPU pod first")


def main(values):
    from samclip_jax import cache, evals
    from samclip_jax.evals.totals import Saved

    if not CHECKPOINT.value:
        raise UserError("set --checkpoint to a workdir, a checkpoint or released weights")
    report_file = output_file(REPORT.value) if REPORT.value else None
    options = values.to_dict()
    data, dtype, alpha, baseline = (
        options.pop(key) for key in ("data", "dtype", "wise_ft", "baseline")
    )
    check("--config.dtype", dtype, config.Dtype)
    check("--config.wise_ft", alpha, Share)
    evals.read_options("--config.", **options)
    if DISTRIBUTED.value:
        join_hosts()
    set_up_process()
    began = time.monotonic()
    models = [read_model("--checkpoint", CHECKPOINT.value, dtype, alpha)]
    if baseline:
        models.append(read_model("--config.baseline", baseline, dtype))
    settings = json.loads(values.to_json_best_effort())
    files = [file_state(options.get(name)) for name in FILES]
    described = json.dumps([settings, files], sort_keys=True)
    results, kept = [], []
    try:
        evaluations = evals.evaluations(models, data=data, flag="--config.data", **options)
        for model, evaluation in zip(models, evaluations, strict=True):
            if report_file:
                key = cache.digest(model.params, repr(model.config) + described)
                name = f"{report_file.name}.unfinished" + (".baseline" if kept else "")
                kept.append(Saved(report_file.parent, name, key))
            results.append(evals.results(evaluation, kept[-1] if kept else None))
    except KeyboardInterrupt:
        print("stopped" + ("; the same command goes on" if kept else ""), file=sys.stderr)
        sys.exit(interrupt.EXIT_CODE + signal.SIGINT)
    report = {"task": values.task, "checkpoint": CHECKPOINT.value, **results[0]}
    if baseline:
        report["baseline"] = {"checkpoint": baseline, **results[1]}
        report["difference"] = difference(*results)
    report |= {"seconds": round(time.monotonic() - began, 1), "config": settings}
    if jax.process_index() == 0:
        print(json.dumps(report, indent=2))
    if report_file:
        if jax.process_index() == 0:
            write_json(report_file, report)
        for saved in kept:
            saved.remove()


def read_model(flag, path, dtype, alpha=1.0):
    """The model at a path that `flag` gives; of a workdir alpha of the way from its start."""
    from samclip_jax import checkpoint, models, sharding
    from samclip_jax.inference.model import load

    with under(f"{flag}: "):
        model = load(path, dtype, jax.local_devices())
    if alpha == 1:
        return model
    if checkpoint.newest_step(path) is None:
        raise UserError("wise_ft goes from a run's start to its end: --checkpoint is no workdir")
    _, start, _ = checkpoint.load_model(path, initial=True)
    start = sharding.copies(model.mesh, start)
    return model.with_params(models.wise_ft(start, model.params, alpha))


def file_state(path):
    """What changes with a file or folder, None where there is none."""
    if path is None or is_remote(path) or not os.path.exists(str(path)):
        return None
    state = os.stat(str(path))
    return state.st_mtime_ns, state.st_size


def difference(results, baseline):
    """{name: results less baseline's} of what is no count."""
    return {
        name: value - baseline[name]
        for name, value in results.items()
        if isinstance(value, float) and name in baseline
    }


if __name__ == "__main__":
    config.run(main, EXAMPLE)
