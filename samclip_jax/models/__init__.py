"""Models as a graph definition and a flat dict of arrays: {"encoder/pos_embed": ..., ...}."""

import functools

import jax
from flax import nnx, traverse_util

from samclip_jax.models.config import kind_of
from samclip_jax.models.samclip import Clip, Sam, SamClip

SAM_PARTS = ("encoder/", "prompt_encoder/", "mask_decoder/")
MODELS = {"sam": Sam, "clip": Clip, "samclip": SamClip}


def init(config, seed=0):
    """A model with fresh float32 weights for a SamConfig, ClipConfig or SamClipConfig."""
    return MODELS[kind_of(config)](config, nnx.Rngs(seed))


@functools.cache  # a trace of many layers
def abstract(config):
    """The same without memory: every leaf is a jax.ShapeDtypeStruct."""
    return nnx.eval_shape(lambda: init(config))


def split(model):
    """(graph definition, {"a/b/c": array}) of a model or an abstract model."""
    graph, state = nnx.split(model)
    return graph, traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/")


def merge(graph, params):
    """The model again; inverse of `split`. Works inside jax.jit and jax.grad."""
    return nnx.merge(graph, traverse_util.unflatten_dict(params, sep="/"))


def split_images(config):
    """`split` of the abstract model without its text tower, which images never meet."""
    model = nnx.clone(abstract(config))
    for name in ("text", "logit_scale"):
        if hasattr(model, name):
            delattr(model, name)
    return split(model)


def image_params(params):
    """Those of a flat dict that `split_images` has."""
    return {n: leaf for n, leaf in params.items() if not n.startswith(("text/", "logit_scale"))}


def count(params) -> int:
    """Number of weights in a flat dict."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def wise_ft(start, end, alpha):
    """(1 - alpha) start + alpha end for what SAM has, else end (SAM-CLIP appendix D)."""
    return {
        name: (1 - alpha) * start[name] + alpha * leaf if name.startswith(SAM_PARTS) else leaf
        for name, leaf in end.items()
    }
