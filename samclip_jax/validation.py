"""What a user's values must be, said by type hints and checked where the values come in.

A hint is bool, int, float, str, tuple, dict, None or a class; Literal, a union, a tuple or a dict
of hints; or Annotated[int or float, Range(..)]. Numbers are finite, and True is no number. A
`tuple[hint, ...]` has one value or more.
"""

import dataclasses
import math
import operator
import reprlib
import types
import typing
from typing import Annotated

import numpy as np

from samclip_jax.errors import UserError

BOUNDS = {
    "ge": (operator.ge, "of at least"),
    "gt": (operator.gt, "above"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "below"),
}
NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a tuple",
    dict: "a dictionary",
    types.NoneType: "None",
}


@dataclasses.dataclass(frozen=True)
class Range:
    """The bounds of a number: at least `ge`, above `gt`, at most `le`, below `lt`; None: none."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, number):
        return all(BOUNDS[name][0](number, bound) for name, bound in self._given())

    def __str__(self):
        return " and ".join(f"{BOUNDS[name][1]} {bound}" for name, bound in self._given())

    def _given(self):
        return [(name, bound) for name, bound in vars(self).items() if bound is not None]


PositiveInt = Annotated[int, Range(ge=1)]
NonNegativeInt = Annotated[int, Range(ge=0)]
PositiveFloat = Annotated[float, Range(gt=0)]
NonNegativeFloat = Annotated[float, Range(ge=0)]
Share = Annotated[float, Range(ge=0, le=1)]
Area = Annotated[float, Range(gt=0, le=1)]  # as a share of an image's
Seed = Annotated[int, Range(ge=0, lt=2**32)]


class Validated:
    """A base of dataclasses. UserError unless every field is what its type hint says."""

    def __post_init__(self):
        hints = typing.get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):
            check(field.name, getattr(self, field.name), hints[field.name])


def as_tuple(value):
    """A value as a hint has it: of a list, such as JSON and YAML give, a tuple."""
    return tuple(map(as_tuple, value)) if isinstance(value, list | tuple) else value


def check(name, value, hint):
    """UserError, "{name} must be .., got ..", unless the value is what the type hint says."""
    if not _fits(value, hint):
        raise UserError(f"{name} must be {_said(hint)}, got {reprlib.repr(value)}")


def _fits(value, hint):
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fits(value, parts[0]) and value in parts[1]
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, parts[1]) for each in value.values())
    if origin is tuple:
        if not isinstance(value, tuple) or not value:
            return False
        parts = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if hint in (int, float):
        if hasattr(value, "item") and np.ndim(value) == 0:  # of numpy, jax or torch
            value = value.item()
        kinds = (int, float) if hint is float else int
        number = isinstance(value, kinds) and not isinstance(value, bool)
        return number and -math.inf < value < math.inf
    return isinstance(value, hint)


def _said(hint):
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{_said(parts[0])} {parts[1]}"
    if origin in (typing.Union, types.UnionType):
        return _either(map(_said, parts))
    if origin is typing.Literal:
        return _either(map(str, parts))
    if origin is tuple:
        count = "one or more" if parts[-1] is Ellipsis else len(parts)
        return f"a tuple of {count}, each {_said(parts[0])}"
    if origin is dict:
        return f"a dictionary, each value {_said(parts[1])}"
    return NAMES.get(hint, hint.__name__)


def _either(names):
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
