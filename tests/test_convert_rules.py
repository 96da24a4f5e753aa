"""rules.py: every parameter has one place in a layout, and every key one rule."""

import numpy as np
import pytest
from releases import CLIP, SAM, random_params

from samclip_jax.convert import clip, rules, sam

LAYOUTS = sam.LAYOUTS + clip.LAYOUTS


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.title)
def test_each_parameter_has_one_place_in_a_layout_and_each_key_one_rule(layout):
    """The views of a layout are all of our memory, once."""
    config = SAM if layout in sam.LAYOUTS else CLIP
    params = {name: np.zeros_like(array) for name, array in random_params(config).items()}
    views = layout.views(params)
    for parts in views.values():
        for part in parts:
            part += 1
    for name, array in params.items():
        assert (array == 1).all(), name
    for key, parts in views.items():
        matching = [rule for rule in layout.rules if rule.matches_key(key)]
        assert len(matching) == len(parts), key


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.title)
def test_every_key_leads_back_to_our_names(layout):
    config = SAM if layout in sam.LAYOUTS else CLIP
    names = layout.names(layout.views(random_params(config)))
    unstacked = rules.one_by_one(random_params(config)).keys()
    assert names.keys() == unstacked


def test_layers_are_counted_through_windowed_and_global_blocks():
    params = random_params(SAM)
    layers = rules.one_by_one(params)
    for i, (stack, index) in enumerate(
        [("windowed", (0, 0)), ("windowed", (0, 1)), ("global", (0,)),
         ("windowed", (1, 0)), ("windowed", (1, 1)), ("global", (1,))]
    ):  # fmt: skip
        expected = params[f"encoder/{stack}_blocks/proj/bias"][index]
        np.testing.assert_array_equal(layers[f"encoder/blocks/{i}/proj/bias"], expected)
