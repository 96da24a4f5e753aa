"""Every kind of file becomes upright 8-bit RGB or a counted reason, every layout records."""

import collections
import contextlib
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from samclip_jax.data.annotations import CompressedMask
from samclip_jax.data.decode import BadRecord, Jpeg, decode_image, open_image
from samclip_jax.data.sources import make_source
from samclip_jax.errors import UserError


def picture(height=24, width=40):
    """Smooth, with a different colour in every corner, so that any turn or swap shows."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 200 - 150 * x / width], -1).astype(np.uint8)


def readable(source, rejected):
    """The usable records; the reasons of the others are counted in `rejected`."""
    for index in range(len(source)):
        try:
            record = source[index]
            yield record | {"image": np.asarray(record["image"])}
        except BadRecord as bad:
            rejected[bad.reason] += 1


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_a_jpeg_is_decoded_when_it_is_asked_for():
    """Pixel by pixel as Pillow has it; reduced, by eighths, as the mean of its pixels."""
    image = Image.fromarray(picture(240, 400))
    data = encoded(image, "JPEG", quality=95)
    opened = open_image(data)
    assert isinstance(opened, Jpeg) and opened.shape == (240, 400, 3)
    with Image.open(io.BytesIO(data)) as expected:
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(expected))
    assert opened.at_least(121, 100).shape == (150, 250, 3)
    half = opened.at_least(120, 200)
    means = picture(240, 400).reshape(120, 2, 200, 2, 3).mean((1, 3))
    assert half.shape == (120, 200, 3) and np.abs(half - means).max() < 6


def as_lossless(data):
    place = data.index(b"\xff\xc0")
    return data[:place] + b"\xff\xc3" + data[place + 2 :]


def as_12_bits(data):
    place = data.index(b"\xff\xc0") + 4
    return data[:place] + b"\x0c" + data[place + 1 :]


def with_sampling_411(data):  # 4:1:1, turned: simplejpeg has no name for it
    place = data.index(b"\xff\xc0") + 11
    return data[:place] + b"\x14" + data[place + 1 :]


@pytest.mark.parametrize("change", [as_lossless, as_12_bits, with_sampling_411])
def test_what_libjpeg_turbo_cannot_scale_is_decoded_by_pillow_or_rejected(change):
    """It writes beside its memory for a lossless file."""
    data = change(encoded(Image.fromarray(picture(240, 400)), "JPEG"))
    with contextlib.suppress(BadRecord):
        image = open_image(data)
        assert isinstance(image, np.ndarray) or change is with_sampling_411
        np.asarray(image)


def test_orientation_in_xmp_turns_the_picture_too():
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>"
    segment = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2) + xmp
    data = encoded(Image.fromarray(picture()), "JPEG")
    found = decode_image(data[:2] + segment + data[2:])
    with Image.open(io.BytesIO(data[:2] + segment + data[2:])) as image:
        turned = image.getexif().get(0x0112) == 6
    assert found.shape == ((40, 24, 3) if turned else (24, 40, 3))


def test_damage_shows_when_a_jpeg_is_decoded():
    data = encoded(Image.fromarray(picture(240, 400)), "JPEG")
    opened = open_image(data[: len(data) // 2])
    for decode in (np.asarray, lambda image: image.at_least(30, 50)):
        with pytest.raises(BadRecord) as bad:
            decode(opened)
        assert bad.value.reason == "truncated"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(orientation):
    upright = Image.fromarray(picture())
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL transposes that store it so
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(stored, "JPEG", quality=95, subsampling=0, exif=exif))
    assert decoded.shape == (24, 40, 3)
    assert np.abs(decoded.astype(int) - picture()).max() < 30


def test_annotations_of_the_stored_picture_undo_the_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(picture()), "JPEG", exif=exif)
    assert decode_image(data).shape == (40, 24, 3)
    late = encoded(Image.fromarray(picture()), "JPEG", exif=exif, icc_profile=bytes(10**5))
    assert decode_image(late).shape == (40, 24, 3)
    assert decode_image(data, size=(40, 24)).shape == (40, 24, 3)
    assert decode_image(data, size=(24, 40)).shape == (24, 40, 3)
    with pytest.raises(BadRecord) as bad:
        decode_image(data, size=(24, 41))
    assert bad.value.reason == "bad_annotation"


def test_damaged_exif_does_not_cost_the_picture():
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff\x01\x02"
    data = encoded(Image.fromarray(picture()), "JPEG", exif=exif)
    assert decode_image(data).shape == (24, 40, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(picture())
    decoded = decode_image(encoded(image.convert(mode), "TIFF" if mode == "PA" else "PNG"))
    assert decoded.dtype == np.uint8 and decoded.shape == (24, 40, 3)
    seen = {"1": "1", "L": "L", "LA": "L"}.get(mode, "RGB")
    reference = image.convert(seen).convert("RGB")
    tolerance = 60 if mode[0] == "P" else 0
    assert np.abs(decoded.astype(int) - np.asarray(reference)).max() <= tolerance


@pytest.mark.parametrize("options", [{}, {"quality": 95}])
def test_cmyk_is_not_inverted(options):
    red = Image.new("RGB", (16, 16), (220, 30, 30)).convert("CMYK")
    decoded = decode_image(encoded(red, "JPEG" if options else "TIFF", **options))
    assert np.abs(decoded.astype(int) - (220, 30, 30)).max() < 12


def test_sixteen_bits_keep_their_scale():
    grey = np.uint16([[0, 257 * 100], [257 * 200, 65535]])
    for form in ("PNG", "TIFF"):
        decoded = decode_image(encoded(Image.fromarray(grey), form))
        assert decoded.tolist() == [[[0] * 3, [100] * 3], [[200] * 3, [255] * 3]]


def test_transparency_shows_white_and_not_the_hidden_colour():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    decoded = decode_image(encoded(image))
    assert decoded[0, 0].tolist() == [0, 0, 255] and decoded[1, 1].tolist() == [255, 255, 255]
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert decode_image(encoded(palette, transparency=0))[2, 2].tolist() == [255, 255, 255]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
JPEG, PNG = encoded(NOISE, "JPEG"), encoded(NOISE)
BOMB = bytearray(encoded(Image.new("1", (8, 8))))
BOMB[16:24] = struct.pack(">II", 60000, 60000)  # width and height, then their check sum
BOMB[29:33] = struct.pack(">I", zlib.crc32(bytes(BOMB[12:29])))
DIRT = {
    "empty": b"",
    "not_an_image": b"<!DOCTYPE html><html><body>404</body></html>",
    "truncated": JPEG[: len(JPEG) // 2],
    "too_small": encoded(Image.new("RGB", (1, 1))),
    "too_large": bytes(BOMB),
}


@pytest.mark.parametrize("reason", DIRT)
def test_dirt_has_a_reason(reason):
    with pytest.raises(BadRecord) as bad:
        decode_image(DIRT[reason])
    assert bad.value.reason == reason


@pytest.mark.parametrize("data", [JPEG, PNG])
def test_no_damage_makes_it_crash(data):
    """Cut anywhere, or with any byte changed: pixels or BadRecord, never anything else."""
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 60).tolist():
        changed = bytearray(data)
        changed[place] ^= 0xFF
        for damaged in (data[:place], bytes(changed)):
            try:
                assert decode_image(damaged).ndim == 3
            except BadRecord:
                pass


def test_postscript_is_never_interpreted():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(BadRecord, match="not_an_image"):
        decode_image(eps)


@pytest.fixture
def folder(tmp_path):
    """Two classes of two photographs, every kind of dirt, and files that are no images."""
    for name in ("cats/a.jpg", "cats/deeper/b.PNG", "root/dog/c.jpeg", "root/dog/d.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture()).save(tmp_path / name)
    tmp_path = tmp_path / "root"
    (tmp_path / "cat").symlink_to(tmp_path.parent / "cats")
    for reason, data in DIRT.items():
        (tmp_path / "dog" / f"{reason}.jpg").write_bytes(data)
    (tmp_path / "dog" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "readme.txt").write_text("not listed")
    return tmp_path


def test_a_folder_is_searched_and_its_dirt_counted(folder):
    rejected = collections.Counter()
    source = make_source("folder", path=folder, labels=True)
    records = list(readable(source, rejected))
    assert {each["key"]: source.classes[each["label"]] for each in records} == {
        "cat/a.jpg": "cat",
        "cat/deeper/b.PNG": "cat",
        "dog/c.jpeg": "dog",
        "dog/d.webp": "dog",
    }
    assert rejected == dict.fromkeys([*DIRT, "unreadable"], 1)
    assert len(records) + rejected.total() == len(source)


def coco_json(**changed):
    square = [[4, 4, 20, 4, 20, 16, 4, 16]]
    runs = {"size": [24, 40], "counts": [24 * 10, 24 * 5, 24 * 25]}  # columns 10 to 14
    make = {"image_id": 7, "category_id": 3, "iscrowd": 0, "area": 100.0}
    return {
        "images": [{"id": 7, "file_name": "a.png", "height": 24, "width": 40}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {**make, "bbox": [4, 4, 16, 12], "segmentation": square},
            {**make, "bbox": [10, 0, 5, 24], "segmentation": runs, "category_id": 1},
            {**make, "bbox": [0, 0, 9, 9], "segmentation": runs, "iscrowd": 1},
            {**make, "bbox": [float("nan"), 0, 9, 9], "segmentation": square},
            {**make, "bbox": [50, 0, 9, 9], "segmentation": square},
            {**make, "bbox": [30, 20, 100, 100], "segmentation": [[1, 2, 3, 4]]},
        ],
        **changed,
    }


def test_coco_instances(tmp_path):
    """Polygons and run lengths decode; NaN and empty boxes are left out, boxes are cut, crowds are
    apart."""
    Image.fromarray(picture()).save(tmp_path / "a.png")
    (tmp_path / "instances.json").write_text(json.dumps(coco_json()))
    source = make_source("coco_instances", annotations=tmp_path / "instances.json", images=tmp_path)
    square, runs, cut = source[0]["annotations"]
    assert square["box"].tolist() == [4, 4, 20, 16] and square["category"] == "dog"
    mask = np.asarray(square["mask"])
    assert mask.dtype == bool and mask.shape == (24, 40)
    assert mask[4:16, 4:20].all() and mask.sum() == 12 * 16
    columns = np.flatnonzero(np.asarray(runs["mask"]).all(0))
    assert columns.tolist() == [10, 11, 12, 13, 14] and runs["category"] == "cat"
    assert cut["box"].tolist() == [30, 20, 40, 24] and cut["mask"] is None
    (crowd,) = source[0]["crowds"]
    assert crowd["box"].tolist() == [0, 0, 9, 9] and np.asarray(crowd["mask"]).sum() == 24 * 5
    assert source[0]["key"] == "a.png" and source.classes == ["cat", "dog"]
    assert source[0]["image_id"] == "7" and source.image_ids == ["7"]
    assert source.frequencies is None and "absent" not in source[0]


def test_coco_panoptic(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.jpg")
    ids = np.zeros((24, 40), np.int64)  # 0: no class
    ids[:, :10], ids[:, 30:] = 5 + 256 * 300, 9
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], -1).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    segments = [{"id": 5 + 256 * 300, "category_id": 3}, {"id": 9, "category_id": 1}]
    annotations = [{"image_id": 7, "file_name": "a.png", "segments_info": segments}]
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "a.jpg"}]
    contents = coco_json(annotations=annotations, images=images)
    (tmp_path / "panoptic.json").write_text(json.dumps(contents))
    source = make_source(
        "coco_panoptic", annotations=tmp_path / "panoptic.json", images=tmp_path, maps=tmp_path
    )
    semantic = source[0]["semantic"]
    assert semantic.dtype == np.int32 and semantic.shape == source[0]["image"].shape[:2]
    assert (semantic[:, :10] == 1).all() and (semantic[:, 30:] == 0).all()
    assert (semantic[:, 10:30] == -1).all()
    with pytest.raises(BadRecord, match="bad_annotation"):
        source[1]


def sa1b_json(**changed):
    mask = np.zeros((24, 40), np.uint8, order="F")
    mask[5:15, 8:20] = 1
    runs = rle.encode(mask)
    annotation = {
        "bbox": [8, 5, 12, 10], "area": 120, "point_coords": [[9.5, 6.5]],
        "segmentation": {"size": [24, 40], "counts": runs["counts"].decode()},
        "predicted_iou": 0.9, "stability_score": 0.9, "crop_box": [0, 0, 40, 24], "id": 1,
    } | changed  # fmt: skip
    image = {"image_id": 1, "width": 40, "height": 24, "file_name": "sa_1.jpg"}
    return {"image": image, "annotations": [annotation]}


def test_sa1b(tmp_path):
    folder = tmp_path / "sa_000000"
    folder.mkdir()
    contents = {
        "sa_1": json.dumps(sa1b_json()),
        "sa_2": json.dumps(sa1b_json(segmentation={"size": [24, 40], "counts": "zzzzzzz"})),
        "sa_3": json.dumps(sa1b_json(segmentation={"size": [24, 40], "counts": "0"})),
        "sa_4": json.dumps(sa1b_json(bbox=[float("nan"), 0, 1, 1])),
        "sa_5": "{",
        "sa_6": json.dumps({"image": {}}),
        "sa_7": None,
    }
    for name, text in contents.items():
        Image.fromarray(picture()).save(folder / f"{name}.jpg")
        if text is not None:
            (folder / f"{name}.json").write_text(text)
    source = make_source("sa1b", path=tmp_path)
    (annotation,) = source[0]["annotations"]
    assert source[0]["key"] == "sa_000000/sa_1.jpg"
    assert annotation["box"].tolist() == [8, 5, 20, 15]
    assert annotation["point"].tolist() == [9.5, 6.5]
    assert np.argwhere(np.asarray(annotation["mask"])).min(0).tolist() == [5, 8]
    for wrong, reason in ((1, "bad_mask"), (2, "bad_mask"), (3, "bad_box")):
        assert source[wrong]["annotations"] == []
        assert [dropped[:2] for dropped in source[wrong]["dropped"]] == [("1", reason)]
    rejected = collections.Counter()
    assert len(list(readable(source, rejected))) == 4 and rejected == {"bad_annotation": 3}


def test_the_procedural_world_is_a_source():
    record = make_source("shape_scenes", split="train", size=3, image_size=32)[2]
    assert record["image"].shape == (32, 32, 3) and record["annotations"]


def test_run_lengths_decode_as_pycocotools_does():
    """Long runs, equal runs, shrinking and growing ones: every form of the string's numbers."""
    rng = np.random.default_rng(0)
    for share in (0, 0.001, 0.1, 0.5, 0.9, 1):
        mask = np.asfortranarray(rng.random((123, 457)) < share)
        mask[20:90, 30:200] ^= True
        segmentation = rle.encode(mask.astype(np.uint8))
        for counts in (segmentation["counts"], segmentation["counts"].decode()):
            compressed = CompressedMask({"size": [123, 457], "counts": counts}, (123, 457))
            np.testing.assert_array_equal(np.asarray(compressed), mask)


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("foldr", {}, "did you mean 'folder'"),
        ("folder", {"pth": "x"}, "pth"),
        ("folder", {"path": "/nowhere/at/all"}, "/nowhere/at/all does not exist"),
        ("coco_instances", {"annotations": __file__, "images": "."}, "not in COCO's format"),
    ],
)
def test_a_wrong_source_is_one_clear_sentence(name, options, says):
    with pytest.raises(UserError, match=says):
        make_source(name, **options)


def test_folders_without_images_or_classes_are_named(tmp_path):
    with pytest.raises(UserError, match="no images under"):
        make_source("folder", path=tmp_path)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="a folder for each class; a.png"):
        make_source("folder", path=tmp_path, labels=True)


def test_real_photographs(coco):
    """All of them decode, to the size that the annotations were made for, with masks in boxes."""
    rejected = collections.Counter()
    instances = make_source(
        "coco_instances", annotations=coco / "instances.json", images=coco / "images"
    )
    for record in readable(instances, rejected):
        for each in record["annotations"]:
            rows, columns = np.nonzero(np.asarray(each["mask"]))
            x0, y0, x1, y1 = each["box"]
            assert x0 - 1 <= columns.min() and columns.max() <= x1 + 1
            assert y0 - 1 <= rows.min() and rows.max() <= y1 + 1
    panoptic = make_source(
        "coco_panoptic", annotations=coco / "panoptic.json", images=coco / "images",
        maps=coco / "panoptic",
    )  # fmt: skip
    assert len(instances) == 51 and len(panoptic) == 53 and len(panoptic.classes) == 133
    assert all((record["semantic"] >= 0).mean() > 0.3 for record in readable(panoptic, rejected))
    assert not rejected
