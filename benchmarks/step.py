"""A training step on the devices of this machine: milliseconds, images a second, share of the peak.

python -m benchmarks.step --config=configs/stage2.py --config.streams.clip.batch_size=256 \
    --config.streams.clip.batch_multiple=1 --config.streams.clip.resolutions='(224,)' \
    --config.streams.sam.batch_size=4 [--steps=12] [--peak=989e12]

The program that is trained, on random weights and pictures that lie on the devices already, so that
neither data nor checkpoints are timed. Without --config.init and --config.teachers.NAME the models
are the paper's. --peak: bfloat16 operations a second of one device, 989e12 of an H100 or H200.
"""

import statistics
import time

import jax
import numpy as np
from absl import flags

from samclip_jax import config, train
from samclip_jax.compile_only import abstract_step, described, programs, resolutions
from samclip_jax.models.prompt_encoder import ABSENT
from samclip_jax.streams import batch_sizes, make_mesh, read_streams

STEPS = flags.DEFINE_integer("steps", 12, "timed, after three that are not", lower_bound=1)
PEAK = flags.DEFINE_float("peak", None, "operations a second of one device at most", lower_bound=1)
BOX = (2, 3)  # the labels of a box's corners, the rest of a prompt is absent


def main(values):
    settings = train.read_config(values)
    streams = read_streams(settings)
    mesh, batches = make_mesh(settings, streams), batch_sizes(streams)
    for sizes in programs(batches):
        print(f"compiling: {described(resolutions(sizes))} ...", flush=True)
        step, arguments, ideal = abstract_step(settings, streams, mesh, sizes)
        began = time.monotonic()
        with jax.set_mesh(mesh):
            program = step.lower(*arguments).compile()
        compiled = time.monotonic() - began
        state, *rest = jax.tree_util.tree_map_with_path(random, arguments)
        times = []
        for _ in range(3 + STEPS.value):
            began = time.perf_counter()
            state, _ = program(state, *rest)
            jax.block_until_ready(state)
            times.append(time.perf_counter() - began)
        print(row(sizes, mesh, ideal, times[3:], program.memory_analysis(), compiled), flush=True)


def row(sizes, mesh, ideal, times, memory, compiled):
    """One line of figures; `ideal`: operations of a step on all devices, nothing twice."""
    seconds = statistics.median(times)
    images = sum(images for _, images in sizes.values())
    rate = ideal / mesh.size / seconds
    share = f", {rate / PEAK.value:.1%} of the peak" if PEAK.value else ""
    return (
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}, {described(sizes)}: "
        f"{1e3 * seconds:.1f} ms ({1e3 * min(times):.1f} to {1e3 * max(times):.1f}), "
        f"{images / seconds:.0f} images a second, {rate / 1e12:.1f} TFLOP a second{share}; "
        f"{memory.temp_size_in_bytes / 1e9:.2f} GB of temporaries, compiled in {compiled:.0f} s"
    )


def random(path, leaf):
    """A ShapeDtypeStruct of the step's arguments -> an array of its kind."""
    name, rng = jax.tree_util.keystr(path), np.random.default_rng(leaf.shape)
    if name.startswith("[0]") and "['params']" not in name:
        value = np.zeros(leaf.shape)  # counts and moments
    elif name.endswith("['image']"):
        value = rng.integers(0, 256, leaf.shape)
    elif name.endswith("['labels']"):
        absent = (ABSENT,) * (leaf.shape[-1] - len(BOX))
        value = np.broadcast_to(BOX + absent, leaf.shape)
    elif name.endswith("['points']"):
        value = np.sort(rng.uniform(0, 256, leaf.shape), -2)  # a box: low corner, high corner
    elif name.endswith("['size']"):
        value = np.full(leaf.shape, 256)
    else:
        value = 0.02 * rng.standard_normal(leaf.shape, np.float32)
    return jax.device_put(value.astype(leaf.dtype), leaf.sharding)


if __name__ == "__main__":
    config.run(main, "configs/stage2.py")
