"""SAM-CLIP's training, from top to bottom: model, data, loss, step, loop.

A stage is a set of distillation terms. Stage 1 has L_CLIP with the encoder frozen, stage 2 has
L_CLIP + 10 L_SAM with everything trained, stage 3 is stage 1 at higher resolution. The step takes
the gradient of every term and makes one update from their weighted sum.
"""

import collections
import contextlib
import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from samclip_jax import checkpoint, evals, interrupt, models, optim, resume, sharding
from samclip_jax.compilation import Programs
from samclip_jax.config import TrainConfig, build
from samclip_jax.data import pipeline, sources
from samclip_jax.data.decode import REASONS
from samclip_jax.errors import UserError, under
from samclip_jax.inference.model import Model
from samclip_jax.losses import cosine_distance, mask_distillation
from samclip_jax.metrics import MetricWriter, Timer
from samclip_jax.models.config import ClipHeadConfig, kind_of
from samclip_jax.models.samclip import combine, same_texts
from samclip_jax.paths import any_path
from samclip_jax.tokenizer import Tokenizer

# ---------------------------------------------------------------------------------------- terms

PROMPTS_TOGETHER = 4  # that a device decodes at a time


def clip_term(student, teacher, batch, config):
    """L_CLIP, eq. 1: cosine distance to the CLIP teacher's image embedding."""
    target = teacher.encode_image(batch["image"], config.dtype)
    tokens = student.encode(batch["image"], dtype=config.dtype, remat=config.remat).tokens
    return cosine_distance(student.clip_head(tokens, config.remat).pooled, target).mean(), {}


