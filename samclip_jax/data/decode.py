"""Photographs and their annotations as they are found in the world, dirt included, to arrays."""

import contextlib
import io
import json
import math
import pathlib
import struct

import numpy as np
import simplejpeg
from PIL import ExifTags, Image
from pycocotools import mask as rle

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


# Images

# The safe readers only: Pillow also starts Ghostscript for an EPS that calls itself .jpg.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm")
# Markers of a JPEG: frames, sequential and progressive; segments before the scan; EXIF and XMP.
FRAMES, SCAN, APP1 = (0xC0, 0xC1, 0xC2), 0xDA, 0xE1
TABLES = (0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))
UPRIGHT = {  # EXIF orientation -> what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(image, size=None):  # -> uint8 [H, W, 3]
    """`open_image`, decoded."""
    return np.asarray(open_image(image, size))


def open_image(image, size=None):  # bytes or path -> uint8 [H, W, 3], or a Jpeg
    """Any photograph as upright 8-bit RGB, or BadRecord.

    size: (height, width) that annotations were made for. Some were drawn on the picture as it is
    stored, so EXIF orientation is undone where only that fits.
    """
    data = image if isinstance(image, bytes) else _read(image)
    if not data:
        raise BadRecord("empty", "zero bytes")
    shape, turned = _frame(data)
    if shape and not turned:
        return _jpeg(data, shape, size)
    try:
        stored = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadRecord("too_large", error) from None
    except Exception:  # readers trip over hostile headers in every possible way
        raise BadRecord("not_an_image", f"it begins with {data[:20]}") from None
    if min(stored.size) < 2:
        raise BadRecord("too_small", f"{stored.width} x {stored.height} px")
    if shape == (stored.height, stored.width) and UPRIGHT.get(orientation(stored)) is None:
        return _jpeg(data, shape, size)
    return _decode(stored, size)


def is_upright_jpeg(data):
    """Whether these bytes, an image file, are a JPEG that need not be turned."""
    with Image.open(io.BytesIO(data)) as stored:
        jpeg = stored.format in ("JPEG", "MPO")  # MPO: a JPEG with others after it, as phones make
        return jpeg and UPRIGHT.get(orientation(stored)) is None


def _frame(data):
    """Of a JPEG that libjpeg-turbo decodes at any scale, three colours of 8 bits coded by Huffman:
    its (height, width), and whether something in it may say that it lies turned (EXIF, XMP). Else
    None, None."""
    shape, turned, place = None, False, 2
    while data.startswith(b"\xff", place) and len(data) > place + 9:
        marker, content = data[place + 1], place + 4
        if marker == SCAN:
            limit = Image.MAX_IMAGE_PIXELS or math.inf
            fits = shape and min(shape) > 1 and math.prod(shape) <= limit
            return (shape, turned) if fits and data.startswith(b"\xff\xd8") else (None, None)
        if marker in FRAMES:
            bits, height, width, colours = struct.unpack_from(">BHHB", data, content)
            shape = (height, width) if (bits, colours) == (8, 3) else None
        elif marker not in TABLES:
            break
        turned |= marker == APP1
        place += 2 + int.from_bytes(data[place + 2 : content])
    return None, None


def _jpeg(data, shape, size):
    if size is not None and tuple(size) != shape:
        raise BadRecord("bad_annotation", f"made for {size}, the image is {shape}")
    return Jpeg(data, shape)


class Jpeg:
    """An RGB image file that lies upright, decoded when numpy asks for the array, by libjpeg-turbo.

    shape: of the array, uint8 [H, W, 3]. BadRecord, then, where the pixels are damaged.
    """

    def __init__(self, data, shape):
        self._data, self.shape = data, (*shape, 3)

    def __array__(self, dtype=None, copy=None):
        return self.at_least(*self.shape[:2]).astype(dtype or np.uint8, copy=False)

    def at_least(self, height, width):  # -> uint8 [h, w, 3]
        """The smallest of eighths of the image with so many px, which cost less to decode."""
        try:
            return simplejpeg.decode_jpeg(self._data, min_height=height, min_width=width)
        except ValueError:  # of what Pillow forgives, too
            return _decode(io.BytesIO(self._data))


def _decode(stored, size=None):
    try:
        stored = stored if isinstance(stored, Image.Image) else Image.open(stored, formats=FORMATS)
        stored.load()
        turn = UPRIGHT.get(orientation(stored))
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


def orientation(image):
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


def label_map(path, values):  # -> int32 [H, W]
    """The index in `values` of each pixel of a grey or palette png, -1 where it is none of them.

    BadRecord where it is missing, damaged or of colours.
    """
    data = _read(path)
    try:
        pixels = np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))
    except Exception as error:  # readers trip over damaged files in every possible way
        raise BadRecord("bad_annotation", f"{path}: {line(error)}") from None
    if pixels.ndim != 2:
        raise BadRecord("bad_annotation", f"{path} has colours, not classes")
    indices = np.full(1 << 16, -1, np.int32)
    indices[values] = range(len(values))
    return indices[pixels.astype(np.uint16)]


class CompressedMask:
    """COCO polygons or run lengths of an image of `size` that become bool [H, W] when numpy asks
    for the array: of that size or, the nearest pixels, of `shape`."""

    def __init__(self, segmentation, size, shape=None):
        self.segmentation, self.size, self.shape = segmentation, size, shape or size

    def __array__(self, dtype=None, copy=None):
        try:
            counts, (height, width) = self.lengths(), self.size
        except Exception as error:  # pycocotools raises bare Exceptions too
            raise BadRecord("bad_annotation", line(error)) from None
        mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(width, height).T
        if self.shape != self.size:
            rows, columns = (
                ((np.arange(new) + 0.5) * old / new).astype(int)
                for new, old in zip(self.shape, self.size, strict=True)
            )
            mask = mask[np.ix_(rows, columns)]
        return mask.astype(bool if dtype is None else dtype)

    def lengths(self):
        """Run lengths down the columns, off and on by turns. ValueError where they do not fit.

        Never decoded by pycocotools, which fills a mask whose runs end early with whatever lies in
        memory.
        """
        if isinstance(self.segmentation, list):
            merged = rle.merge(rle.frPyObjects(self.segmentation, *self.size))
            return _run_lengths(merged["counts"])
        counts = self.segmentation["counts"]
        counts = np.array(counts if isinstance(counts, list) else _run_lengths(counts))
        height, width = self.size
        if tuple(self.segmentation["size"]) != self.size or counts.sum() != height * width:
            raise ValueError(f"the mask is not of {self.size} px")
        return counts


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


def annotation(entry, size, point=None, category=None):
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


def sa1b_objects(data):
    """SA-1B's json, bytes -> (size, [(entry, point)]); what is wrong in it is for `checked`."""
    contents = json.loads(data)
    size = contents["image"]["height"], contents["image"]["width"]
    return size, [(each, each["point_coords"][0]) for each in contents["annotations"]]


@contextlib.contextmanager
def checked():
    """What json that is not as it should be raises becomes BadRecord."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise BadRecord("bad_annotation", line(error)) from None


def line(error):
    return f"{type(error).__name__} {error}".partition("\n")[0]
