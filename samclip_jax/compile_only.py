"""What a training step would take on TPUs that are not here: compiled for them on any machine.

The program is the one that is trained, for every CLIP resolution. Needs the libtpu wheel, no TPU.
"""

import importlib.util
import itertools
import os
import re
import time
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from samclip_jax import checkpoint, families, flops, hlo, optim, sharding, train
from samclip_jax.config import MASKS
from samclip_jax.errors import UserError, under
from samclip_jax.families import samclip
from samclip_jax.metrics import write_json
from samclip_jax.models.config import SamConfig
from samclip_jax.paths import output_file
from samclip_jax.streams import batch_sizes, make_mesh, read_streams, require_divisible
from samclip_jax.student import partition, student_config
from samclip_jax.teachers import at_rest, targets


class Chip(NamedTuple):
    """Published figures of a chip: bytes, bfloat16 operations a second, bytes a second."""

    memory: float
    flops: float
    memory_bandwidth: float
    link_bandwidth: float  # of all its links to other chips of its slice together


# https://cloud.google.com/tpu/docs/v5e and its siblings v5p, v6e ("System
# architecture"); links: the published gigabits a second / 8
CHIPS = {
    "TPU v5 lite": Chip(16e9, 197e12, 819e9, 200e9),
    "TPU v5": Chip(95e9, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip(32e9, 918e12, 1640e9, 448e9),
}
NO_TPU = {  # libtpu would ask the network what TPU this is, and lock it
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
TOO_LARGE = re.compile(  # how XLA says how much it would have needed
    r"Used ([\d.]+)([MG]) of \S+ hbm|\(([\d.]+)([MG])\) exceeds available HBM"
)


def compile_only(values, topology, report=None):
    """Compiles the experiment `values`, a ConfigDict, for `topology`; prints and returns a report.

    topology: as XLA names it, "v5e:16x16"; several slices of it: "v5e:16x16*2". report: a path
    for the JSON. UserError where it does not fit, with what to change; the report is written all
    the same.
    """
    report = output_file(report) if report else None
    config = train.read_config(values)
    streams = read_streams(config)
    devices = topology_devices(topology)
    chip = CHIPS.get(devices[0].device_kind)
    if chip is None:
        raise UserError(f"{topology}: no figures of a {devices[0].device_kind} in CHIPS")
    mesh, batches = make_mesh(config, streams, devices), batch_sizes(streams)
    entries = []
    for sizes in programs(batches):
        print(f"compiling for {topology}: {described(resolutions(sizes))} ...", flush=True)
        entries.append(compiled(config, streams, mesh, sizes, chip))
    results = summary(topology, mesh, chip, entries, config.steps)
    print(table(results), flush=True)
    if report:
        write_json(report, results)
    if not results["fits"]:
        most = max(entries, key=lambda program: program["hbm_bytes_per_device"])
        raise UserError(
            f"{topology} does not hold this step ({described(most['resolutions'])}): "
            f"{most['hbm_bytes_per_device'] / 1e9:.1f} GB a chip of {chip.memory / 1e9:.0f}. Raise "
            "--config.streams.NAME.micro_batches (fewer activations at a time) or --config.fsdp "
            "(less state a chip), or take more chips"
        )
    return results


def programs(batches):
    """[{stream: (resolution, images)}], one for every combination of the streams' resolutions."""
    kinds = [[(name, size) for size in sizes.items()] for name, sizes in batches.items()]
    return [dict(sizes) for sizes in itertools.product(*kinds)]


def topology_devices(name):
    """The devices of a topology; UserError where XLA knows none of this name."""
    for variable, value in NO_TPU.items():
        os.environ.setdefault(variable, value)
    single, several, slices = name.partition("*")
    try:
        options = {"num_slices": int(slices)} if several else {}
        if several and int(slices) < 1:
            raise ValueError("a topology has one slice or more")
        return topologies.get_topology_desc(platform="tpu", topology_name=single, **options).devices
    except Exception as error:  # whatever libtpu raises, and its absence
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--compile_only={name}: no such topology (v5e:2x4 and v5p:4x4x4 are), or the libtpu "
            f"package is missing (pip install 'samclip_jax[tpu]'): {reason}"
        ) from error


def has_compiler():
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def compiled(config, streams, mesh, sizes, chip):
    """The entry of one program in the report; `sizes`: {stream: (resolution, images)}."""
    step, arguments, ideal = abstract_step(config, streams, mesh, sizes)
    entry = {"resolutions": resolutions(sizes)}
    began = time.monotonic()
    try:
        with jax.set_mesh(mesh):
            program = step.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = TOO_LARGE.search(str(error))
        if not needed:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"XLA cannot compile this for {mesh.devices.flat[0]}: {reason}"
            ) from error
        number, unit = filter(None, needed.groups())
        entry["hbm_bytes_per_device"] = float(number) * 2 ** {"M": 20, "G": 30}[unit]
        return entry | {"fits": False, "compile_seconds": time.monotonic() - began}
    seconds, memory = time.monotonic() - began, program.memory_analysis()
    try:
        counts = hlo.count(program.as_text())
    except ValueError as error:
        raise UserError(f"the compiled program cannot be counted: {error}") from error
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    held += memory.generated_code_size_in_bytes
    times = {
        "compute": counts.flops / chip.flops,
        "memory": counts.hbm_bytes / chip.memory_bandwidth,
        "links": counts.collective_bytes / chip.link_bandwidth,
    }
    return entry | {
        "hbm_bytes_per_device": held,
        "temporary_bytes_per_device": memory.temp_size_in_bytes,
        "fits": held <= chip.memory,
        "flops_per_device": counts.flops,
        "ideal_flops_per_device": ideal / mesh.size,
        "bytes_accessed_per_device": counts.bytes,
        "hbm_bytes_accessed_per_device": counts.hbm_bytes,
        "collective_bytes_per_device": counts.collective_bytes,
        "seconds": times,
        "roofline_seconds": max(times.values()),
        "ideal_seconds": ideal / mesh.size / chip.flops,
        "compile_seconds": seconds,
    }


