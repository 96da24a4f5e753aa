"""bad_steps.py: what is not finite changes nothing but the counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samclip_jax import bad_steps
from samclip_jax.errors import UserError

LIMIT = 2
GOOD = {"clip/loss": 1.0, "clip/grad_norm": 2.0, "clip/part": np.nan, "grad_norm": 2.0}


def state():
    counts = bad_steps.start({"clip": None}, ["clip"])
    return {"step": 0, "bad_steps": counts, "params": {"w": jnp.float32(0)}, "opt_state": (0,)}


def after(*steps):
    """The state after these metrics; every step adds 1 to params and opt_state."""
    now = state()
    for metrics in steps:
        updated = {"params": {"w": now["params"]["w"] + 1}, "opt_state": (now["opt_state"][0] + 1,)}
        counts, updated = jax.jit(bad_steps.leave_out, static_argnums=0)(
            LIMIT, metrics, now, updated
        )
        now = {"step": now["step"] + 1, "bad_steps": counts, **updated}
    return now


@pytest.mark.parametrize("watched", ["clip/loss", "clip/grad_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_step_is_left_out_and_named(watched, value):
    now = after(GOOD, GOOD | {watched: value}, GOOD)
    assert now["params"]["w"] == now["opt_state"][0] == 2 and now["step"] == 3
    assert now["bad_steps"]["last"] == 2 and now["bad_steps"]["in_a_row"] == 0
    assert bad_steps.require_few(LIMIT, now["bad_steps"]) == {
        "bad_steps": 1,
        f"bad_steps/{watched}": 1,
    }


def test_without_one_there_is_nothing_to_tell():
    now = after(GOOD, GOOD, GOOD)
    assert now["params"]["w"] == 3 and bad_steps.require_few(LIMIT, now["bad_steps"]) == {}


def test_after_too_many_in_a_row_nothing_is_updated_and_the_run_stops():
    """Whenever it is looked at: good steps after them change nothing any more."""
    bad = GOOD | {"clip/loss": np.nan}
    now = after(GOOD, bad, bad, GOOD, bad)
    assert now["params"]["w"] == 1
    with pytest.raises(UserError, match=r"^2 steps in a row .* step 3 \(so far clip/loss 2 times"):
        bad_steps.require_few(LIMIT, now["bad_steps"])


def test_bad_steps_apart_do_not_stop_it():
    bad = GOOD | {"clip/grad_norm": np.inf}
    now = after(bad, GOOD, bad, GOOD, bad)
    assert now["params"]["w"] == 2
    assert bad_steps.require_few(LIMIT, now["bad_steps"]) == {
        "bad_steps": 3,
        "bad_steps/clip/grad_norm": 3,
    }
