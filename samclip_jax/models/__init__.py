"""Models as a graph definition and a flat dict of arrays: {"encoder/pos_embed": ..., ...}."""

import jax
from flax import nnx, traverse_util

SAM_PARTS = ("encoder/", "prompt_encoder/", "mask_decoder/")
TEXT_PARTS = ("text", "logit_scale")


def split(model):
    """(graph definition, {"a/b/c": array}) of a model or an abstract model."""
    graph, state = nnx.split(model)
    return graph, traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/")


def merge(graph, params):
    """The model again; inverse of `split`. Works inside jax.jit and jax.grad."""
    return nnx.merge(graph, traverse_util.unflatten_dict(params, sep="/"))


def image_params(params):
    """Those of a flat dict that images meet: without the text tower."""
    return {n: leaf for n, leaf in params.items() if n.split("/")[0] not in TEXT_PARTS}


def text_params(params):
    """Those of a flat dict that texts meet."""
    return {n: leaf for n, leaf in params.items() if n.split("/")[0] in TEXT_PARTS}


def count(params) -> int:
    """Number of weights in a flat dict."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def wise_ft(start, end, alpha):
    """(1 - alpha) start + alpha end for what SAM has, else end (SAM-CLIP appendix D)."""
    return {
        name: (1 - alpha) * start[name] + alpha * leaf if name.startswith(SAM_PARTS) else leaf
        for name, leaf in end.items()
    }