def abstract_step(config, streams, mesh, sizes):
    """(jitted step, its arguments as ShapeDtypeStructs, ideal operations of all devices)."""
    student, teachers = model_configs(config)

    def placed(tree):
        return jax.tree.map(
            lambda x, there: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=there),
            tree,
            sharding.shardings(mesh, tree),
        )

    require_divisible(streams, student.sam.encoder.patch, mesh)
    graph, params = families.split_images(student)
    trainable, frozen, factors = partition(config, params)
    optimizer = optim.adamw(config.optimizer, factors)
    state = train.start_state(config.terms, trainable, jax.eval_shape(optimizer.init, trainable))
    split = {name: families.split_images(teacher) for name, teacher in teachers.items()}
    graphs = {name: teacher_graph for name, (teacher_graph, _) in split.items()}
    shapes, batches = {}, {}
    for name, (resolution, images) in sizes.items():
        example = streams[name].examples.shapes(resolution)
        shapes[name] = {key: (images, *shape) for key, (shape, _) in example.items()}
        batch = {key: jax.ShapeDtypeStruct(shapes[name][key], d) for key, (_, d) in example.items()}
        batches[name] = jax.tree.map(
            lambda x, there: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there),
            batch,
            sharding.batch_shardings(mesh, images, batch),
        )
    resting = {
        name: jax.eval_shape(lambda x: at_rest(x, config.dtype), teacher)
        for name, (_, teacher) in split.items()
    }
    teacher_params = {name: placed(teacher) for name, teacher in resting.items()}
    step = train.make_step(config, graph, graphs, optimizer, mesh)
    ideal = ideal_operations(config.terms, student, teachers, trainable, shapes)
    return step, (placed(state), placed(frozen), teacher_params, batches), ideal


def model_configs(config):
    """(SamClipConfig of the student, {teacher: config}): of the checkpoints that the config names,
    or of the paper's parents where it names none."""
    configs = {}
    for name, asked in targets(config.terms).items():
        path = config.teachers[name]
        parent = families.that_give(asked)[0].config
        with under(f"--config.teachers.{name}: "):
            configs[name] = checkpoint.load_config(path, asked) if path else parent()
    with under("--config.init: "):
        start = checkpoint.load_config(config.init, {"masks"}) if config.init else SamConfig()
    return student_config(config, start, configs), configs


