"""python -m samclip_jax.main --config=configs/stage2.py --workdir=DIR [--config.key=value ...]"""

import jax
from absl import flags

from samclip_jax import config
from samclip_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "where the run lives: checkpoints, metrics, config")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "join the other hosts of a TPU pod first")


def main(values):
    from samclip_jax import train

    if not WORKDIR.value:
        raise UserError("set --workdir to the directory of this run")
    if DISTRIBUTED.value:
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"--distributed found no other hosts, leave it out: {reason}"
            ) from error
    train.train(values, WORKDIR.value)


if __name__ == "__main__":
    config.run(main)
