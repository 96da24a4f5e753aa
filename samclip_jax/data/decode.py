"""Photographs as they are found in the world, dirt included, to arrays."""

import io
import math
import pathlib
import stat
import struct

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, features

from samclip_jax.data.storage import retried

REASONS = (
    "unreadable",  # no file lies where one should; errors of the storage are none of the record
    "empty",  # zero bytes
    "not_an_image",
    "truncated",  # the pixel data ends early or is damaged
    "too_small",  # a side under MIN_SIDE: a web page's counter or rule, not a photograph
    "too_large",  # a decompression bomb by Pillow's limit
    "bad_annotation",  # missing, malformed, or made for an image of another size
    "no_annotation",  # nothing that could be prompted or learnt from
    "unsupported",  # a picture in a format that is not read here, such as HEIC
    "other_image",  # of a sample of several images; another one is its picture
)


MIN_SIDE = 8  # px, in training and evaluation; data.prepare has --min_side


class BadRecord(Exception):
    """A record that cannot be used: `reason` is one of REASONS, `detail` says more."""

    def __init__(self, reason, detail):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


# The safe readers only: Pillow also starts Ghostscript for an EPS that calls itself .jpg.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".jp2", ".j2k", ".j2c", ".jpx", ".jpf", ".ppm", ".pgm", ".pbm", ".pnm", ".apng", ".mpo"),
)
UNSUPPORTED = (
    *(".heic", ".heif", ".hif", ".jxl", ".psd", ".ico", ".tga", ".dds", ".exr", ".hdr", ".pfm"),
    *(".jxr", ".qoi", ".svg", ".eps", ".dib", ".pcx", ".xcf", ".raw", ".dng", ".cr2", ".cr3"),
    *(".nef", ".arw", ".orf", ".rw2", ".raf"),
)
if features.check("avif"):  # wheels of some platforms come without the decoder
    FORMATS, SUFFIXES = (*FORMATS, "AVIF"), (*SUFFIXES, ".avif")
else:
    UNSUPPORTED = (*UNSUPPORTED, ".avif")
PICTURES = SUFFIXES + UNSUPPORTED  # files of other names are no inputs
# How files begin that are pictures whatever their names: phones call HEIC .jpg.
SIGNATURES = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "Photoshop",
    b"II*\0": "TIFF of these pixels",
    b"MM\0*": "TIFF of these pixels",
}
BRANDS = dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "HEIC")
BRANDS |= dict.fromkeys((b"avif", b"avis"), "AVIF")
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
INVERSE = {turn: turn for turn in UPRIGHT.values()} | {
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
}
# Of a PNG, what says how its pixels look: critical chunks begin with a capital letter.
PNG, PNG_XMP = b"\x89PNG\r\n\x1a\n", b"XML:com.adobe.xmp\0\0"


def decode_image(image, size=None):  # -> uint8 [H, W, 3]
    """`open_image`, decoded."""
    return np.asarray(open_image(image, size))


def open_image(image, size=None, name=None):  # bytes or path -> uint8 [H, W, 3], or a Jpeg
    """Any photograph as upright 8-bit RGB, or BadRecord.

    size: (height, width) that annotations were made for. Some were drawn on the picture as it is
    stored, so EXIF orientation is undone where only that fits. name: of the file whose bytes these
    are, which says what it was meant to be where it cannot be read.
    """
    data = image if isinstance(image, bytes) else read_file(image)
    name = image if name is None and data is not image else name or ""
    suffix = pathlib.PurePath(name).suffix.lower()
    if not data:
        raise BadRecord("empty", "zero bytes")
    shape, turned = _frame(data)
    if shape and not turned:
        return _jpeg(data, shape, size)
    try:
        stored = Image.open(io.BytesIO(_without_texts(data)), formats=FORMATS)
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise BadRecord("too_large", error) from None
    except Exception:  # readers trip over hostile headers in every possible way
        if shape:  # over what only says something of the picture
            return _jpeg(data, shape, size)
        raise _unidentified(data, suffix) from None
    if stored.format == "TIFF" and suffix in UNSUPPORTED:  # a camera's raw file: a thumbnail in it
        raise _unidentified(data, suffix)
    require_side((stored.height, stored.width), 2)
    if shape == (stored.height, stored.width) and UPRIGHT.get(orientation(stored)) is None:
        return _jpeg(data, shape, size)
    return _decode(stored, size)


def require_side(shape, least=MIN_SIDE):
    """BadRecord where an image of this shape, (height, width, ...), has a side under `least` px."""
    if min(shape[:2], default=least) < least:
        raise BadRecord("too_small", f"{shape[1]} x {shape[0]} px")


