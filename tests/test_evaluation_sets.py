"""Evaluation sets as their downloads unpack: every image with its class, map or captions."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from test_prepare import HEIGHT, WIDTH, photograph
from test_prepare import run_here as run

from samclip_jax.data.evaluation_sets import CLASS_NAMES
from samclip_jax.data.sources import make_source
from samclip_jax.data.unit import Options
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import class_names

TENCH, GOLDFISH = list(CLASS_NAMES["imagenet"])[:2]


def write(folder, files):
    """files: {path: bytes, text, or the seed of a photograph}"""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = photograph(content) if isinstance(content, int) else content
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def made(kind, source, output, options=None, **more):
    """The prepared set's source and its records by key."""
    found = run(kind, source, output, options=options, **more)
    assert found["inputs"] == found["records"] + found["rejects"]
    source = make_source("prepared", path=output)
    return source, {record["key"]: record for record in map(source.__getitem__, range(len(source)))}


def png(pixels, palette=False):
    image = Image.fromarray(pixels)
    if palette:
        image = image.convert("P")
        image.putdata(pixels.ravel())
        image.putpalette([255 - i // 3 for i in range(768)])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# Classes


def test_the_names_are_data():
    assert len(CLASS_NAMES["imagenet"]) == 1000 and CLASS_NAMES["imagenet"][TENCH] == "tench"
    assert list(CLASS_NAMES["imagenet"]) == sorted(CLASS_NAMES["imagenet"])
    assert len(CLASS_NAMES["voc"]) == 21 and len(CLASS_NAMES["coco_stuff"]) == 171


@pytest.mark.oracle
def test_the_names_of_imagenet_are_those_of_open_clip():
    from originals import torchvision_absent

    with torchvision_absent():
        from open_clip import zero_shot_metadata

    assert list(CLASS_NAMES["imagenet"].values()) == list(zero_shot_metadata.IMAGENET_CLASSNAMES)


def test_the_word_net_ids_are_those_of_tfds():
    tfds = pytest.importorskip("tensorflow_datasets")
    labels = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text()
    assert list(CLASS_NAMES["imagenet"]) == labels.split()


def devkit(meta=None, truth=2):
    """Two classes, numbered otherwise than they are sorted, and one that is no leaf."""
    synsets = np.array(
        [(1, GOLDFISH), (2, TENCH), (3, "n00000000")],
        [("ILSVRC2012_ID", "O"), ("WNID", "O")],
    )
    file = io.BytesIO()
    savemat(file, {"synsets": synsets})
    kit = "ILSVRC2012_devkit_t12/data"
    truth = f"{truth}\n1\n2\n"
    return {
        f"{kit}/meta.mat": meta or file.getvalue(),
        f"{kit}/ILSVRC2012_validation_ground_truth.txt": truth,
    }


@pytest.mark.parametrize(
    "files",
    [
        {f"{TENCH}/a.JPEG": 0, f"{GOLDFISH}/b.JPEG": 1},
        {"0/a.jpeg": 0, "1/b.jpeg": 1},
        {"ILSVRC2012_val_00000001.JPEG": 0, "ILSVRC2012_val_00000002.JPEG": 1} | devkit(),
    ],
    ids=["folders", "V2", "as released"],
)
def test_imagenet_in_three_layouts(tmp_path, files):
    source, records = made("imagenet", write(tmp_path / "source", files), tmp_path / "out")
    labels = [records[key]["label"] for key in sorted(records)]
    assert labels == [0, 1] and len(source.classes) == 1000
    assert class_names(source)[:2] == ["tench", "goldfish"]


def test_places365(tmp_path):
    others = "".join(f"/x/place_{i} {i}\n" for i in range(3, 365))
    lists = {
        "categories_places365.txt": "/a/airfield 0\n/e/elevator/door 2\n/a/airplane_cabin 1\n"
        + others,
        "places365_val.txt": "Places365_val_00000001.jpg 2\nPlaces365_val_00000002.jpg 0\n",
    }
    images = write(tmp_path / "val_256", {f"Places365_val_0000000{i}.jpg": i for i in (1, 2)})
    lists = write(tmp_path / "lists", lists)
    source, records = made("places365", lists, tmp_path / "out", images=str(images))
    assert source.classes[:4] == ["airfield", "airplane_cabin", "elevator/door", "place_3"]
    assert class_names(source)[1:3] == ["airplane cabin", "elevator door"]
    assert [records[f"Places365_val_0000000{i}.jpg"]["label"] for i in (1, 2)] == [2, 0]


def test_classes_are_said_as_people_say_them(tmp_path):
    """Folders with the names of WordNet, TFDS' underscores, COCO's endings, VOC's long words."""
    names = {
        TENCH: "tench",
        "n04590129": "window shade",
        "n02788148": "baluster / handrail",
        "airplane_cabin": "airplane cabin",
        "wall-other-merged": "wall",
        "floor-wood": "floor-wood",
        "tvmonitor": "tv monitor",
    }
    write(tmp_path, {f"{name}/1.jpg": 0 for name in names})
    source = make_source("folder", path=tmp_path, labels=True)
    assert dict(zip(source.classes, class_names(source), strict=True)) == names


def test_several_sets_in_one_folder_are_not_taken_for_one(tmp_path):
    write(tmp_path, {f"train/{TENCH}/1.jpg": 0, f"val/{TENCH}/1.jpg": 0})
    with pytest.raises(UserError, match="holds train, val; give one of them"):
        run("imagenet", tmp_path, tmp_path / "out")


# Maps


VALUES = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), np.uint8)
VALUES[:20] = VALUES[:20] % 3


