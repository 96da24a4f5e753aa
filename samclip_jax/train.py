"""SAM-CLIP's training, from top to bottom: losses, step, loop.

A stage is a set of distillation terms. Stage 1 has L_CLIP with the encoder frozen, stage 2 has
L_CLIP + 10 L_SAM with everything trained, stage 3 is stage 1 at higher resolution. The step goes
stream by stream: what the teachers give for the batch, one pass of the student, the gradient of the
weighted sum of the stream's terms. The gradients are added, and there is one update.
"""

import collections
import contextlib
import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from samclip_jax import (
    bad_steps,
    checkpoint,
    families,
    interrupt,
    models,
    optim,
    progress,
    resume,
    sharding,
    teachers,
)
from samclip_jax.compilation import Programs
from samclip_jax.config import TrainConfig, build
from samclip_jax.data.decode import REASONS
from samclip_jax.distributed import set_up_process
from samclip_jax.errors import UserError
from samclip_jax.evals.run import RunEvaluations, named, require_usable
from samclip_jax.losses import cosine_distance, mask_distillation
from samclip_jax.metrics import MetricWriter, Timer
from samclip_jax.paths import any_path
from samclip_jax.streams import (
    make_mesh,
    open_sources,
    passes,
    read_streams,
    require_divisible,
    start_streams,
)
from samclip_jax.student import partition, require_heads, start_student
from samclip_jax.tokenizer import Tokenizer

# --------------------------------------------------------------------------------------- losses

PROMPTS_TOGETHER = 4  # that a device decodes at a time


def cosine_loss(student, teacher, batch, config):
    """L_CLIP, eq. 1: the mean over images, or over patches too, of two outputs [..., D]."""
    return cosine_distance(student, teacher).mean(), {}


