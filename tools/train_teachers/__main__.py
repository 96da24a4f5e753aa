"""Trains the demo's two teachers, a tiny SAM and a tiny CLIP, in the procedural world.

    python -m tools.train_teachers sam  --workdir=DIR --minutes=54
    python -m tools.train_teachers clip --workdir=DIR --minutes=1.3

The first on one processor core (on Linux `taskset -c 0 python ...`: XLA's threads only wait for
each other here), the second on a GPU; on a core its steps take a second. The learning rate falls
to zero as the minutes run out. A run that was stopped goes on from DIR/state.npz; its curve is
DIR/log.jsonl. At the end the weights, their running average, are written in half precision in the
released layouts: sam.pth as Meta's files are, clip/ as an OpenCLIP folder. The demo takes them from
--output=samclip_jax/assets/teachers.

The teachers in the project, on tuning images: SAM after 2,475 steps, 54 minutes of a core, 0.881
box mIoU (0.824 from one point) over 100 scenes; CLIP after 8,541 steps, 78 seconds of an H200,
99.8 %. When SAM learnt, the world had two more coats, a kite's and a brick's, the giraffe was
lighter and the cactus darker. (A SAM of 3,665 steps, 96 seconds of the same H200 beside the CLIP,
has 0.863 in the world as it is.)
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from samclip_jax import families, models, sharding
from tools.train_teachers.clip import ClipTask
from tools.train_teachers.sam import SamTask

TASKS = {"sam": SamTask, "clip": ClipTask}
CONSTANT = "prompt_encoder/gaussian"
EVALUATE_EVERY, SAVE_EVERY = 180, 120  # seconds
WARMUP = 300  # steps
DECAY = 0.05  # of matrices
AVERAGE = 0.998  # of the weights, a step


def train(task, workdir, minutes):
    """The averaged weights after `minutes`, those of earlier calls counted in."""
    graph, params = models.split(families.init(task.config))
    params = task.start(params)
    constants = {name: params.pop(name) for name in list(params) if name == CONSTANT}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))
    step, spent, state = resume(workdir, (params, params, optimizer.init(params)))

    @partial(jax.jit, donate_argnums=0)
    def update(state, batch, key, rate, average):
        params, mean, moments = state
        loss, gradient = jax.value_and_grad(
            lambda params: task.loss(models.merge(graph, params | constants), batch, key)
        )(params)
        change, moments = optimizer.update(gradient, moments)
        params = jax.tree.map(
            lambda p, c: p - rate * (c + (DECAY * p if p.ndim > 1 else 0)), params, change
        )
        mean = jax.tree.map(lambda m, p: m + (1 - average) * (p - m), mean, params)
        return (params, mean, moments), loss

    answer = jax.jit(
        lambda params, *inputs: task.answer(models.merge(graph, params | constants), *inputs)
    )

    def report():
        figures = task.evaluate(partial(answer, state[1]))
        line = {"step": step, "minutes": spent / 60, "loss": float(np.mean(losses)), **figures}
        print(" ".join(f"{name} {value:.4g}" for name, value in line.items()), flush=True)
        with open(workdir / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")

    losses = []
    began = time.time() - spent
    saved = reported = time.time()
    while (spent := time.time() - began) < 60 * minutes:
        progress = spent / (60 * minutes)
        rate = task.peak * min(1, (step + 1) / WARMUP) * np.cos(progress * np.pi / 2) ** 2
        average = min(AVERAGE, (1 + step) / (10 + step))
        batch = task.sample(np.random.default_rng((7, step)))
        state, loss = update(state, batch, jax.random.key(step), rate, average)
        step += 1
        losses.append(jax.block_until_ready(loss))
        if time.time() - reported > EVALUATE_EVERY:
            report()
            losses, reported = [], time.time()
        if time.time() - saved > SAVE_EVERY:
            save(workdir, step, spent, state)
            saved = time.time()
    if losses:
        save(workdir, step, spent, state)
        report()
    return state[1] | constants


def save(workdir, step, spent, state):
    with open(workdir / "state.part", "wb") as file:
        np.savez(file, *jax.tree.leaves(state), step=step, spent=spent)
    (workdir / "state.part").rename(workdir / "state.npz")


def resume(workdir, state):
    """(steps, seconds, state) of an earlier call, or of a start from `state`."""
    path = workdir / "state.npz"
    if not path.exists():
        return 0, 0.0, jax.tree.map(jnp.array, state)
    with np.load(path) as saved:
        leaves = [jnp.array(saved[f"arr_{i}"]) for i in range(len(jax.tree.leaves(state)))]
        step, spent = int(saved["step"]), float(saved["spent"])
    return step, spent, jax.tree.unflatten(jax.tree.structure(state), leaves)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", choices=TASKS)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--images", type=int, default=8000, help="drawn before the first step")
    parser.add_argument("--output", type=Path, help="default: WORKDIR/released")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    print(f"drawing {args.images} images", flush=True)
    task = TASKS[args.teacher](args.images)
    with sharding.one_device():
        params = train(task, args.workdir, args.minutes)
    output = args.output or args.workdir / "released"
    output.mkdir(parents=True, exist_ok=True)
    task.release({name: np.asarray(array) for name, array in params.items()}, output)


if __name__ == "__main__":
    main()