def only(limit, other):
    """The values under `limit`, `other` for the rest."""
    return np.where(VALUES < limit, VALUES, other).astype(np.uint8)


OBJECTS = "\n".join(
    ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    + [f"{i}\t0.1\t1\t1\t0\tthing {i}, other name" for i in range(1, 151)]
)
CONTEXT = "\n".join(f"{i}: thing {i}" for i in range(1, 60))
MAPS = {
    "voc": (
        {
            "ImageSets/Segmentation/val.txt": "a\n",
            "JPEGImages/a.jpg": 0,
            "JPEGImages/b.jpg": 1,
            "SegmentationClass/a.png": png(only(21, 255), palette=True),
        },
        CLASS_NAMES["voc"],
        np.where(VALUES < 21, VALUES.astype(int), -1),
    ),
    "pascal_context": (
        {
            "VOCdevkit/VOC2010/ImageSets/Main/val.txt": "a\n",
            "VOCdevkit/VOC2010/JPEGImages/a.jpg": 0,
            "59_context_labels/a.png": png(only(60, 0)),
            "59_labels.txt": CONTEXT,
        },
        ["background", *(f"thing {i}" for i in range(1, 60))],
        only(60, 0),
    ),
    "ade20k": (
        {
            "images/validation/a.jpg": 0,
            "images/training/b.jpg": 1,
            "annotations/validation/a.png": png(only(151, 0)),
            "objectInfo150.txt": OBJECTS,
        },
        [f"thing {i}" for i in range(1, 151)],
        np.where((VALUES > 0) & (VALUES <= 150), VALUES.astype(int) - 1, -1),
    ),
}