def sam_term(student, teacher, batch, config):
    """L_SAM, eq. 2: the SAM teacher's masks for the same prompts."""
    images = batch["image"], batch["size"], config.dtype, config.remat
    encoded = [(model, model.encode(*images).embedding) for model in (student, teacher)]

    def of_prompts(prompts):
        outputs = [model.predict_masks(embedding, **prompts) for model, embedding in encoded]
        return mask_distillation(*outputs, config.mask_loss)

    prompts = {name: batch[name] for name in ("points", "labels")}
    if not config.remat:
        return of_prompts(prompts)
    groups = prompt_groups(batch["labels"].shape[1] // sharding.sharing())
    return optim.mean_over_parts(jax.checkpoint(of_prompts), prompts, groups, axis=1)


def prompt_groups(prompts):
    """How many equal groups of at most PROMPTS_TOGETHER so many prompts make: what the decoder
    needs for the gradient of a few stays on the chip."""
    return next(
        n for n in range(1, prompts + 1) if prompts <= n * PROMPTS_TOGETHER and prompts % n == 0
    )


TERMS = {"clip": clip_term, "sam": sam_term}
STREAMS = {"clip": pipeline.ClipStream, "sam": pipeline.SamStream}
TEACHER_KINDS = {"clip": ("clip", "samclip"), "sam": ("sam", "samclip")}

# ----------------------------------------------------------------------------------------- model


def load_teachers(config, mesh):
    """{name: params} and {name: graph} of the teachers in the terms."""
    params, graphs = {}, {}
    place = functools.partial(sharding.shardings, mesh)
    for term in config.terms.values():
        path = config.teachers[term.teacher]
        if not path:
            kind = term.loss.upper()
            raise UserError(
                f"set --config.teachers.{term.teacher} to a converted {kind} checkpoint"
            )
        kinds = TEACHER_KINDS[term.loss]
        with under(f"--config.teachers.{term.teacher}: "):
            model_config, loaded, _ = checkpoint.load_model(path, kinds, place)
        params[term.teacher] = at_rest(loaded, config.dtype)
        graphs[term.teacher] = models.split(models.abstract(model_config))[0]
    return params, graphs


@functools.partial(jax.jit, static_argnums=1)
def at_rest(params, dtype):
    """A teacher's parameters with its matrices in the dtype that they are multiplied in."""
    return {k: x.astype(dtype) if k.endswith("/kernel") else x for k, x in params.items()}


def load_student(config, workdir, mesh):
    """(config, params, tokenizer): of the run in workdir if it has begun, else from config.init.

    A merged checkpoint is taken as it is; a plain SAM gets the text tower of the CLIP teacher and
    a new CLIP head. A new run's workdir becomes a model checkpoint of what it starts from.
    """
    if not (workdir / "model.json").exists():
        begin(config, workdir)
    return checkpoint.load_model(workdir, ("samclip",), functools.partial(sharding.shardings, mesh))


def begin(config, workdir):
    """Makes workdir the checkpoint of the model that a new run starts from."""
    if not config.init:
        raise UserError("set --config.init to the checkpoint that training starts from")
    with under("--config.init: "):
        model_config, params, tokenizer = checkpoint.load_model(config.init, ("sam", "samclip"))
    if kind_of(model_config) == "sam":
        clip = next((t.teacher for t in config.terms.values() if t.loss == "clip"), None)
        if clip is None or kind_of(checkpoint.load_config(config.teachers[clip])) != "clip":
            raise UserError("starting from a plain SAM takes a term whose teacher is a CLIP")
        clip_config, clip_params, tokenizer = checkpoint.load_model(config.teachers[clip])
        head = ClipHeadConfig(**vars(config.head), embed_dim=clip_config.text.embed_dim)
        model_config, params = combine(
            model_config, params, clip_config, clip_params, head, config.seed
        )
    source = {"name": str(config.init), "sha256": None}
    checkpoint.save_model(workdir, model_config, jax.device_get(params), tokenizer, source)


def require_fit(config, params, teachers):
    """UserError unless the student can learn from these teachers."""
    for term in config.terms.values():
        if term.loss == "clip" and not same_texts(params, teachers[term.teacher]):
            raise UserError(
                f"--config.teachers.{term.teacher}: its text tower is not the student's, whose "
                "images would be learnt for other texts; give the CLIP that the first stage had, "
                "or start from a plain SAM"
            )


def require_cuts(config, streams, patch, mesh):
    """UserError unless every image divides into patches, and over the devices that share it."""
    sizes = batch_sizes(streams)
    for term in config.terms.values():
        for resolution, images in sizes[term.stream].items():
            where = f"--config.streams.{term.stream}: {resolution} px"
            if resolution % patch:
                raise UserError(f"{where} is no multiple of a patch, {patch} px")
            shared = sharding.Cut.of(mesh, images // term.micro_batches).shared
            prompts = streams[term.stream][1].prompts.per_image if term.loss == "sam" else shared
            if resolution // patch % shared or prompts % shared:
                with_prompts = f" and {prompts} prompts" if term.loss == "sam" else ""
                raise UserError(
                    f"{where}: {shared} devices cannot share an image of {resolution // patch} "
                    f"rows of patches{with_prompts} evenly; use a larger batch_size, a multiple of "
                    "the devices if you can, or fewer micro_batches"
                )


# ------------------------------------------------------------------------------------------ step


def start_state(streams, params, opt_state):
    """The train state before the first step; its counts are numpy's."""
    counts = {"step": 0, "bad_step": -1, "positions": dict.fromkeys(streams, 0)}
    return jax.tree.map(np.int32, counts) | {"params": params, "opt_state": opt_state}


def make_step(config, student_graph, teacher_graphs, optimizer, mesh):
    """The jitted step: (state, frozen, teachers, batches) -> (state, metrics); call it under mesh.

    state: {"step", "bad_step": int32; "positions": {stream: int32}; "params": the trainable ones,
    float32; "opt_state"}, donated. frozen: the student's other parameters. teachers: {name:
    params}. batches: {stream: batch}. bad_step is the first step whose loss or gradient was not
    finite, or -1.
    """

    def gradient(term, params, frozen, teacher, batch):
        def loss(params, batch):
            student = models.merge(student_graph, {**params, **frozen})
            value, parts = TERMS[term.loss](student, teacher, batch, config)
            return term.weight * value, {"loss": value, **parts}

        def micro_step(batch):
            with sharding.activations(mesh, len(batch["image"])):
                (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
            return grads, metrics

        return optim.mean_over_parts(micro_step, batch, term.micro_batches)

    def step(state, frozen, teachers, batches):
        params, metrics = state["params"], {}
        total = jax.tree.map(jnp.zeros_like, params)
        for name, term in config.terms.items():
            teacher = models.merge(teacher_graphs[term.teacher], teachers[term.teacher])
            grads, parts = gradient(term, params, frozen, teacher, batches[term.stream])
            total = jax.tree.map(jnp.add, total, grads)
            metrics |= {f"{name}/{part}": value for part, value in parts.items()}
            metrics[f"{name}/grad_norm"] = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(total, state["opt_state"], params)
        watched = [f"{name}/{part}" for name in config.terms for part in ("loss", "grad_norm")]
        finite = jnp.isfinite(sum(metrics[name] for name in watched))
        bad = state["bad_step"] >= 0
        state = {
            "step": state["step"] + 1,
            "bad_step": jnp.where(finite | bad, state["bad_step"], state["step"] + 1),
            "positions": {name: p + 1 for name, p in state["positions"].items()},
            "params": optax.apply_updates(params, updates),
            "opt_state": opt_state,
        }
        return jax.lax.with_sharding_constraint(state, sharding.shardings(mesh, state)), metrics

    return jax.jit(step, donate_argnums=0)


# ------------------------------------------------------------------------------------------ data


def read_streams(config):
    """{name: (options of its sources, stream config, workers)} of the streams in the terms."""
    opened = {}
    for name in dict.fromkeys(term.stream for term in config.terms.values()):
        if name not in config.streams:
            raise UserError(f"--config.streams has no {name!r}; it has {', '.join(config.streams)}")
        options = dict(config.streams[name])
        kind, workers, parts = (options.pop(key) for key in ("kind", "workers", "sources"))
        if kind not in STREAMS:
            known = ", ".join(STREAMS)
            raise UserError(f"--config.streams.{name}.kind must be one of {known}, got {kind!r}")
        opened[name] = parts, build(STREAMS[kind], options, f"--config.streams.{name}"), workers
    return opened


def batch_sizes(streams):
    """Images in every kind of batch: {stream: {resolution: images}}."""
    sizes = {}
    for name, (_, stream, _) in streams.items():
        with under(f"--config.streams.{name}: "):
            sizes[name] = pipeline.Schedule(stream, 0).sizes
    return sizes


def start_streams(opened, seed, positions, mesh):
    """{name: endless iterator of this process's batches}, each from its position on."""
    share = functools.partial(sharding.share, mesh)
    return {
        name: pipeline.stream(made, stream, seed, positions[name], share, workers)
        for name, (made, stream, workers) in opened.items()
    }


# ------------------------------------------------------------------------------------------ loop


def read_config(values):
    """A ConfigDict -> TrainConfig; UserError for what is wrong in it by itself."""
    config = build(TrainConfig, values.to_dict(), "--config")
    for name, term in config.terms.items():
        if term.loss not in TERMS:
            known = ", ".join(TERMS)
            raise UserError(f"--config.terms.{name}.loss must be one of {known}, got {term.loss!r}")
        if term.teacher not in config.teachers:
            raise UserError(
                f"teachers has no {term.teacher!r}: set --config.teachers.{term.teacher}"
            )
    return dataclasses.replace(config, dtype=jnp.dtype(config.dtype))


def lay_out(config, streams, devices=None):
    """The mesh on which every batch of the streams, and its micro-batches, can be cut."""
    sizes, batches = batch_sizes(streams), []
    for name, term in config.terms.items():
        for resolution, images in sizes[term.stream].items():
            if images % term.micro_batches:
                raise UserError(
                    f"--config.terms.{name}.micro_batches={term.micro_batches} does not divide the "
                    f"{images} images of a batch of streams.{term.stream} at {resolution} px"
                )
            batches.append(images // term.micro_batches)
    return sharding.make_mesh(config.fsdp, batches, devices)


def train(values, workdir):
    """Runs the experiment `values`, a ConfigDict, in workdir; goes on with what has begun there.

    Returns the metrics of the last evaluation, {} without one. UserError for every mistake in the
    config, and where a loss or its gradient is not finite: the message names the step. SIGTERM and
    Ctrl-C save the step and end the process with code 143 or 130; the same command goes on.
    """
    config, workdir = read_config(values), any_path(workdir)
    opened = read_streams(config)
    mesh = lay_out(config, opened)
    opened = {
        name: (sources.make_sources(parts, f"--config.streams.{name}.sources"), stream, workers)
        for name, (parts, stream, workers) in opened.items()
    }
    order = resume.data_order(config.seed, opened)
    resume.require_same(workdir, config.steps, order)
    teachers, graphs = load_teachers(config, mesh)
    model_config, params, tokenizer = load_student(config, workdir, mesh)
    require_cuts(config, opened, model_config.sam.encoder.patch, mesh)
    require_fit(config, params, teachers)

    trainable, frozen, factors = optim.partition(params, config.lr_factors)
    optimizer, schedule = optim.adamw(config.optimizer, factors), optim.schedule(config.optimizer)
    moments = sharding.shardings(mesh, jax.eval_shape(optimizer.init, trainable))
    opt_state = jax.jit(optimizer.init, out_shardings=moments)(trainable)
    state = sharding.shard(mesh, start_state(opened, trainable, opt_state))
    del params, trainable, opt_state
    checkpoints = checkpoint.TrainCheckpoints(
        workdir, config.checkpoint_every, config.checkpoints_kept
    )
    state = checkpoints.restore(jax.tree.map(abstract, state)) or state
    resume.write(workdir, values, order)
    first = int(state["step"])
    if first == config.steps:
        print(f"{workdir} has all of its {first} steps", flush=True)
    elif first:
        print(f"{workdir} goes on after step {first} of {config.steps}", flush=True)
    if tokenizer is not None:
        tokenizer = Tokenizer(tokenizer, model_config.text.context_length)
    student = Model(model_config, {}, tokenizer, config.dtype)
    step_function = make_step(config, student.graph, graphs, optimizer, mesh)
    streams = start_streams(opened, config.seed, jax.device_get(state["positions"]), mesh)
    programs = Programs({name: stream.resolutions for name, (_, stream, _) in opened.items()})
    writer, timer = MetricWriter(workdir), Timer()
    rejected, evaluated, metrics = collections.Counter(), {}, {}
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(interrupt.interrupts())
        stack.callback(writer.close)
        stack.callback(checkpoints.close)
        for stream in streams.values():
            stack.callback(stream.close)
        for step in range(first + 1, config.steps + 1):
            last = step == config.steps
            with timer.waiting(metrics):
                batches = {name: next(stream) for name, stream in streams.items()}
            for name, batch in batches.items():
                rejected.update({f"{name}/{r}": n for r, n in counted(batch.pop("rejected"))})
            batches = {
                name: sharding.shard_batch(mesh, batch.pop("images"), batch)
                for name, batch in batches.items()
            }
            before = metrics
            sides = {name: batch["image"].shape[1] for name, batch in batches.items()}
            with programs.calling(sides), jax.set_mesh(mesh):
                state, metrics = step_function(state, frozen, teachers, batches)
            jax.block_until_ready(before)  # no more than two batches lie on the devices
            timer.step()
            if step % config.log_every == 0 or step == first + 1 or last:
                require_finite(state)
                told = {"learning_rate": schedule(step - 1), **rejected, **timer.take()}
                writer.write(step, jax.device_get(metrics | told), total=config.steps)
            evaluating = not last and config.eval_every and step % config.eval_every == 0
            stopped_by = interrupts.requested(step)
            if last or evaluating or stopped_by or checkpoints.due(step):
                require_finite(state)
                checkpoints.save(step, state, force=True)
            if stopped_by:
                checkpoints.wait()
                print(f"{workdir} was stopped, and saved after step {step}", flush=True)
                sys.exit(interrupt.EXIT_CODE + stopped_by)
            if evaluating:
                with interrupts.evaluating():
                    model = student.with_params({**state["params"], **frozen})
                    writer.write(step, evaluate(config, model), total=config.steps)
        if config.evals:
            with interrupts.evaluating():
                evaluated = evaluate(config, student.with_params({**state["params"], **frozen}))
                writer.write(config.steps, evaluated, total=config.steps)
    return evaluated


def counted(rejected):
    """(reason, number) of the records that a batch could not use."""
    return [(reason, int(n)) for reason, n in zip(REASONS, rejected, strict=True) if n]


def evaluate(config, model):
    """{"name/metric": value} of the tasks in config.evals."""
    values = {}
    for name, options in config.evals.items():
        results = evals.evaluate(model, flag=f"--config.evals.{name}.data", **options)
        values |= {f"{name}/{metric}": value for metric, value in results.items()}
    return values


def abstract(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def require_finite(state):
    """UserError naming the first step whose loss or gradient was not finite."""
    if int(state["bad_step"]) >= 0:
        raise UserError(
            f"the loss or its gradient was not finite at step {int(state['bad_step'])}; earlier "
            "checkpoints are whole. Lower optimizer.learning_rate, or set dtype=float32 to find "
            "the cause"
        )
