"""python -m samclip_jax.main --config=configs/stage2.py --workdir=DIR [--config.key=value ...]

python -m samclip_jax.main --config=configs/stage2.py --compile_only=v5e:16x16 [--report=FILE]

The same command goes on with a run that was stopped. Exit codes: 0 done; 1 a mistake, in one
sentence; 143 and 130 stopped by SIGTERM and by Ctrl-C, saved.
"""

import jax
from absl import flags

from samclip_jax import config, progress
from samclip_jax.distributed import join_hosts
from samclip_jax.errors import UserError

EXAMPLE = "configs/stage2.py"
WORKDIR = flags.DEFINE_string("workdir", None, "where the run lives: checkpoints, metrics, config")
COMPILE_ONLY = flags.DEFINE_string(
    "compile_only", None, "only tell what a step would take on this topology, v5e:16x16 say"
)
REPORT = flags.DEFINE_string("report", None, "where --compile_only also writes its JSON")
QUIET = flags.DEFINE_bool("quiet", False, "show no progress; it is in WORKDIR/metrics.jsonl")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "join the other hosts of a TPU pod first")


def main(values):
    if COMPILE_ONLY.value:
        if WORKDIR.value or DISTRIBUTED.value:
            raise UserError("--compile_only trains nothing: leave out --workdir and --distributed")
        jax.config.update("jax_platforms", "cpu")  # libtpu only compiles; it would look for a TPU
        from samclip_jax import compile_only

        compile_only.compile_only(values, COMPILE_ONLY.value, REPORT.value)
        return
    from samclip_jax import train

    if REPORT.value:
        raise UserError("--report goes with --compile_only; a run's metrics are in its workdir")
    if not WORKDIR.value:
        raise UserError("set --workdir to the directory of this run")
    if QUIET.value:
        progress.be_quiet()
    if DISTRIBUTED.value:
        join_hosts()
    train.train(values, WORKDIR.value)


if __name__ == "__main__":
    config.run(main, EXAMPLE)
