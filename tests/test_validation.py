"""validation.py: a value is what its type hint says, or one sentence says what it should be."""

import dataclasses
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import pytest

from samclip_jax.errors import UserError
from samclip_jax.validation import PositiveInt, Range, Share, Validated, check

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "hint, values",
    [
        (PositiveInt, [1, np.int64(2), np.array(3), jnp.int32(4)]),
        (Share, [0, 1, 0.5, np.float32(0.5), jnp.bfloat16(0.5)]),
        (bool, [True, False]),
        (int | None, [None, -3]),
        (float | Literal["best"], ["best", 1e300]),
        (tuple[int, ...], [(1,), (1, 2)]),
        (tuple[float, float], [(1, 2.5)]),
        (dict[str, str], [{}, {"a": "b"}]),
    ],
)
def test_what_fits_is_taken(hint, values):
    for value in values:
        check("x", value, hint)


@pytest.mark.parametrize(
    "hint, values, said",
    [
        (PositiveInt, [0, 2.0, True, "1", None, [1]], "a whole number of at least 1"),
        (Share, [-0.1, 1.1, NAN, "a"], "a number of at least 0 and at most 1"),
        (float, [INF, -INF, NAN, True, np.array([1.0])], "a number"),
        (Annotated[float, Range(gt=0, lt=1)], [0, 1], "a number above 0 and below 1"),
        (bool, [0, 1, None], "True or False"),
        (float | Literal["best"] | None, ["worst", NAN], "a number, best or None"),
        (tuple[PositiveInt, ...], [(), (0,), [1], 3], "a tuple of one or more, each a whole"),
        (tuple[float, float], [(1,), (1, 2, 3), (1, "a")], "a tuple of 2, each a number"),
        (dict[str, str], [{"a": 1}, []], "a dictionary"),
    ],
)
def test_what_does_not_fit_is_one_sentence(hint, values, said):
    for value in values:
        with pytest.raises(UserError) as error:
            check("--config.x", value, hint)
        message = str(error.value)
        assert message.startswith(f"--config.x must be {said}") and "\n" not in message
        assert message.endswith(f"got {value!r}")


def test_fields_are_checked_when_an_object_is_made():
    @dataclasses.dataclass(frozen=True)
    class Inner(Validated):
        count: PositiveInt = 1

    @dataclasses.dataclass(frozen=True)
    class Outer(Validated):
        inner: Inner

    assert Outer(Inner(2)).inner.count == 2
    with pytest.raises(UserError, match="count must be a whole number of at least 1, got 0"):
        Inner(0)
    with pytest.raises(UserError, match="inner must be Inner, got 3"):
        Outer(3)
