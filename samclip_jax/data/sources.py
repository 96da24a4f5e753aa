"""Where images and annotations come from: random-access sources with one small protocol.

A source has a length, and `source[i]` is a record, a dict:

    key          str, unique in its source, the same in every run
    image        uint8 [H, W, 3], RGB
    annotations  list of {"box": float32 [4], x0 y0 x1 y1 in px, "point": float32 [2], x y, or None,
                 "mask": np.asarray(mask) is bool [H, W], decoded on demand, or None,
                 "area": float, px, "category": str or None}      where it has objects
    semantic     int32 [H, W], index into source.classes, -1 without a class      where it has maps
    label        int, index into source.classes                  where it has image classes

A record that cannot be used raises BadRecord with one of REASONS: training replaces it, evaluation
skips it, both count it. What is wrong with a source as a whole is a UserError.
"""

import contextlib
import difflib
import inspect
import io
import json
import os
import pathlib

import numpy as np
from PIL import ExifTags, Image
from pycocotools import mask as rle

from samclip_jax.data.shapes import ShapeObjects, ShapeScenes
from samclip_jax.errors import UserError, os_errors

REASONS = (
    "unreadable",  # the file is missing, or the system cannot read it
    "empty",  # zero bytes
    "not_an_image",
    "truncated",  # the pixel data ends early or is damaged
    "too_small",  # one pixel wide or high: a web page's counter, not a photograph
    "too_large",  # a decompression bomb by Pillow's limit
    "bad_annotation",  # missing, malformed, or made for an image of another size
    "no_annotation",  # nothing that could be prompted or learnt from
)


