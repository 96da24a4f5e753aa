"""The streams of a run: what its config says of them, their batches, how devices share these."""

import functools
from typing import NamedTuple

from samclip_jax import sharding
from samclip_jax.config import STREAM, build
from samclip_jax.data import pipeline, sources
from samclip_jax.errors import UserError, under

KINDS = {"clip": pipeline.ClipStream, "sam": pipeline.SamStream}


class Stream(NamedTuple):
    """One stream, as a config has it."""

    examples: pipeline.ClipStream | pipeline.SamStream
    sources: dict | list  # options of each, by its name in the config; opened: a list of sources
    workers: int
    micro_batches: int


def read_streams(config):
    """{name: Stream} of those that the terms of a TrainConfig are computed on."""
    streams = {}
    for name in dict.fromkeys(term.stream for term in config.terms.values()):
        options = dict(config.streams[name])
        kind, workers, micro_batches, source_options = (options.pop(key) for key in STREAM)
        if kind not in KINDS:
            known = ", ".join(KINDS)
            raise UserError(f"--config.streams.{name}.kind must be one of {known}, got {kind!r}")
        examples = build(KINDS[kind], options, f"--config.streams.{name}")
        streams[name] = Stream(examples, source_options, workers, micro_batches)
    return streams


def open_sources(streams):
    """The streams with their sources opened."""
    return {
        name: stream._replace(
            sources=sources.make_sources(stream.sources, f"--config.streams.{name}.sources")
        )
        for name, stream in streams.items()
    }


def start_streams(streams, seed, positions, mesh):
    """{name: endless iterator of this process's batches}, each from its position on."""
    part = functools.partial(sharding.process_part, mesh)
    return {
        name: pipeline.stream(
            stream.sources, stream.examples, seed, positions[name], part, stream.workers
        )
        for name, stream in streams.items()
    }


def batch_sizes(streams):
    """Images in every kind of batch: {stream: {resolution: images}}."""
    sizes = {}
    for name, stream in streams.items():
        with under(f"--config.streams.{name}: "):
            sizes[name] = pipeline.batch_sizes(stream.examples)
    return sizes


def make_mesh(config, streams, devices=None):
    """The mesh over which every batch of the streams, and its micro-batches, divide."""
    batches = []
    for name, sizes in batch_sizes(streams).items():
        micro_batches = streams[name].micro_batches
        for resolution, images in sizes.items():
            if images % micro_batches:
                raise UserError(
                    f"--config.streams.{name}.micro_batches={micro_batches} does not divide the "
                    f"{images} images of a batch at {resolution} px"
                )
            batches.append(images // micro_batches)
    return sharding.make_mesh(config.fsdp, batches, devices)


def require_divisible(streams, patch, mesh):
    """UserError unless every image divides into patches, and over the devices that share it."""
    for name, sizes in batch_sizes(streams).items():
        for resolution, images in sizes.items():
            where = f"--config.streams.{name}: {resolution} px"
            if resolution % patch:
                raise UserError(f"{where} is no multiple of a patch, {patch} px")
            shared = sharding.BatchAxes.of(mesh, images // streams[name].micro_batches).shared
            prompted = getattr(streams[name].examples, "prompts", None)
            prompts = prompted.per_image if prompted else shared
            if resolution // patch % shared or prompts % shared:
                with_prompts = f" and {prompts} prompts" if prompted else ""
                raise UserError(
                    f"{where}: {shared} devices cannot share an image of {resolution // patch} "
                    f"rows of patches{with_prompts} evenly; use a larger batch_size, a multiple of "
                    "the devices if you can, or fewer micro_batches"
                )


def passes(streams, steps):
    """{stream: how often so many steps have each image of its sources, on average}."""
    sizes = {name: list(each.values()) for name, each in batch_sizes(streams).items()}
    return {
        name: steps * sum(sizes[name]) / len(sizes[name]) / sum(pipeline.epoch(stream.sources))
        for name, stream in streams.items()
    }
