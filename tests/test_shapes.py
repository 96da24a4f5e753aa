"""The procedural world: every record keeps the sources' protocol and the world's rules."""

import re
import subprocess
import sys

import numpy as np
import pytest

from samclip_jax.data import shapes
from samclip_jax.errors import UserError

SOURCES = (shapes.ShapeScenes, shapes.ShapeObjects)
OBJECTS = len(shapes.OBJECT_CLASSES)


@pytest.mark.parametrize("kind", SOURCES)
def test_record_is_what_the_protocol_says(kind):
    """Types, ranges and agreement of mask, box, point, area and semantic map."""
    source = kind("tuning", 30, image_size=64)
    assert len(source) == 30
    for record in (source[i] for i in range(30)):
        image, semantic = record["image"], record["semantic"]
        assert image.dtype == np.uint8 and image.shape == (64, 64, 3)
        assert semantic.dtype == np.int32 and semantic.shape == (64, 64)
        assert shapes.CLASSES[record["label"]] == record["annotations"][0]["category"]
        covered = np.zeros((64, 64), int)
        for part in record["annotations"]:
            mask, (x0, y0, x1, y1) = part["mask"], part["box"]
            assert mask.dtype == bool and mask.sum() == part["area"] > 0
            assert (semantic[mask] == shapes.CLASSES.index(part["category"])).all()
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


@pytest.mark.parametrize("kind", SOURCES)
def test_a_kept_image_is_drawn_once(kind):
    """The same image either way, whatever a reader writes into its record."""
    drawn, kept = kind("train", 9, 64), kind("train", 9, 64, keep=True)
    assert repr(drawn) == repr(kept)
    first = kept[3]
    np.testing.assert_array_equal(first["image"], drawn[3]["image"])
    first["image"] = None
    assert kept[3]["image"] is kept[3]["image"] is not None
    assert repr(drawn) == repr(kept)


def test_scene_shows_every_class_once():
    """One object a class, all of it named in the caption, none of it hidden for the most part."""
    source = shapes.ShapeScenes("train", 50)
    areas = []
    for record in (source[i] for i in range(50)):
        categories = [part["category"] for part in record["annotations"]]
        assert len(set(categories)) == len(categories)
        assert all(category in record["caption"] for category in categories)
        areas += [
            p["area"] for p in record["annotations"] if p["category"] in shapes.OBJECT_CLASSES
        ]
    assert 2 * 50 <= len(areas) <= 4 * 50
    assert min(areas) > 0.01 * 192**2


def test_main_object_is_the_largest_and_first_named():
    source = shapes.ShapeObjects("train", 50)
    for record in (source[i] for i in range(50)):
        main, *others = (p for p in record["annotations"] if p["category"] in shapes.OBJECT_CLASSES)
        assert all(main["area"] > other["area"] for other in others)
        assert re.match(f"an? {main['category']}", record["caption"])


def test_classes_are_equally_likely_and_grounds_alone_as_asked():
    source = shapes.ShapeObjects("train", 1500, 24, empty=0.2)
    labels = np.array([source[i]["label"] for i in range(1500)])
    assert np.mean(labels >= OBJECTS) == pytest.approx(0.2, abs=0.04)
    counts = np.bincount(labels[labels < OBJECTS], minlength=OBJECTS)
    assert counts.min() > 24 and counts.max() < 84


def test_the_other_objects_are_as_large_as_asked():
    """In discs' radii: of 0.9 times the main one's, and of a tenth."""
    areas = []
    for others in ((0.1, 0.1), (0.9, 0.9)):
        source = shapes.ShapeObjects("train", 60, 96, others=others)
        parts = [p for i in range(60) for p in source[i]["annotations"][1:]]
        areas.append(np.mean([p["area"] for p in parts if p["category"] in shapes.OBJECT_CLASSES]))
    assert areas[1] > 20 * areas[0]


def test_a_scene_without_objects_shows_and_names_its_grounds():
    source = shapes.ShapeScenes("train", 200, 24, objects=(0, 1), radius=(0.3, 0.4))
    records = [source[i] for i in range(200)]
    bare = [r for r in records if (r["semantic"] >= OBJECTS).all()]
    assert 60 < len(bare) < 140 and all(" on " not in r["caption"] for r in bare)
    assert all(r["annotations"][0]["category"] in shapes.GROUNDS for r in bare)


