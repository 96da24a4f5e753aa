"""evals/run.py: which evaluations a run makes. test_interrupt.py has one that was interrupted."""

import pytest

from samclip_jax import recipe
from samclip_jax.errors import UserError
from samclip_jax.evals.run import named, require_usable


def test_the_shipped_evaluations_wait_for_their_data(tmp_path):
    evaluations = recipe.base().evals.to_dict()
    assert len(evaluations) > 1 and named(evaluations) == {}
    require_usable(evaluations)
    evaluations["coco"]["data"]["path"] = str(tmp_path)
    assert named(evaluations).keys() == {"coco"}
    with pytest.raises(UserError, match="has no manifest.json"):
        require_usable(evaluations)


@pytest.mark.parametrize(
    "data, sentence",
    [
        (None, "--config.evals.eye.data must be a dictionary"),
        ("folder", "--config.evals.eye.data must be a dictionary"),
        ({}, "--config.evals.eye.data lacks the key 'name'"),
        ({"name": "foldr"}, "did you mean 'folder'"),
    ],
)
def test_a_mistake_is_no_evaluation_without_data(data, sentence):
    with pytest.raises(UserError, match=sentence):
        require_usable({"eye": {"task": "box_masks", "data": data}})
