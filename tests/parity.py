"""What parity means: the originals' weights come through the converter's own rules, and outputs
differ by at most a tolerance, max |difference| / max |reference|."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from samclip_jax import families, models
from samclip_jax.convert import clip, sam
from samclip_jax.families import from_dict

MODULE = 1e-5  # float32, one module
END_TO_END = 1e-4  # float32
BFLOAT16 = 2e-2


@functools.cache
def golden(name):
    """One file of make_goldens.py."""
    return Golden(name)


class Golden:
    """An original's weights, and cases: what went in and what came out."""

    def __init__(self, name):
        with np.load(pathlib.Path(__file__).parent / "goldens" / f"{name}.npz") as file:
            arrays = dict(file)
        config = json.loads(str(arrays.pop("config")))
        self.config = config and from_dict(config)
        self.weights = {
            key.removeprefix("weights/"): arrays.pop(key).astype(np.float32)
            for key in list(arrays)
            if key.startswith("weights/")
        }
        self.arrays = arrays

    @functools.cached_property
    def params(self):
        return converted(self.config, self.weights)

    def case(self, name):
        """{array's name: array} of one case."""
        start = f"{name}/"
        return {k.removeprefix(start): v for k, v in self.arrays.items() if k.startswith(start)}

    def call(self, method, *args):
        """method(our model with the original's weights, *args)"""
        return call(self.config, self.params, method, *args)


def converted(config, weights):
    """Our flat params from an original's weights, in whichever layout they are."""
    params = {
        name: np.full(leaf.shape, np.nan, np.float32)
        for name, leaf in models.split(families.abstract(config))[1].items()
    }
    layout = next(layout for layout in sam.LAYOUTS + clip.LAYOUTS if layout.signature in weights)
    for key, parts in layout.views(params).items():
        rest = weights[key]
        for part in parts[:-1]:
            part[...], rest = rest[: len(part)], rest[len(part) :]
        parts[-1][...] = rest
    assert not any(np.isnan(value).any() for value in params.values())
    return {name: jnp.asarray(value) for name, value in params.items()}


def call(config, params, method, *args):
    """method(model, *args) of the model with these params, compiled as one function."""
    graph = models.split(families.abstract(config))[0]
    whole = jax.jit(lambda params, *args: method(models.merge(graph, params), *args))
    quickly = {"xla_backend_optimization_level": 0}  # small models compile longer than they run
    return whole.lower(params, *args).compile(quickly)(params, *args)


def error(actual, expected):
    """max |actual - expected| / max |expected|."""
    actual, expected = (np.asarray(x, np.float32) for x in (actual, expected))
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    return np.abs(actual - expected).max() / np.abs(expected).max()


def assert_close(actual, expected, tolerance):
    found = error(actual, expected)
    assert found <= tolerance, f"error {found:.1e}, allowed {tolerance:.0e}"


def assert_same_ranking(actual, expected):
    """Along the last axis, wherever bfloat16 can tell two expected values apart."""
    actual, expected = (x[..., None] - x[..., None, :] for x in map(np.asarray, (actual, expected)))
    told_apart = np.abs(expected) > 2 * BFLOAT16 * np.abs(expected).max()
    assert told_apart.any()
    np.testing.assert_array_equal(np.sign(actual)[told_apart], np.sign(expected)[told_apart])