def mask_loss(student, teacher, batch, config):
    """L_SAM, eq. 2: between two outputs "masks", for the same prompts."""
    padding = config.mask_loss.padding
    extent = None if padding else batch["size"] / jnp.array(batch["image"].shape[1:3])

    def of_prompts(prompts):
        return mask_distillation(student(**prompts), teacher(**prompts), config.mask_loss, extent)

    prompts = {name: batch[name] for name in ("points", "labels")}
    if not config.remat:
        return of_prompts(prompts)
    groups = prompt_groups(batch["labels"].shape[1] // sharding.devices_per_image())
    return optim.mean_over_parts(jax.checkpoint(of_prompts), prompts, groups, axis=1)


def prompt_groups(prompts):
    """How many equal groups of at most PROMPTS_TOGETHER so many prompts make: what the decoder
    needs for the gradient of a few stays on the chip."""
    return next(
        n for n in range(1, prompts + 1) if prompts <= n * PROMPTS_TOGETHER and prompts % n == 0
    )


LOSSES = {"cosine": cosine_loss, "masks": mask_loss}

# ------------------------------------------------------------------------------------------ step


def weighted_sum(terms, student, teachers, batch, config):
    """Sum of weight times loss over the terms of one stream, and {"TERM/loss or part": value}.

    teachers: {name: model}. The student goes once over the batch for all terms, a teacher too but
    for a CLIP, which sees another size for its patches.
    """
    learned = [(term.head, term.target) for term in terms.values()]
    outputs = student.outputs(batch, learned, config.dtype, config.remat)
    patch = student.encoder.config.patch
    grid = tuple(side // patch for side in batch["image"].shape[1:3])
    targets = {}
    for name, teacher in teachers.items():
        wanted = {term.target: None for term in terms.values() if term.teacher == name}
        family = families.of(teacher.config)
        targets[name] = family.targets(teacher, batch, [*wanted], grid, config.dtype)
    total, metrics = 0.0, {}
    for name, term in terms.items():
        output, target = outputs[term.head, term.target], targets[term.teacher][term.target]
        loss, parts = LOSSES[term.loss](output, target, batch, config)
        total += term.weight * loss
        metrics |= {f"{name}/{part}": value for part, value in {"loss": loss, **parts}.items()}
    return total, metrics


def start_state(terms, params, opt_state):
    """The train state before the first step of these terms; its counts are numpy's."""
    streams = {term.stream for term in terms.values()}
    counts = {
        "step": 0,
        "positions": dict.fromkeys(streams, 0),
        "bad_steps": bad_steps.start(terms, streams),
    }
    return jax.tree.map(np.int32, counts) | {"params": params, "opt_state": opt_state}


def make_step(config, student_graph, teacher_graphs, optimizer, mesh):
    """The jitted step: (state, frozen, teachers, batches) -> (state, metrics); call it under mesh.

    state: {"step": int32; "positions": {stream: int32}; "bad_steps": see bad_steps.py; "params":
    the trainable ones, float32; "opt_state"}, donated. frozen: the student's other parameters.
    teachers: {name: params}. batches: {stream: batch}. metrics: TERM/loss and its parts without the
    term's weight, STREAM/grad_norm of the weighted sum of its terms, grad_norm of their sum.
    """

    def gradient(stream, terms, params, frozen, teachers, batch):
        def loss(params, batch):
            student = models.merge(student_graph, {**params, **frozen})
            return weighted_sum(terms, student, teachers, batch, config)

        def micro_step(batch):
            with sharding.activations(mesh, len(batch["image"])):
                (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
            return optax.tree.cast(grads, config.gradient_dtype), metrics

        return optim.mean_over_parts(micro_step, batch, config.streams[stream]["micro_batches"])

    def step(state, frozen, teachers, batches):
        params, metrics = state["params"], {}
        total = optax.tree.zeros_like(params, dtype=config.gradient_dtype)
        for stream in batches:
            terms = {name: t for name, t in config.terms.items() if t.stream == stream}
            used = dict.fromkeys(t.teacher for t in terms.values())  # in one order on all hosts
            merged = {name: models.merge(teacher_graphs[name], teachers[name]) for name in used}
            grads, values = gradient(stream, terms, params, frozen, merged, batches[stream])
            total = jax.tree.map(jnp.add, total, grads)
            norm = optax.tree.norm(optax.tree.cast(grads, jnp.float32))
            metrics |= values | {f"{stream}/grad_norm": norm}
        total = optax.tree.cast(total, jnp.float32)
        metrics["grad_norm"] = optax.tree.norm(total)
        updates, opt_state = optimizer.update(total, state["opt_state"], params)
        updated = {"params": optax.apply_updates(params, updates), "opt_state": opt_state}
        bad, updated = bad_steps.leave_out(config.max_bad_steps, metrics, state, updated)
        state = {
            "step": state["step"] + 1,
            "positions": {name: p + 1 for name, p in state["positions"].items()},
            "bad_steps": bad,
            **updated,
        }
        return jax.lax.with_sharding_constraint(state, sharding.shardings(mesh, state)), metrics

    return jax.jit(step, donate_argnums=0)


# ------------------------------------------------------------------------------------------ loop


def read_config(values):
    """A ConfigDict -> TrainConfig; UserError for what is wrong in it by itself."""
    config = build(TrainConfig, values.to_dict(), "--config")
    for name, term in config.terms.items():
        if term.teacher not in config.teachers:
            raise UserError(
                f"--config.terms.{name}.teacher must be one of {', '.join(config.teachers)}, got "
                f"{term.teacher!r}"
            )
    return dataclasses.replace(config, dtype=jnp.dtype(config.dtype))


def train(values, workdir, title=None):
    """Runs the experiment `values`, a ConfigDict, in workdir; goes on with what has begun there.

    title: of its progress, by default the workdir's name. Returns the metrics of the last
    evaluation, {} without one. UserError for every mistake in the
    config, and after config.max_bad_steps steps in a row whose loss or gradient is not finite.
    SIGTERM and Ctrl-C save the step and end the process with code 143 or 130; the same command goes
    on.
    """
    config, workdir = read_config(values), any_path(workdir)
    title = title or workdir.name
    set_up_process()
    streams = read_streams(config)
    mesh = make_mesh(config, streams)
    streams = open_sources(streams)
    require_usable(config.evals)
    order = resume.data_order(config.seed, streams)
    resume.require_same(workdir, config.steps, order)
    teacher_configs = teachers.load_configs(config)
    teacher_params, graphs = teachers.load(config, teacher_configs, mesh)
    is_new = not (workdir / "model.json").exists()
    model_config, params, tokenizer = (
        start_student(config, teacher_configs, mesh)
        if is_new
        else checkpoint.load_model(workdir, {"masks", "text"}, mesh)
    )
    require_heads(config, teacher_configs, model_config, workdir)
    for model in (model_config, *teacher_configs.values()):
        if hasattr(model, "sam"):
            require_divisible(streams, model.sam.encoder.patch, mesh)
    teachers.require_fit(config, params, teacher_params)
    trainable, frozen, factors = partition(config, models.image_params(params))
    if is_new:
        source = {"name": str(config.init), "sha256": None}
        checkpoint.save_model(workdir, model_config, params, tokenizer, source)
    # the frozen text towers were compared, and are not needed any more
    teacher_params = {name: models.image_params(x) for name, x in teacher_params.items()}
    optimizer, schedule = optim.adamw(config.optimizer, factors), optim.schedule(config.optimizer)
    moments = sharding.shardings(mesh, jax.eval_shape(optimizer.init, trainable))
    opt_state = jax.jit(optimizer.init, out_shardings=moments)(trainable)
    state = sharding.shard(mesh, start_state(config.terms, trainable, opt_state))
    del params, trainable, opt_state
    checkpoints = checkpoint.TrainCheckpoints(
        workdir, config.checkpoint_every, config.checkpoints_kept
    )
    state = checkpoints.restore(jax.tree.map(abstract, state)) or state
    resume.write(workdir, values, order)
    first = int(state["step"])
    if unnamed := config.evals.keys() - named(config.evals).keys():
        progress.say(
            f"not evaluated, as no data are named: {', '.join(sorted(unnamed))}; "
            "--config.evals.NAME.data.path names them"
        )
    for name, count in passes(streams, config.steps).items():
        progress.say(f"{config.steps:,} steps have each image of {name} {count:.3g} times")
    if first == config.steps:
        progress.say(f"{workdir} has all of its {first} steps")
    elif first:
        progress.say(f"{workdir} goes on after step {first} of {config.steps}")
    if tokenizer is not None:
        tokenizer = Tokenizer(tokenizer, model_config.text.context_length)
    evaluations = RunEvaluations(config, workdir, mesh, model_config, tokenizer)
    graph, _ = families.split_images(model_config)
    step_function = make_step(config, graph, graphs, optimizer, mesh)
    batches_of = start_streams(streams, config.seed, jax.device_get(state["positions"]), mesh)
    writer, timer = MetricWriter(workdir), Timer()
    rejected, metrics = collections.Counter(), {}
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(interrupt.interrupts())
        bar = progress.Bar(None, title, config.steps, "steps", first, delay=0)
        stack.enter_context(bar)
        resolutions = {name: stream.examples.resolutions for name, stream in streams.items()}
        programs = Programs(resolutions, bar.now)
        stack.callback(writer.close)
        stack.callback(checkpoints.close)
        for iterator in batches_of.values():
            stack.callback(iterator.close)

        def evaluate_now(step):
            checkpoints.wait()  # what is evaluated is there when the run goes on
            with interrupts.evaluating():
                results = evaluations(step, state["params"])
                writer.write(step, results)
                evaluations.forget()
            values = ", ".join(f"{name} {value:.4g}" for name, value in results.items())
            progress.say(f"{title} after step {step}: {values}")
            timer.restart()
            return results

        if first < config.steps and evaluations.interrupted(first):
            evaluate_now(first)
        for step in range(first + 1, config.steps + 1):
            last = step == config.steps
            with timer.waiting(metrics):
                batches = {name: next(iterator) for name, iterator in batches_of.items()}
            for name, batch in batches.items():
                rejected.update({f"{name}/{r}": n for r, n in counted(batch.pop("rejected"))})
            batches = {
                name: sharding.shard_batch(mesh, batch.pop("images"), batch)
                for name, batch in batches.items()
            }
            before = metrics
            sides = {name: batch["image"].shape[1] for name, batch in batches.items()}
            with programs.calling(sides), jax.set_mesh(mesh):
                state, metrics = step_function(state, frozen, teacher_params, batches)
            jax.block_until_ready(before)  # no more than two batches lie on the devices
            timer.step()
            if step % config.log_every == 0 or step == first + 1 or last:
                bad = bad_steps.require_few(config.max_bad_steps, state["bad_steps"])
                rate = schedule(step - 1 - bad.get("bad_steps", 0))
                line = {**metrics, "learning_rate": rate, **bad, **rejected, **timer.take()}
                writer.write(step, line := jax.device_get(line))
                last_line = short(config.terms, line, rejected)
                bar.set_postfix_str(last_line, refresh=False)
            bar.update()
            evaluating = not last and evaluations.due(step)
            stopped_by = interrupts.requested(step)
            if last or evaluating or stopped_by or checkpoints.due(step):
                bad_steps.require_few(config.max_bad_steps, state["bad_steps"])
                checkpoints.save(step, state, force=True)
            if stopped_by:
                checkpoints.wait()
                progress.say(f"{workdir} was stopped, and saved after step {step}")
                sys.exit(interrupt.EXIT_CODE + stopped_by)
            if evaluating:
                evaluate_now(step)
        bar.close()
        if first < config.steps:
            progress.say(f"{title}: all {config.steps:,} steps are done, {last_line}; {workdir}")
        return evaluate_now(config.steps) if evaluations.due(config.steps) else {}


def short(terms, metrics, rejected):
    """What the progress shows of a step: "loss clip 0.53, sam 0.002, 0.21 s a step", and what is
    not as it should be."""
    losses = ", ".join(f"{name} {metrics[f'{name}/loss']:.3g}" for name in terms)
    parts = [f"loss {losses}", f"{metrics['seconds_per_step']:.3g} s a step"]
    if metrics["data_wait"] > 0.02:
        parts.append(f"{100 * metrics['data_wait']:.0f} % of it waiting for data")
    if metrics.get("bad_steps"):
        parts.insert(0, f"{metrics['bad_steps']} bad steps")
    if rejected:
        parts.append(f"{rejected.total()} records rejected")
    return ", ".join(parts)


def counted(rejected):
    """(reason, number) of the records that a batch could not use."""
    return [(reason, int(n)) for reason, n in zip(REASONS, rejected, strict=True) if n]


def abstract(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
