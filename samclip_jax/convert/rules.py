"""What a layout is, in which released weights come: a table of rules.

A rule names one of our parameters, the tensor that holds it in the layout, and how our array looks
from there. That look is a numpy view, so the same table serves both ways: to import is to write
into the view, to export is to read it, and its shape is the one that the tensor must have.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rule:
    """`{}` stands for a layer's number, the same in both names."""

    name: str  # ours, one layer at a time: "encoder/blocks/{}/qkv/kernel"
    key: str  # theirs: "image_encoder.blocks.{}.attn.qkv.weight"
    view: Callable[[np.ndarray], np.ndarray]  # our array as theirs, sharing its memory

    @functools.cached_property
    def matches_name(self):
        return _numbered(self.name)

    @functools.cached_property
    def matches_key(self):
        return _numbered(self.key)


def _numbered(template):
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)")).fullmatch


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way in which a kind of model is published."""

    title: str
    signature: str  # a key that tells this layout from those after it
    rules: tuple[Rule, ...]
    config_file: str | None = None  # published beside the weights
    activation: str | None = None  # of a CLIP without it
    ignored: tuple[str, ...] = ()  # keys that hold no weights
    aliases: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # start of a key: what it means

    def views(self, params):
        """How our parameters look in this layout: {key: [array, ...]}, to be joined along axis 0.

        The arrays share the memory of `params`. What has no rule here is left out.
        """
        layers = one_by_one(params)
        views = {}
        for rule in self.rules:
            for name, array in layers.items():
                if match := rule.matches_name(name):
                    key = rule.key.format(*match.groups())
                    views.setdefault(key, []).append(rule.view(array))
        return views

    def names(self, keys):
        """{our name, one layer at a time: key} of those keys that have a rule."""
        return {
            rule.name.format(*match.groups()): key
            for key in keys
            for rule in self.rules
            if (match := rule.matches_key(key))
        }

    def key(self, name):
        """The key of our name, one layer at a time."""
        return next(
            rule.key.format(*match.groups())
            for rule in self.rules
            if (match := rule.matches_name(name))
        )


STACKS = re.compile(
    "(vision/blocks|text/blocks|mask_decoder/hypernetworks|prompt_encoder/point_embeddings)(.*)"
)


def one_by_one(params):
    """Our flat parameters with stacked layers apart, as views: {"encoder/blocks/3/qkv/bias": ...}.

    The encoder's layers are counted through its groups of windowed blocks and one global block.
    """
    layers = {}
    for name, array in params.items():
        if match := re.fullmatch("encoder/(windowed|global)_blocks/(.+)", name):
            every = params[f"encoder/windowed_blocks/{match[2]}"].shape[1] + 1
            windowed = match[1] == "windowed"
            first = 0 if windowed else every - 1
            blocks = array if windowed else array[:, None]  # [groups, blocks, ...]
            for group, i in np.ndindex(blocks.shape[:2]):
                layers[f"encoder/blocks/{every * group + first + i}/{match[2]}"] = blocks[group, i]
        elif match := STACKS.fullmatch(name):
            for i in range(array.shape[0]):
                layers[f"{match[1]}/{i}{match[2]}"] = array[i]
        else:
            layers[name] = array
    return layers


# Views: how an array of ours looks in PyTorch's order of axes.


def same(array):
    return array


def transposed(kernel):  # [in, out] -> [out, in]
    return kernel.T


def row(array):  # [...] -> [1, ...]
    return array[None]


def convolution(kernel):  # [h, w, in, out] -> [out, in, h, w]
    return kernel.transpose(3, 2, 0, 1)


def patches(kernel):  # [p * p * 3, out] -> [out, 3, p, p]
    size = math.isqrt(kernel.shape[0] // 3)
    return convolution(kernel.reshape(size, size, 3, -1))


# Layers: the ending of each of their tensors -> (the ending of ours, its view).


def weight_and_bias(view):
    return {".weight": ("/kernel", view), ".bias": ("/bias", same)}


LINEAR = weight_and_bias(transposed)
NORM = {".weight": ("/scale", same), ".bias": ("/bias", same)}


def rules(*table):
    """The rules of a table of (our name, a view or a layer, their key)."""
    return tuple(
        Rule(name + ours, key + theirs, view)
        for name, form, key in table
        for theirs, (ours, view) in ({"": ("", form)} if callable(form) else form).items()
    )