class BadRecord(Exception):
    """A record that cannot be used: `reason` is one of REASONS, `detail` says more."""

    def __init__(self, reason, detail):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def make_source(name, **options):
    """The source of that name; `options` are its constructor's, None where they are not given.

    UserError says what is wrong.
    """
    options = {option: value for option, value in options.items() if value is not None}
    if name not in SOURCES:
        near = difflib.get_close_matches(str(name), SOURCES, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no source {name!r}; {guess}There are: {', '.join(SOURCES)}.")
    signature = inspect.signature(SOURCES[name])
    taken = signature.parameters
    if unknown := [option for option in options if option not in taken]:
        raise UserError(f"source {name!r} takes {signature}, not {', '.join(unknown)}.")
    required = [option for option in taken if taken[option].default is inspect.Parameter.empty]
    if missing := [option for option in required if option not in options]:
        raise UserError(f"source {name!r} takes {signature}; set {' and '.join(missing)}.")
    return SOURCES[name](**options)


# Images

# The safe readers only: Pillow also starts Ghostscript for an EPS that calls itself .jpg.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm")
UPRIGHT = {  # EXIF orientation -> what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(image, size=None):  # bytes or path -> uint8 [H, W, 3]
    """Any photograph as upright 8-bit RGB, or BadRecord.

    size: (height, width) that annotations were made for. Some were drawn on the picture as it is
    stored, so EXIF orientation is undone where only that fits.
    """
    data = image if isinstance(image, bytes) else _read(image)
    if not data:
        raise BadRecord("empty", "zero bytes")
    try:
        stored = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadRecord("too_large", error) from None
    except Exception:  # readers trip over hostile headers in every possible way
        raise BadRecord("not_an_image", f"it begins with {data[:20]}") from None
    if min(stored.size) < 2:
        raise BadRecord("too_small", f"{stored.width} x {stored.height} px")
    try:
        stored.load()
        turn = UPRIGHT.get(_orientation(stored))
        upright = stored if turn is None else stored.transpose(turn)
        pictures = {(each.height, each.width): each for each in (stored, upright)}
        picture = upright if size is None else pictures.get(tuple(size))
        rgb = None if picture is None else _rgb(picture)
    except Exception as error:
        raise BadRecord("truncated", error) from None
    if rgb is None:
        raise BadRecord("bad_annotation", f"made for {size}, the image is {upright.size[::-1]}")
    return rgb


def _read(path):
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise BadRecord("unreadable", error) from None


def _orientation(image):
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF says nothing against the pixels
        return None


def _rgb(image):  # PIL image of any mode -> uint8 [H, W, 3]
    """16-bit grey by its full range. Transparency over white, the page such pictures are made for:
    dropping the alpha would show whatever colour lies hidden under it."""
    if image.mode.startswith("I"):
        grey = (np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return np.asarray(image.convert("RGB"))


# Annotations


class CompressedMask:
    """COCO polygons or run lengths that become bool [H, W] when numpy asks for the array."""

    def __init__(self, segmentation, size):
        self.segmentation, self.size = segmentation, size

    def __array__(self, dtype=None, copy=None):
        try:
            polygons = isinstance(self.segmentation, list)
            mask = _filled(self.segmentation, self.size) if polygons else self.runs()
        except Exception as error:  # pycocotools raises bare Exceptions too
            raise BadRecord("bad_annotation", _line(error)) from None
        return mask.astype(bool if dtype is None else dtype)

    def runs(self):
        """Run lengths down the columns, off and on by turns. Not by pycocotools, which fills a mask
        whose runs end early with whatever lies in memory."""
        counts = self.segmentation["counts"]
        counts = np.array(counts if isinstance(counts, list) else _run_lengths(counts))
        height, width = self.size
        if tuple(self.segmentation["size"]) != self.size or counts.sum() != height * width:
            raise ValueError(f"the mask is not of {self.size} px")
        return np.repeat(np.arange(len(counts)) % 2, counts).reshape(width, height).T


def _filled(polygons, size):
    return rle.decode(rle.merge(rle.frPyObjects(polygons, *size)))


def _run_lengths(text):  # str or bytes -> int [runs]
    """COCO's string form: characters of 5 bits, lowest first, bit 6 set where the number goes on;
    from the fourth number on differences to the last but one."""
    digits = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8) - 48
    last = np.flatnonzero(digits < 32)
    first = np.concatenate([[0], last[:-1] + 1])
    place = 5 * (np.arange(len(digits)) - np.repeat(first, last - first + 1))
    numbers = np.add.reduceat((digits & 31).astype(np.int64) << place, first)
    numbers -= np.where(digits[last] & 16, 1 << 5 * (last - first + 1), 0)
    numbers[1::2], numbers[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    return numbers


def _annotation(entry, size, point=None, category=None):
    """An annotation from COCO's or SA-1B's json, its box cut to the image; None where no box is
    left (NaN, outside, flat)."""
    height, width = size
    x, y, w, h = np.float32(entry["bbox"])
    box = np.float32([x, y, x + w, y + h])
    if not np.isfinite(box).all():
        return None
    box = np.clip(box, 0, np.float32([width, height, width, height]))
    if not (box[2:] > box[:2]).all():
        return None
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list):  # a polygon has three corners or more
        segmentation = [polygon for polygon in segmentation if len(polygon) >= 6]
    if point is not None:
        point = np.float32(point)
        if not ((point >= 0) & (point < np.float32([width, height]))).all():
            point = None
    return {
        "box": box,
        "point": point,
        "mask": CompressedMask(segmentation, size) if segmentation else None,
        "area": float(entry.get("area", w * h)),
        "category": category,
    }


@contextlib.contextmanager
def _checked():
    """What json that is not as it should be raises becomes BadRecord."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise BadRecord("bad_annotation", _line(error)) from None


def _line(error):
    return f"{type(error).__name__} {error}"


# Sources


class Files:
    """A source that lies at `path`."""

    def __init__(self, path):
        self.path = _existing(path)

    def __repr__(self):
        return f"{type(self).__name__}({self.path})"


class ImageFolder(Files):
    """Every image under a folder. With `labels` its sub-folders are the classes, sorted by name."""

    def __init__(self, path, labels=False):
        super().__init__(path)
        self.files = sorted(
            os.path.relpath(os.path.join(folder, name), self.path)
            for folder, _, names in os.walk(self.path, followlinks=True)
            for name in names
            if name.lower().endswith(SUFFIXES)
        )
        if not self.files:
            raise UserError(f"no images under {path} ({' '.join(SUFFIXES)}).")
        self.labels = labels
        if labels:
            loose = [name for name in self.files if os.sep not in name]
            if loose:
                raise UserError(f"{path} needs a folder for each class; {loose[0]} is in none.")
            self.classes = sorted({name.split(os.sep)[0] for name in self.files})

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        name = self.files[index]
        record = {"key": pathlib.Path(name).as_posix(), "image": decode_image(self.path / name)}
        if self.labels:
            record["label"] = self.classes.index(name.split(os.sep)[0])
        return record


class Coco(Files):
    """What COCO's formats share: a json file of images, annotations and categories."""

    def __init__(self, annotations, images):
        super().__init__(annotations)
        self.folder = _existing(images)
        try:
            contents = json.loads(self.path.read_bytes())
            self.names = {each["id"]: each["name"] for each in contents["categories"]}
            self.images = {each["id"]: each for each in contents["images"]}
            self.annotations = {image: [] for image in self.images}
            for each in contents["annotations"]:
                if each["image_id"] in self.annotations:
                    self.annotations[each["image_id"]].append(each)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{annotations} is not in COCO's format: {_line(error)}.") from None
        self.classes = list(self.names.values())
        self.ids = list(self.images)
        if not self.ids:
            raise UserError(f"{annotations} lists no images.")

    def __len__(self):
        return len(self.ids)


class CocoInstances(Coco):
    """Objects in COCO's instances format, crowds left out."""

    def __getitem__(self, index):
        entry = self.images[self.ids[index]]
        with _checked():
            size = (entry["height"], entry["width"])
            found = [
                _annotation(each, size, category=self.names[each["category_id"]])
                for each in self.annotations[entry["id"]]
                if not each.get("iscrowd")
            ]
            image = decode_image(self.folder / entry["file_name"], size)
        found = [each for each in found if each is not None]
        return {"key": entry["file_name"], "image": image, "annotations": found}


class CocoPanoptic(Coco):
    """Semantic maps from COCO's panoptic format; `maps` is the folder of id-coloured png files."""

    def __init__(self, annotations, images, maps):
        super().__init__(annotations, images)
        self.maps = _existing(maps)
        self.index = {category: i for i, category in enumerate(self.names)}

    def __getitem__(self, index):
        entry = self.images[self.ids[index]]
        with _checked():
            (painted,) = self.annotations[entry["id"]]
            colours = decode_image(self.maps / painted["file_name"]).astype(np.int64)
            ids, inverse = np.unique(colours @ (1, 256, 256**2), return_inverse=True)
            classes = {
                each["id"]: self.index[each["category_id"]] for each in painted["segments_info"]
            }
            labels = np.int32([classes.get(each, -1) for each in ids.tolist()])
            semantic = labels[inverse.reshape(colours.shape[:2])]
            image = decode_image(self.folder / entry["file_name"], semantic.shape)
        return {"key": entry["file_name"], "image": image, "semantic": semantic}


class Sa1b(ImageFolder):
    """SA-1B as released and unpacked: sa_1.jpg beside sa_1.json, in any folders under `path`."""

    def __init__(self, path):
        super().__init__(path)

    def __getitem__(self, index):
        name = self.files[index]
        with _checked():
            contents = json.loads((self.path / name).with_suffix(".json").read_bytes())
            size = (contents["image"]["height"], contents["image"]["width"])
            found = [
                _annotation(each, size, point=each["point_coords"][0])
                for each in contents["annotations"]
            ]
            image = decode_image(self.path / name, size)
        found = [each for each in found if each is not None]
        return {"key": pathlib.Path(name).as_posix(), "image": image, "annotations": found}


def _existing(path):
    if not str(path):
        raise UserError("no path is set; give the path where the data lie.")
    path = pathlib.Path(str(path)).expanduser()
    with os_errors(f"{path} was not read"):
        exists = path.exists()
    if not exists:
        raise UserError(f"{path} does not exist; give the path where the data lie.")
    return path


SOURCES = {
    "folder": ImageFolder,
    "coco_instances": CocoInstances,
    "coco_panoptic": CocoPanoptic,
    "sa1b": Sa1b,
    "shape_scenes": ShapeScenes,
    "shape_objects": ShapeObjects,
}