def _unidentified(data, suffix):  # -> BadRecord
    form = next((form for start, form in SIGNATURES.items() if data.startswith(start)), None)
    if data[4:8] == b"ftyp":
        form = BRANDS.get(data[8:12])
    if suffix in UNSUPPORTED:
        form = form or suffix[1:].upper()
    if form in (None, *FORMATS):
        return BadRecord("not_an_image", f"it begins with {data[:20]}")
    return BadRecord("unsupported", f"{form} is not read here; make it a JPEG")


def _without_texts(data):
    """A PNG without chunks that do not change its pixels: Pillow refuses long texts and profiles,
    and damaged ones."""
    if not data.startswith(PNG):
        return data
    chunks, place = [PNG], len(PNG)
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        name, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + len(PNG_XMP)]
        xmp = content == PNG_XMP and end - place < 1 << 16  # may have the orientation
        if name[:1].isupper() or name in (b"tRNS", b"eXIf") or xmp:
            chunks.append(data[place:end])
        place = end
    return b"".join(chunks)


def is_upright_jpeg(data):
    """Whether these bytes, an image that can be decoded, are a JPEG that need not be turned."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as stored:
            return UPRIGHT.get(orientation(stored)) is None
    except Exception:  # as in open_image
        return _frame(data)[0] is not None


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


def _decode(file, size=None):
    try:
        file = file if isinstance(file, Image.Image) else Image.open(file, formats=FORMATS)
        turn = UPRIGHT.get(orientation(file))
        file.load()
        stored = upright = file
        left = UPRIGHT.get(orientation(file))  # after loading: Pillow turns a TIFF by itself
        if left is not None:
            upright = file.transpose(left)
        elif turn is not None:
            stored = file.transpose(INVERSE[turn])
    except MemoryError:
        raise
    except Exception as error:
        raise BadRecord("truncated", error) from None
    pictures = {(each.height, each.width): each for each in (stored, upright)}
    picture = upright if size is None else pictures.get(tuple(size))
    if picture is None:
        raise BadRecord("bad_annotation", f"made for {size}, the image is {upright.size[::-1]}")
    if picture.mode[0] in "IF":
        return np.repeat(_eight_bits(np.asarray(picture), file)[..., None], 3, axis=-1)
    return _rgb(picture)


def read_file(path, absent="unreadable"):  # -> bytes
    """What lies at `path`; BadRecord of the reason `absent` where no file does.

    UserError where the storage does not answer (storage.retried).
    """
    try:
        if stat.S_ISREG(retried(pathlib.Path(path).stat, path).st_mode):
            return retried(pathlib.Path(path).read_bytes, path)
        raise BadRecord(absent, f"{path} is no file of data")  # a pipe would never end
    except (OSError, ValueError) as error:  # a null character in a name is a ValueError
        raise BadRecord(absent, error) from None


def orientation(image):
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF says nothing against the pixels
        return None


def _eight_bits(grey, file):  # int or float [H, W] -> uint8 [H, W]
    """By the full range of 16 bits or fewer without a sign, else from the least to the greatest
    level: nothing says what white is in 32 bits. NaN and infinity are black."""
    tags = getattr(file, "tag_v2", {})  # a TIFF's
    if file.mode != "F" and (file.mode.startswith("I;16") or not tags):
        bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
        low, high = 0, 2**bits - 1
    else:
        if tags.get(ExifTags.Base.SampleFormat) == (1,) and grey.dtype == np.int32:
            grey = grey.view(np.uint32)
        finite = grey[np.isfinite(grey)].astype(np.float64)
        low, high = (finite.min(), finite.max()) if finite.size else (0, 1)
    levels = (np.float64(grey) - low) * (255 / max(high - low, np.finfo(np.float64).tiny))
    return np.where(np.isfinite(grey), np.clip(levels, 0, 255), 0).astype(np.uint8)


def _rgb(image):  # PIL image of any other mode -> uint8 [H, W, 3]
    """Transparency over white, the page such pictures are made for: dropping the alpha would show
    whatever colour lies hidden under it."""
    try:
        if image.has_transparency_data:
            page = Image.new("RGBA", image.size, "white")
            page.alpha_composite(image.convert("RGBA"))
            image = page
        return np.asarray(image.convert("RGB"))
    except ValueError as error:  # L*a*b*
        raise BadRecord("unsupported", error) from None


def line(error):
    return f"{type(error).__name__} {error}".partition("\n")[0]
