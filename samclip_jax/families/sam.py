"""Segment Anything: masks for prompts."""

import functools

from samclip_jax import flops
from samclip_jax.convert import sam as release
from samclip_jax.families.family import Family
from samclip_jax.models.config import SamConfig
from samclip_jax.models.samclip import Sam


def targets(model, batch, names, grid, dtype):
    encoded = model.encode(batch["image"], batch.get("size"), dtype)
    return {"masks": functools.partial(model.predict_masks, encoded.embedding)}


def operations(config, names, shapes, grid):
    encoder = flops.encoder(config.encoder, shapes["image"][1:3])
    return encoder + flops.masks(config, shapes)


FAMILY = Family(
    kind="sam",
    title="a SAM",
    config=SamConfig,
    model=Sam,
    outputs=frozenset({"masks"}),
    targets=targets,
    operations=operations,
    release=release,
)