def test_a_caption_has_articles():
    source = shapes.ShapeScenes("train", 400, 24, objects=(1, 1))
    captions = {source[i]["caption"].partition(" on ")[0] for i in range(400)}
    assert {"a zebra", "an orchid", "a candy cane"} <= captions and len(captions) == OBJECTS


def test_a_piece_of_a_coat_tells_its_class():
    """At any turn, phase and period a piece as wide as two patches shows both colours of a pattern,
    and no two coats have the same two colours."""
    axis = np.linspace(0, 1 / 8, 24, dtype=np.float32)
    shares = {"plain": (0, 0), "stripes": (0.3, 0.7), "checks": (0.3, 0.7), "dots": (0.1, 0.45)}
    shares["net"] = (0.2, 0.5)
    for seed in range(20):
        for pattern, (low, high) in shares.items():
            rng = np.random.default_rng(seed)
            assert low <= shapes.coat(rng, pattern, axis[None], axis[:, None]).mean() <= high
    pairs = [np.array(colours) for _, *colours in shapes.COATS.values()]
    for i, pair in enumerate(pairs):
        for other in pairs[:i]:
            apart = [np.abs(pair - turned).max(-1).max() for turned in (other, other[::-1])]
            assert min(apart) > 40


def test_an_outline_says_nothing_of_the_class():
    """Discs fill their boxes by 79 %, turned stars by much less; a class has all of them."""
    source = shapes.ShapeObjects("train", 300, 48)
    filled = {}
    for record in (source[i] for i in range(300)):
        x0, y0, x1, y1 = record["annotations"][0]["box"]
        share = record["annotations"][0]["area"] / ((x1 - x0) * (y1 - y0))
        filled.setdefault(record["label"], []).append(share)
    spread = [np.ptp(shares) for shares in filled.values()]
    assert len(filled) == OBJECTS and np.mean(spread) > 0.3


def test_every_caption_and_text_is_in_the_vocabulary():
    words = set(shapes.vocabulary())
    source = shapes.ShapeScenes("train", 50, 24, objects=(0, 3))
    texts = [source[i]["caption"] for i in range(50)]
    texts += [t.format(name) for t in shapes.TEMPLATES for name in shapes.CLASSES]
    assert set(" ".join(texts).replace(".", " . ").split()) <= words


def test_a_source_ends_and_an_unknown_split_is_named():
    assert len(list(shapes.ShapeScenes("tuning", 3, 24))) == 3
    with pytest.raises(UserError, match="teachers, train, tuning, final, got 'test'"):
        shapes.ShapeScenes("test", 3)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (shapes.ShapeScenes, dict(size=0), "size must be a whole number of at least 1, got 0"),
        (shapes.ShapeScenes, dict(seed=-1), "seed must be"),
        (shapes.ShapeScenes, dict(image_size=0), "image_size must be"),
        (shapes.ShapeScenes, dict(keep="no"), "keep must be True or False"),
        (shapes.ShapeScenes, dict(objects=3), "objects must be"),
        (shapes.ShapeScenes, dict(objects=(1.5, 2)), "objects must be"),
        (shapes.ShapeScenes, dict(objects=(3, 1)), "objects must be the least and the greatest"),
        (
            shapes.ShapeScenes,
            dict(objects=(0, 23)),
            "objects must be a tuple of 2, each .* at most 20",
        ),
        (shapes.ShapeScenes, dict(radius=0.3), "radius must be"),
        (shapes.ShapeScenes, dict(radius=(0.0, 0.2)), "radius must be"),
        (shapes.ShapeScenes, dict(radius=(0.2, 0.6)), "radius must be"),
        (shapes.ShapeObjects, dict(others=(2.0, 3.0)), "others must be"),
        (shapes.ShapeObjects, dict(empty=2), "empty must be"),
    ],
)
def test_an_option_that_cannot_be_is_named(kind, options, message):
    with pytest.raises(UserError, match=message):
        kind(**{"split": "train", "size": 3, **options})


def test_a_list_says_what_a_tuple_says():
    """As in a config that was read from JSON."""
    lists = shapes.ShapeScenes("train", 3, objects=[0, 3], radius=[0.1, 0.2])
    tuples = shapes.ShapeScenes("train", 3, objects=(0, 3), radius=(0.1, 0.2))
    assert repr(lists) == repr(tuples)


def test_loading_workers_stay_free_of_jax():
    code = "import sys, samclip_jax.data.shapes; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
