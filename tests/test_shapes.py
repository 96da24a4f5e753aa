"""The procedural world: every record keeps the sources' protocol and the world's rules."""

import subprocess
import sys

import numpy as np
import pytest

from samclip_jax.data import shapes
from samclip_jax.errors import UserError

SOURCES = (shapes.ShapeScenes, shapes.ShapeObjects)


@pytest.mark.parametrize("kind", SOURCES)
def test_record_is_what_the_protocol_says(kind):
    """Types, ranges and agreement of mask, box, point, area and semantic map."""
    source = kind("tuning", 30, image_size=64)
    assert len(source) == 30
    for record in (source[i] for i in range(30)):
        image, semantic = record["image"], record["semantic"]
        assert image.dtype == np.uint8 and image.shape == (64, 64, 3)
        assert semantic.dtype == np.int32 and semantic.shape == (64, 64)
        assert record["label"] == record["annotations"][0]["category"]
        covered = np.zeros((64, 64), int)
        for part in record["annotations"]:
            mask, (x0, y0, x1, y1) = part["mask"], part["box"]
            assert mask.dtype == bool and mask.sum() == part["area"] > 0
            assert (semantic[mask] == part["category"]).all()
            assert mask[int(y0) : int(y1), int(x0) : int(x1)].sum() == part["area"]
            assert mask[:, int(x0)].any() and mask[:, int(x1) - 1].any()
            assert mask[int(y0)].any() and mask[int(y1) - 1].any()
            x, y = part["point"]
            assert mask[int(y), int(x)]
            covered += mask
        assert (covered == 1).all()


@pytest.mark.parametrize("kind", SOURCES)
def test_image_depends_on_split_seed_and_index_alone(kind):
    """The same numbers give the same picture; any other split, seed or index another one."""
    first = kind("train", 9, 64)[3]
    np.testing.assert_array_equal(first["image"], kind("train", 99, 64)[3]["image"])
    others = kind("final", 9, 64)[3], kind("train", 9, 64, seed=1)[3], kind("train", 9, 64)[4]
    images = [first["image"], *(other["image"] for other in others)]
    assert len({image.tobytes() for image in images}) == 4
    assert len({record["key"] for record in (first, *others)}) == 4


def test_scene_shows_every_class_once():
    """One object a class, all of it named in the caption, none of it hidden for the most part."""
    source = shapes.ShapeScenes("train", 50)
    areas = []
    for record in (source[i] for i in range(50)):
        categories = [part["category"] for part in record["annotations"]]
        assert len(set(categories)) == len(categories)
        assert all(shapes.CLASSES[category] in record["caption"] for category in categories)
        areas += [p["area"] for p in record["annotations"] if p["category"] < 36]
    assert 2 * 50 <= len(areas) <= 4 * 50
    assert min(areas) > 0.01 * 96**2


def test_a_class_may_repeat_where_asked():
    source = shapes.ShapeScenes("train", 60, 24, objects=(4, 4), distinct=False)
    objects = [[p["category"] for p in source[i]["annotations"]] for i in range(60)]
    assert any(len(set(categories)) < len(categories) for categories in objects)


def test_main_object_is_the_largest_and_first_named():
    source = shapes.ShapeObjects("train", 50)
    for record in (source[i] for i in range(50)):
        main, *others = (p for p in record["annotations"] if p["category"] < 36)
        assert all(main["area"] > other["area"] for other in others)
        assert record["caption"].startswith(f"a {shapes.CLASSES[main['category']]}")


def test_classes_are_equally_likely_and_grounds_alone_as_asked():
    """Colour alone or shape alone tells one class in six."""
    source = shapes.ShapeObjects("train", 1500, 24, empty=0.2)
    labels = np.array([source[i]["label"] for i in range(1500)])
    assert np.mean(labels >= 36) == pytest.approx(0.2, abs=0.04)
    counts = np.bincount(labels[labels < 36], minlength=36)
    assert counts.min() > 12 and counts.max() < 64


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_shapes_differ_however_they_are_turned(name):
    """At the size a CLIP sees, no turn within the world's 0.3 rad makes one shape another."""
    axis = np.linspace(-1.3, 1.3, 24)
    u, v = axis[None], axis[:, None]

    def mask(shape, turn):
        cos, sin = np.cos(turn), np.sin(turn)
        return shapes.DISTANCES[shape](u * cos + v * sin, v * cos - u * sin) < 0

    turned = [mask(name, turn) for turn in np.linspace(-0.3, 0.3, 7)]
    for other in set(shapes.SHAPES) - {name}:
        for turn in np.linspace(-0.3, 0.3, 7):
            rival = mask(other, turn)
            assert max((m & rival).sum() / (m | rival).sum() for m in turned) < 0.85


def test_every_caption_and_text_is_in_the_vocabulary():
    words = set(shapes.vocabulary())
    source = shapes.ShapeObjects("train", 50, 24, empty=0.2)
    texts = [source[i]["caption"] for i in range(50)]
    texts += [t.format(name) for t in shapes.TEMPLATES for name in shapes.CLASSES]
    assert set(" ".join(texts).replace(".", " . ").split()) <= words


def test_a_source_ends_and_an_unknown_split_is_named():
    assert len(list(shapes.ShapeScenes("tuning", 3, 24))) == 3
    with pytest.raises(UserError, match="teachers, train, tuning, final, got 'test'"):
        shapes.ShapeScenes("test", 3)


def test_loading_workers_stay_free_of_jax():
    code = "import sys, samclip_jax.data.shapes; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
