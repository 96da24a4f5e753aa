"""student.py: which model is trained, and what of it is frozen."""

import dataclasses
import types

import pytest
from test_families import STUDENT
from test_train import CLIP, SAM

from samclip_jax import families, models
from samclip_jax.config import HeadConfig, TermConfig
from samclip_jax.errors import UserError
from samclip_jax.models.samclip import start_params
from samclip_jax.student import partition, require_heads, student_config


def term(teacher="clip", head="clip", weight=1.0):
    return TermConfig("clip", teacher, "summary", head, "cosine", weight)


HEAD = HeadConfig(1, 16)  # of STUDENT


def run_config(clip=HEAD, **terms):
    return types.SimpleNamespace(terms=terms, heads={"clip": clip, "other": HeadConfig(2, 16)})


def test_a_new_head_is_as_wide_as_its_teacher_and_begins_as_the_last_block():
    config = run_config(a=term(), b=term(teacher="wide", head="other"))
    vision = dataclasses.replace(CLIP.vision, embed_dim=24)
    teachers = {"clip": CLIP, "wide": dataclasses.replace(CLIP, vision=vision)}
    encoder = dataclasses.replace(SAM.encoder, depth=4, groups=2)
    two_groups = dataclasses.replace(SAM, encoder=encoder)
    student = student_config(config, two_groups, teachers)
    assert {name: head.embed_dim for name, head in student.heads.items()} == {
        "clip": 8,
        "other": 24,
    }
    sam, clip = (models.split(families.init(each))[1] for each in (two_groups, CLIP))
    params = start_params(student, sam, clip)
    first, last = sam["encoder/global_blocks/qkv/kernel"]
    assert (first != last).any()
    for name in student.heads:
        assert (params[f"heads/{name}/blocks/qkv/kernel"] == last).all()
    assert params.keys() == models.split(families.abstract(student))[1].keys()


def test_a_merged_model_keeps_its_heads_and_gets_those_it_lacks():
    config = run_config(a=term(), b=term(head="other"))
    student = student_config(config, STUDENT, {"clip": CLIP})
    assert student.heads["clip"] == STUDENT.heads["clip"] and student.heads["other"].depth == 2
    start = models.split(families.init(STUDENT, seed=3))[1]
    params = start_params(student, start)
    assert all((params[name] == start[name]).all() for name in start)
    assert params.keys() == models.split(families.abstract(student))[1].keys()


def test_a_head_of_another_width_than_its_teachers_is_refused():
    vision = dataclasses.replace(CLIP.vision, embed_dim=24)
    wide = dataclasses.replace(CLIP, vision=vision)
    with pytest.raises(
        UserError, match="terms.b: head 'clip' has 8 channels, teacher 'wide' gives"
    ):
        config = run_config(a=term(), b=term(teacher="wide"))
        student_config(config, SAM, {"clip": CLIP, "wide": wide})


@pytest.mark.parametrize(
    "key, value, there", [("depth", 2, 1), ("mlp_hidden", 32, 16), ("pooling", "mean", "max")]
)
def test_a_head_is_not_silently_another_than_the_config_has(key, value, there):
    """What config.heads says of a head that the start has already is compared."""
    config = run_config(dataclasses.replace(HEAD, **{key: value}), a=term())
    with pytest.raises(UserError, match=f"heads.clip.{key} is {value!r}, .* has {there!r}: set"):
        student_config(config, STUDENT, {"clip": CLIP})


@pytest.mark.parametrize(
    "part, change, sentence",
    [
        ("encoder", {"patch": 24}, "its patches are not"),
        ("mask_decoder", {"multimask_outputs": 4}, "it has another number of masks"),
    ],
)
def test_a_sam_of_other_patches_or_masks_is_no_teacher_of_them(part, change, sentence):
    """A merged one may still give its summary."""
    other = dataclasses.replace(SAM, **{part: dataclasses.replace(getattr(SAM, part), **change)})
    config = run_config(
        a=term(), b=TermConfig("sam", "sam", "masks", "mask_decoder", "masks", 10.0)
    )
    with pytest.raises(UserError, match=f"--config.teachers.sam: {sentence}"):
        student_config(config, SAM, {"clip": CLIP, "sam": other})
    merged = dataclasses.replace(STUDENT, sam=other)
    assert student_config(run_config(a=term()), STUDENT, {"clip": merged}) == STUDENT


@pytest.mark.parametrize("weight", [None, 0.0])
def test_a_head_that_no_term_teaches_is_frozen(weight):
    """Or one of no weight: its gradient is zero, and weight decay would wear it away."""
    terms = {"a": term()} | ({"b": term(head="other", weight=weight)} if weight is not None else {})
    config = types.SimpleNamespace(terms=terms, lr_factors=(("heads", 1.0), (".*", None)))
    params = dict.fromkeys(["encoder/a", "heads/clip/a", "heads/other/a"], 0)
    trainable, frozen, factors = partition(config, params)
    assert trainable.keys() == factors.keys() == {"heads/clip/a"}
    assert frozen.keys() == {"encoder/a", "heads/other/a"}


def test_a_run_does_not_go_on_with_other_heads():
    teachers = {"clip": CLIP}
    require_heads(run_config(a=term()), teachers, STUDENT, "RUN")
    with pytest.raises(UserError, match="begun with the heads clip.*--config.init=RUN"):
        require_heads(run_config(a=term(), b=term(head="other")), teachers, STUDENT, "RUN")


def test_a_plain_sam_without_a_clip_is_refused():
    with pytest.raises(UserError, match="plain SAM, without texts: add a term with head='clip'"):
        student_config(run_config(b=term(head="other")), SAM, {"clip": CLIP})
