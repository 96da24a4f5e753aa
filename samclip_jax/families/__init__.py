"""The families of models: all that depends on what kind of model there is stands in one of them.

A new teacher is a file here, with its module in models/ and its layouts in convert/, and a line in
FAMILIES.
"""

import dataclasses
import functools

from flax import nnx

from samclip_jax import models
from samclip_jax.config import TEXT_HEAD, build
from samclip_jax.errors import UserError
from samclip_jax.families import clip, sam, samclip

FAMILIES = {family.kind: family for family in (sam.FAMILY, clip.FAMILY, samclip.FAMILY)}


def of(config):
    """The Family of a model with this config."""
    return next(family for family in FAMILIES.values() if type(config) is family.config)


def that_give(outputs):
    """The families whose models give all of these."""
    return [family for family in FAMILIES.values() if family.outputs >= {*outputs}]


def titles(outputs):
    """'a CLIP or a merged SAM-CLIP', which give all of these."""
    return " or ".join(family.title for family in that_give(outputs))


def init(config, seed=0):
    """A model of this config with fresh float32 weights."""
    return of(config).model(config, nnx.Rngs(seed))


@functools.cache  # a trace of many layers
def abstract(config):
    """The same without memory: every leaf is a jax.ShapeDtypeStruct."""
    return nnx.eval_shape(lambda: init(config))


def split_images(config):
    """`models.split` of the abstract model without its text tower, which images never meet."""
    model = nnx.clone(abstract(config))
    for name in models.TEXT_PARTS:
        if hasattr(model, name):
            delattr(model, name)
    return models.split(model)


def to_dict(config) -> dict:
    """A JSON-able dict of a model's config and its kind; `from_dict` reads it back."""
    return {"kind": of(config).kind, **dataclasses.asdict(config)}


def from_dict(values: dict):
    """The config that `to_dict` wrote. UserError on an unknown kind or key, and on a value that
    no model has."""
    values = dict(values)
    kind = values.pop("kind", None)
    if kind not in FAMILIES:
        raise UserError(f"model config: kind must be one of {', '.join(FAMILIES)}, got {kind!r}")
    if "clip_head" in values:  # of a time when a merged model had no other head
        values["heads"] = {TEXT_HEAD: values.pop("clip_head")}
    return build(FAMILIES[kind].config, values, f"model config: {kind}")
