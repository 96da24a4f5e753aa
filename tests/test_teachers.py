"""teachers.py: what lies at rest in fewer bits says the same."""

import jax
import jax.numpy as jnp
import numpy as np
from test_train import CLIP

from samclip_jax import families, models
from samclip_jax.teachers import at_rest


def test_a_teacher_at_rest_in_half_precision_says_the_same():
    graph, params = models.split(families.init(CLIP))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    half_precision = at_rest(params, jnp.bfloat16)
    assert half_precision["vision/blocks/qkv/kernel"].dtype == jnp.bfloat16
    whole, half = (
        jax.jit(lambda params: models.merge(graph, params).encode_image(images, jnp.bfloat16))(each)
        for each in (params, half_precision)
    )
    np.testing.assert_array_equal(whole, half)
