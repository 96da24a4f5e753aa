"""Labels are indices whatever the png's depth, and values of no class are errors."""

import json
import struct
import zlib

import numpy as np
import pytest
from pycocotools import mask as rle
from scipy.io import savemat
from test_evaluation_sets import CLASS_NAMES, MAPS, made, png, write
from test_prepare import HEIGHT, WIDTH, run_here

from samclip_jax.data.decode import BadRecord
from samclip_jax.data.label_maps import label_map
from samclip_jax.data.sources import make_source
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import class_names

GREY, PALETTE = 0, 3  # colour types of a png


def packed_png(values, bits, colours, transparent=False):
    """A png of so many bits a pixel, as it is written by other programs."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = values.shape
    rows = np.pad(values, ((0, 0), (0, -width % max(1, 8 // bits))))
    planes = np.unpackbits(rows.astype(">u2").view(np.uint8).reshape(height, -1, 2), axis=2)
    lines = np.packbits(planes[..., 16 - bits :].reshape(height, -1), axis=1)
    lines = np.pad(lines, ((0, 0), (1, 0)))  # filter 0
    data = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    if colours == PALETTE:
        data += chunk(b"PLTE", bytes(range(256)) * 3)
    if transparent:
        data += chunk(b"tRNS", b"\0\1" if colours == GREY else b"\0\x80")
    data += chunk(b"IDAT", zlib.compress(lines.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize(
    "bits, colours",
    [*((bits, GREY) for bits in (1, 2, 4, 8, 16)), *((b, PALETTE) for b in (1, 2, 4, 8))],
)
def test_values_are_indices_at_every_depth(tmp_path, bits, colours, transparent):
    values = np.arange(21 * 7).reshape(7, 21) % min(21, 2**bits)
    (tmp_path / "a.png").write_bytes(packed_png(values, bits, colours, transparent))
    read = label_map(tmp_path / "a.png", {i: i for i in range(21)})
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize(
    "kind, ignored, wrong",
    [("voc", [255], 21), ("voc", [255], 254), ("ade20k", [0], 151), ("ade20k", [0], 255),
     ("pascal_context", [], 60), ("pascal_context", [], 255), ("pascal_context_59", [0], 255)],
)  # fmt: skip
def test_each_set_knows_its_own_ignored_values(tmp_path, kind, ignored, wrong):
    """Others are bad_annotation with the value and the file; so is a map of ignored ones only."""
    files = dict(MAPS[kind.removesuffix("_59")][0])
    (name,) = [name for name in files if name.endswith("a.png")]
    good = np.full((HEIGHT, WIDTH), 1, np.uint8)
    good[0] = ignored[0] if ignored else 1
    folder = write(tmp_path / "in", files | {name: png(good)})
    run_here(kind, folder, tmp_path / "good")
    semantic = make_source("prepared", path=tmp_path / "good")[0]["semantic"]
    assert (semantic[0] == -1).all() == bool(ignored) and (semantic[1:] >= 0).all()
    bad = {"wrong": np.where(np.arange(HEIGHT)[:, None] == 5, wrong, good).astype(np.uint8)}
    if ignored:
        bad["ignored"] = np.full_like(good, ignored[0])
    for case, pixels in bad.items():
        write(folder, {name: png(pixels)})
        detail = f"value {wrong}," if case == "wrong" else "no pixel of"
        with pytest.raises(UserError, match=f"bad_annotation.*a.png.*{detail}|{detail}.*a.png"):
            run_here(kind, folder, tmp_path / case)


def test_a_map_of_another_format_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"P5 2 2 255\n1234")
    with pytest.raises(BadRecord, match="bad_annotation.*a.png"):
        label_map(tmp_path / "a.png", {1: 1})


def stuff(folder, values, name="stuffthingmaps"):
    pixels = np.resize(np.uint8(values), (HEIGHT, WIDTH))
    maps = write(folder / name / "val2017", {"a.png": png(pixels)})
    return maps, {"images": str(write(folder / "val2017", {"a.jpg": 0}))}, pixels


@pytest.mark.parametrize("kind", ["coco_stuff", "coco_stuff_27"])
def test_maps_of_stuff_alone_are_not_shifted(tmp_path, kind):
    """stuff_val2017_pixelmaps has 92 for what stuffthingmaps has 91 for, and 183 for things."""
    classes = {"coco_stuff": ["banner", "wood"], "coco_stuff_27": ["textile", "solid"]}[kind]
    for name, values in (("a", [92, 182, 183, 0]), ("b_pixelmaps", [92, 181, 0, 0])):
        maps, images, pixels = stuff(tmp_path / name, values, name)
        source, records = made(kind, maps, tmp_path / name / "out", **images)
        named = np.array([*source.classes, None])[records["a.jpg"]["semantic"]]
        assert set(named[pixels == 92]) == {classes[0]} and set(named[pixels == 0]) == {None}
        if name == "a":
            assert set(named[pixels == 182]) == {classes[1]}
            assert set(named[pixels == 183]) == {None}
        assert len(source.classes) == (91 if kind == "coco_stuff" else 15)


def test_supercategories_of_stuff_and_things(tmp_path):
    """27 classes that are told apart by their texts, and every class of the 171 is in one."""
    maps, images, pixels = stuff(tmp_path, [0, 1, 8, 57, 119, 120, 181, 255])
    source, records = made("coco_stuff_27", maps, tmp_path / "out", **images)
    named = np.array([*source.classes, None])[records["a.jpg"]["semantic"]]
    expected = {0: "person", 1: "vehicle", 57: "food", 119: "water", 120: "food-stuff"}
    expected |= {181: "solid", 255: None}
    assert {value: set(named[pixels == value]) for value in expected} == {
        value: {name} for value, name in expected.items()
    }
    assert len(source.classes) == 27 == len(set(class_names(source)))
    grouped = [name for names in CLASS_NAMES["coco_stuff_27"].values() for name in names]
    assert sorted(grouped) == sorted(CLASS_NAMES["coco_stuff"].values())


def test_a_value_that_no_stuff_has_is_an_error(tmp_path):
    maps, images, _ = stuff(tmp_path, [3, 183])
    with pytest.raises(UserError, match="bad_annotation"):
        run_here("coco_stuff", maps, tmp_path / "out", **images)


# PASCAL-Context from its originals: aeroplane is 2, accordion 1, wood 458 of 459

NUMBERS = np.resize([2, 1, 458, 0, 459], (HEIGHT, WIDTH)).astype(np.uint16)


def context(folder, form):
    write(
        folder, {"VOCdevkit/VOC2010/JPEGImages/a.jpg": 0, "VOCdevkit/VOC2010/JPEGImages/b.jpg": 1}
    )
    if form == "mat":
        write(folder, {"VOCdevkit/VOC2010/ImageSets/Main/val.txt": "a\n", "trainval/a.mat": ""})
        savemat(folder / "trainval/a.mat", {"LabelMap": NUMBERS})
        return write(folder, {"labels.txt": "1: accordion\n2: aeroplane\n458: wood\n459: wool\n"})
    images = [
        {
            "image_id": i,
            "file_name": f"{name}.jpg",
            "phase": phase,
            "height": HEIGHT,
            "width": WIDTH,
        }
        for i, (name, phase) in enumerate([("a", "val"), ("b", "train")])
    ]
    regions = [
        {"image_id": 0, "id": number, "category_id": number, "iscrowd": 1,
         "segmentation": rle.encode(np.asfortranarray((number == NUMBERS).astype(np.uint8)))}
        for number in (1, 2, 458, 459)
    ]  # fmt: skip
    for each in regions:
        each["segmentation"]["counts"] = each["segmentation"]["counts"].decode()
    contents = {"images": images, "annos_segmentation": regions}
    return write(folder, {"trainval_merged.json": json.dumps(contents)})


@pytest.mark.parametrize("form", ["mat", "json"])
@pytest.mark.parametrize(
    "kind, background", [("pascal_context", "background"), ("pascal_context_59", None)]
)
def test_pascal_context_from_its_originals(tmp_path, form, kind, background):
    source, records = made(kind, context(tmp_path / "in", form), tmp_path / "out")
    assert len(source.classes) == (60 if background else 59) and list(records) == ["a.jpg"]
    named = np.array([*source.classes, None])[records["a.jpg"]["semantic"]]
    for number, name in ((2, "aeroplane"), (458, "wood"), (1, background), (0, background)):
        assert set(named[NUMBERS == number]) == {name}
    assert source.classes[-59:] == sorted(source.classes[-59:])


def test_labels_of_pascal_context_go_by_their_names(tmp_path):
    folder = write(
        context(tmp_path / "in", "mat"), {"labels.txt": "1: wood\n2: x\n458: aeroplane\n"}
    )
    source, records = made("pascal_context", folder, tmp_path / "out")
    named = np.array([*source.classes, None])[records["a.jpg"]["semantic"]]
    for number, name in ((1, "wood"), (2, "background"), (458, "aeroplane")):
        assert set(named[NUMBERS == number]) == {name}


def test_a_folder_without_maps_of_pascal_context_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="none of 59_context_labels, trainval and trainval_merged"):
        run_here("pascal_context", write(tmp_path, {"VOCdevkit/x": ""}), tmp_path / "out")
    context(tmp_path, "json")
    with pytest.raises(UserError, match="no image of the split 'test'"):
        run_here("pascal_context", tmp_path, tmp_path / "out", split="test")
    savemat(
        context(tmp_path / "mat", "mat") / "trainval/a.mat",
        {"LabelMap": NUMBERS.astype(float) + 0.5},
    )
    with pytest.raises(UserError, match="bad_annotation"):
        run_here("pascal_context", tmp_path / "mat", tmp_path / "out")