def ideal_operations(terms, student, teachers, trained, batches):
    """Operations of one training step on all devices together, without recomputation.

    student: SamClipConfig; teachers: {name: config}; trained: names of trainable parameters;
    batches: {stream: {name: shape}}.
    """
    total = 0
    encoder_trained = any(name.startswith("encoder/") for name in trained)
    for stream, shapes in batches.items():
        of_stream = [term for term in terms.values() if term.stream == stream]
        images, *size, _ = shapes["image"]
        grid = tuple(side // student.sam.encoder.patch for side in size)
        for name in {term.teacher for term in of_stream}:
            asked = {term.target for term in of_stream if term.teacher == name}
            family = families.of(teachers[name])
            total += images * family.operations(teachers[name], asked, shapes, grid)
        body = flops.encoder(student.sam.encoder, size)
        total += images * body * (3 if encoder_trained else 1)
        for head in {term.head for term in of_stream}:
            # a gradient takes as much again for the weights, and for what came into the layer
            learned = {term.target for term in of_stream if term.head == head}
            operations = samclip.head_operations(student, head, learned, shapes, grid)
            start = f"{MASKS}/" if head == MASKS else f"heads/{head}/"
            head_trained = any(name.startswith(start) for name in trained)
            gradients = head_trained + (head_trained or encoder_trained)
            total += images * operations * (1 + gradients)
    return total


def summary(topology, mesh, chip, programs, steps):
    """The report: of a step on average over the programs, all equally frequent, and each of them;
    of memory the most."""
    report = {
        "topology": topology,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "hbm_bytes_per_device": max(program["hbm_bytes_per_device"] for program in programs),
        "hbm_limit_bytes": chip.memory,
        "fits": all(program["fits"] for program in programs),
        "compile_seconds": sum(program["compile_seconds"] for program in programs),
    }
    if all("roofline_seconds" in program for program in programs):
        for key in (key for key, value in programs[0].items() if isinstance(value, float | int)):
            if key not in report:
                report[key] = sum(program[key] for program in programs) / len(programs)
        hours = report["roofline_seconds"] * steps / 3600
        report |= {"steps": steps, "hours": hours, "chip_hours": hours * mesh.size}
    shared = {"topology": topology, "devices": mesh.size, "hbm_limit_bytes": chip.memory}
    return report | {"programs": [shared | program for program in programs]}


def resolutions(sizes):  # {stream: (px, images)} -> {stream: px}
    return {name: resolution for name, (resolution, _) in sizes.items()}


def described(sizes):
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def table(report):
    """The report as text."""
    axes = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    lines = [
        f"{report['topology']}: {report['devices']} chips as {axes}",
        "",
        "px                GB a chip  TFLOP  / ideal   GB HBM  GB links  ms compute  memory  links"
        "  / ideal  compiled s",
    ]
    for program in report["programs"]:
        row = (
            f"{described(program['resolutions']):<18}{program['hbm_bytes_per_device'] / 1e9:>8.2f}"
        )
        if "seconds" in program:
            row += (
                f"{program['flops_per_device'] / 1e12:>7.2f}"
                f"{program['flops_per_device'] / program['ideal_flops_per_device']:>9.2f}"
                f"{program['hbm_bytes_accessed_per_device'] / 1e9:>9.1f}"
                f"{program['collective_bytes_per_device'] / 1e9:>10.2f}"
            )
            row += "".join(
                f"{1e3 * seconds:>{width}.1f}"
                for seconds, width in zip(program["seconds"].values(), (12, 8, 7), strict=True)
            )
            row += f"{program['roofline_seconds'] / program['ideal_seconds']:>9.2f}"
        lines.append(f"{row}{program['compile_seconds']:>12.0f}")
    lines.append("")
    fits = "fits" if report["fits"] else "does not fit"
    lines.append(f"of {report['hbm_limit_bytes'] / 1e9:.0f} GB: {fits}")
    if "hours" in report:
        lines.append(
            f"at the roofline, {1e3 * report['roofline_seconds']:.1f} ms a step: "
            f"{report['steps']:,} steps in {report['hours']:,.1f} hours, "
            f"{report['chip_hours']:,.0f} chip-hours"
        )
    return "\n".join(lines)
