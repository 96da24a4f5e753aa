"""The processes of a job, one a host of a TPU pod, which work together."""

import jax

from samclip_jax import progress
from samclip_jax.compilation import keep_none_on_cpu_hosts
from samclip_jax.errors import UserError


def join_hosts():
    """Joins the other processes of the job. UserError where there are none, or they are missing."""
    try:
        jax.distributed.initialize()
    except ValueError as error:  # no cluster that jax knows
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--distributed found no TPU pod and no scheduler's job; on one host leave it out: "
            f"{reason}"
        ) from error
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            "--distributed: not all hosts of this job have joined; start the same command on every "
            f"one of them at about the same time: {reason}"
        ) from error


def set_up_process():
    """One of several: quiet unless it is the first, and on CPUs without a cache of programs."""
    if jax.process_index() != 0:
        progress.be_quiet()
    keep_none_on_cpu_hosts()
