"""The recipe, resolved: what each stage of the paper is, to the last value.

A change that is wanted is written down by `python -m tests.test_recipe`; its diff is the change.
"""

import importlib
import json
import pathlib
import statistics

import pytest

from samclip_jax import families, optim, streams, train
from samclip_jax.models.config import SamClipConfig

STAGES = ("stage1", "stage2", "stage3", "distill_only")
GOLDENS = pathlib.Path(__file__).parent / "goldens" / "recipe"


def resolved(stage):
    """Its config, the images of each batch, and the learning-rate factor of each part."""
    values = importlib.import_module(f"configs.{stage}").get_config()
    config = train.read_config(values)
    _, params = families.split_images(SamClipConfig())
    trainable, frozen, factors = optim.partition(params, config.lr_factors)
    return json.loads(values.to_json()) | {
        "images": streams.batch_sizes(streams.read_streams(config)),
        "factors": {name.split("/")[0]: factor for name, factor in factors.items()},
        "frozen": sorted({name.split("/")[0] for name in frozen}),
    }


def text(stage):
    return json.dumps(resolved(stage), indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_what_was_agreed(stage):
    assert text(stage) == (GOLDENS / f"{stage}.json").read_text()


def test_the_figures_of_the_paper():
    """Section 3, 4.1 and appendix A, wherever they stand in the configs."""
    stages = {stage: resolved(stage) for stage in STAGES}
    both = stages["stage2"]
    assert {name: term["weight"] for name, term in both["terms"].items()} == {"clip": 1, "sam": 10}
    assert both["factors"] == {"heads": 1, "encoder": 0.1, "mask_decoder": 0.1}
    assert both["frozen"] == ["prompt_encoder"]
    assert both["steps"] == pytest.approx(0.8 * both["optimizer"]["schedule_steps"], abs=1)
    rates = {stage: each["optimizer"]["learning_rate"] for stage, each in stages.items()}
    assert rates == {"stage1": 8e-4, "stage2": 4e-5, "stage3": 8e-4, "distill_only": 4e-5}
    for stage in ("stage1", "stage3"):
        assert stages[stage]["factors"] == {"heads": 1} and "sam" not in stages[stage]["terms"]
    assert stages["distill_only"]["factors"] == {"heads": 1, "encoder": 1}
    assert list(stages["stage3"]["images"]["clip"]) == [224, 448, 1024]


def test_the_dense_stage_is_stage_2_and_one_term():
    dense = importlib.import_module("configs.stage2_dense").get_config()
    train.read_config(dense)
    term = dense.terms.clip_patches
    del dense.terms["clip_patches"]
    assert (term.target, term.stream, term.teacher, term.head) == ("patches", *["clip"] * 3)
    assert dense == importlib.import_module("configs.stage2").get_config()


def test_the_sets_are_seen_as_often_as_in_the_paper():
    """Steps times images a step, over the images of D_CLIP and D_SAM that are trained on."""
    seen = {}
    for stage in STAGES:
        config = resolved(stage)
        clip, sam = config["images"]["clip"].values(), config["images"].get("sam", {1024: 0})
        seen[stage] = (
            config["steps"] * statistics.mean(clip) / 40.194e6,
            config["steps"] * sam[1024] / 620_730,  # 99 % of 5.7 % of SA-1B's 11 M
        )
    assert seen["stage1"] == seen["distill_only"] == pytest.approx((20, 0), abs=1e-3)
    assert seen["stage2"] == pytest.approx((16, 17.27), abs=0.01)
    assert seen["stage3"] == pytest.approx((3, 0), abs=1e-3)
    mean = statistics.mean(resolved("stage2")["images"]["clip"].values())
    assert mean == pytest.approx(2048, 0.07)


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    for stage in STAGES:
        (GOLDENS / f"{stage}.json").write_text(text(stage))