@pytest.mark.parametrize("kind", MAPS)
def test_maps_of_classes(tmp_path, kind):
    """Every pixel of the split's photographs, also where the photograph is made smaller."""
    files, classes, expected = MAPS[kind]
    options = Options(longest=WIDTH // 2, min_side=8)
    source, records = made(kind, write(tmp_path / "in", files), tmp_path / "out", options)
    assert list(records) == ["a.jpg"] and source.classes == classes
    assert records["a.jpg"]["image"].shape == (HEIGHT // 2, WIDTH // 2, 3)
    semantic = records["a.jpg"]["semantic"]
    assert semantic.dtype == np.int32
    np.testing.assert_array_equal(semantic, expected)


def test_coco_stuff_leaves_out_what_no_image_has(tmp_path):
    maps = {"a.png": png(only(182, 255)), "a_labelTrainIds.png": png(VALUES), "a.jpg": 1}
    maps = write(tmp_path / "stuffthingmaps/val2017", maps)
    images = write(tmp_path / "val2017", {"a.jpg": 0})
    source, records = made("coco_stuff", maps, tmp_path / "out", images=str(images))
    named = np.array([*source.classes, None])[records["a.jpg"]["semantic"]]
    assert list(records) == ["a.jpg"]
    for value, name in ((0, "person"), (11, None), (12, "stop sign"), (181, "wood"), (200, None)):
        assert set(named[VALUES == value]) == {name}


def test_more_classes_than_a_byte_holds(tmp_path):
    from samclip_jax.data import records

    semantic = np.arange(-1, 999).reshape(20, 50)
    stored = records.encode({"key": "a", "image": photograph(0), "semantic": semantic})
    np.testing.assert_array_equal(records.decode(stored)["semantic"], semantic)


def test_a_map_of_one_bit_has_two_classes(tmp_path):
    files, *_ = MAPS["voc"]
    files = files | {"SegmentationClass/a.png": png(VALUES > 99)}
    _, records = made("voc", write(tmp_path / "in", files), tmp_path / "out")
    np.testing.assert_array_equal(records["a.jpg"]["semantic"], VALUES > 99)


def test_maps_that_cannot_be_used_are_rejects(tmp_path):
    files, *_ = MAPS["voc"]
    names = {"missing": None, "damaged": png(VALUES)[:900], "colours": png(np.dstack([VALUES] * 3)),
             "small": png(VALUES[1:])}  # fmt: skip
    files = dict(files)
    for name, data in names.items():
        files[f"JPEGImages/{name}.jpg"] = 1
        if data:
            files[f"SegmentationClass/{name}.png"] = data
    files["ImageSets/Segmentation/val.txt"] = "\n".join(["a", *names])
    options = Options(max_rejects=0.9)
    found = run("voc", write(tmp_path / "in", files), tmp_path / "out", options=options)
    assert found["reasons"] == {"unreadable": 1, "bad_annotation": 3} and found["records"] == 1


def test_panoptic_maps_are_prepared_as_they_are_read(tmp_path, coco):
    given = {"images": str(coco / "images"), "maps": str(coco / "panoptic")}
    source, records = made("coco_panoptic", coco / "panoptic.json", tmp_path / "out", **given)
    raw = make_source("coco_panoptic", annotations=coco / "panoptic.json", **given)
    assert len(records) == len(raw) == 53 and source.classes == raw.classes
    for index in range(0, 53, 7):
        np.testing.assert_array_equal(
            records[raw[index]["key"]]["semantic"], raw[index]["semantic"]
        )


# Captions and instances


def test_captions_of_coco(tmp_path, coco):
    given = json.loads((coco / "captions.json").read_text())
    images = str(coco / "images")
    _, records = made("captions", coco / "captions.json", tmp_path / "out", images=images)
    assert len(records) > 40
    names = {each["id"]: each["file_name"] for each in given["images"]}
    expected = sorted((names[each["image_id"]], each["caption"]) for each in given["annotations"])
    found = sorted((key, text) for key, each in records.items() for text in each["captions"])
    assert found == expected


def test_captions_of_a_split_of_karpathy(tmp_path):
    images = [
        {"filename": f"{i}.jpg", "filepath": "val2014", "split": split,
         "sentences": [{"raw": f"{split} {i}"}, {"raw": "again"}]}
        for i, split in enumerate(["train", "test", "test"])
    ]  # fmt: skip
    files = {"dataset.json": json.dumps({"images": images}), "val2014/1.jpg": 1, "val2014/2.jpg": 2}
    folder = write(tmp_path / "in", files)
    options = dict(images=str(folder), split="test")
    _, records = made("captions", folder / "dataset.json", tmp_path / "out", **options)
    captions = {key: each["captions"] for key, each in records.items()}
    assert captions == {f"val2014/{i}.jpg": [f"test {i}", "again"] for i in (1, 2)}


def test_lvis_names_its_photographs_by_their_address(tmp_path):
    box = {"bbox": [5, 5, 20, 20], "area": 400, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}
    url = "http://images.cocodataset.org/val2017/7.jpg"
    contents = {
        "images": [{"id": 7, "coco_url": url, "height": HEIGHT, "width": WIDTH}],
        "annotations": [box | {"image_id": 7, "category_id": 3, "id": 1}],
        "categories": [{"id": 3, "name": "bath_towel"}],
    }
    files = {"lvis_v1_val.json": json.dumps(contents), "val2017/7.jpg": 0}
    folder = write(tmp_path / "in", files)
    options = Options(masks=True, max_mask_area=1.0)
    given = {"images": str(folder)}
    _, records = made("coco", folder / "lvis_v1_val.json", tmp_path / "out", options, **given)
    (annotation,) = records["val2017/7.jpg"]["annotations"]
    assert annotation["category"] == "bath_towel" and np.asarray(annotation["mask"]).sum() == 400


# Mistakes


@pytest.mark.parametrize(
    "kind, files, sentence",
    [
        ("imagenet", {"a.jpg": 0}, "nothing says of which class a.jpg is"),
        ("imagenet", {"val/281.jpg": 0}, "nothing says of which class"),
        ("imagenet", {"val/0001.jpg": 0}, "nothing says of which class"),
        ("voc", {"JPEGImages/a.jpg": 0}, "val.txt was not read"),
        ("imagenet", {"ILSVRC2012_val_00000001.JPEG": 0} | devkit(meta=b"x"), "meta.mat was not"),
        ("imagenet", {"ILSVRC2012_val_00000001.JPEG": 0} | devkit(truth=3), "not as imagenet is"),
        ("ade20k", {"objectInfo150.txt": "", "images/validation/a.jpg": 0}, "not as ade20k is"),
        ("pascal_context", MAPS["pascal_context"][0] | {"59_labels.txt": "0: x"}, "1 classes are"),
        ("ade20k", {"objectInfo150.txt": OBJECTS}, "images/validation does not exist"),
        ("captions", {}, "has no captions"),
    ],
)
def test_another_layout_is_one_sentence(tmp_path, kind, files, sentence):
    source = write(tmp_path, files)
    given = {}
    if kind == "captions":
        source = write(tmp_path, {"a.json": '{"images": [{}]}'}) / "a.json"
        given = {"images": str(tmp_path)}
    with pytest.raises(UserError, match=sentence):
        run(kind, source, tmp_path / "out", **given)
