"""A step whose loss or gradient is not finite does no harm: it is left out, counted and named.

In the train state, int32: {"steps": how many there were, "counts": {"TERM/loss" or
"STREAM/grad_norm": in how many that one was not finite}, "in_a_row": how many up to now, "last":
the number of the last one, or -1}.
"""

import jax
import jax.numpy as jnp

from samclip_jax.errors import UserError


def start(terms, streams):
    """Before the first step, plain numbers."""
    watched = [*(f"{name}/loss" for name in terms), *(f"{name}/grad_norm" for name in streams)]
    return {"steps": 0, "counts": dict.fromkeys(watched, 0), "in_a_row": 0, "last": -1}


def leave_out(limit, metrics, state, updated):
    """(the new counts, `updated` or, where this step is bad, what `state` has in its place).

    After `limit` bad steps in a row nothing changes any more: the run is to stop.
    """
    before = state["bad_steps"]
    not_finite = {name: ~jnp.isfinite(metrics[name]) for name in before["counts"]}
    bad = jnp.stack(list(not_finite.values())).any()
    stopped = before["in_a_row"] >= limit
    counts = {
        "steps": before["steps"] + bad,
        "counts": {name: count + not_finite[name] for name, count in before["counts"].items()},
        "in_a_row": jnp.where(bad, before["in_a_row"] + 1, 0),
        "last": jnp.where(bad, state["step"] + 1, before["last"]),
    }
    counts = jax.tree.map(lambda old, new: jnp.where(stopped, old, new), before, counts)
    kept = {name: state[name] for name in updated}
    return counts, jax.tree.map(lambda a, b: jnp.where(bad | stopped, a, b), kept, updated)


def require_few(limit, counts):
    """{"bad_steps": how many so far, "bad_steps/NAME": ..} to be logged, {} where there were none;
    UserError after `limit` in a row."""
    counts = jax.device_get(counts)
    named = {name: int(count) for name, count in counts["counts"].items() if count}
    if counts["in_a_row"] >= limit:
        listed = ", ".join(f"{name} {count} times" for name, count in named.items())
        raise UserError(
            f"{limit} steps in a row had a loss or a gradient that is not finite, and were left "
            f"out; the last was step {counts['last']} (so far {listed}), and nothing was trained "
            "after it. Start again with a lower --config.optimizer.learning_rate, or with "
            "--config.dtype=float32 to find the cause"
        )
    if not counts["steps"]:
        return {}
    named = {f"bad_steps/{name}": count for name, count in named.items()}
    return {"bad_steps": int(counts["steps"]), **named}
