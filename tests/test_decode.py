"""Pictures whose metadata, turn or number format readers trip over, and those that are no use."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin
from test_sources import encoded, picture

from samclip_jax.data import decode
from samclip_jax.data.decode import BadRecord, decode_image, is_upright_jpeg, open_image
from samclip_jax.data.pipeline import ClipStream, stream
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import Evaluation, collect, counts

IMAGE, LONG = Image.fromarray(picture()), "x" * 3 * 10**6


def chunk(name, content, check=0):
    check ^= zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def with_text(method, **options):
    texts = PngImagePlugin.PngInfo()
    getattr(texts, method)("a", LONG, **options)
    return encoded(IMAGE, pnginfo=texts)


def at_the_end(*chunks):
    data = encoded(IMAGE)
    return data[:-12] + b"".join(chunks) + data[-12:]


@pytest.mark.parametrize(
    "data",
    [
        with_text("add_text"),
        with_text("add_text", zip=True),
        with_text("add_itxt", zip=True),
        encoded(IMAGE, icc_profile=bytes(3 * 10**6)),
        at_the_end(chunk(b"zTXt", b"a\0\0" + zlib.compress(LONG.encode()))),
        at_the_end(chunk(b"tEXt", b"a\0b", check=1)),
        at_the_end(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9 * 10**5)))] * 80),
    ],
)
def test_metadata_of_a_png_say_nothing_against_its_pixels(data):
    np.testing.assert_array_equal(decode_image(data), picture())


def test_a_png_keeps_its_turn_and_transparency():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert decode_image(encoded(IMAGE, exif=exif)).shape == (40, 24, 3)
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", "<x tiff:Orientation='1' tiff:Orientation=\"6\"/>")
    assert decode_image(encoded(IMAGE, pnginfo=xmp)).shape == (40, 24, 3)


def test_a_jpeg_whose_metadata_pillow_refuses_is_decoded(monkeypatch):
    data = encoded(IMAGE, "JPEG", exif=b"Exif\0\0", quality=95)
    expected = decode_image(data)

    def refuse(*_, **options):
        raise ValueError("too long")

    monkeypatch.setattr(decode.Image, "open", refuse)
    np.testing.assert_array_equal(decode_image(data), expected)
    assert is_upright_jpeg(data)


@pytest.mark.parametrize("form", ["TIFF", "JPEG", "PNG"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_annotations_of_the_stored_size_fit_every_format(form, turn):
    """Pillow turns a TIFF by itself, when it is loaded."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    options = {"exif": exif}
    if form == "TIFF":
        options = {"tiffinfo": TiffImagePlugin.ImageFileDirectory_v2()}
        options["tiffinfo"][ExifTags.Base.Orientation] = turn
    data = encoded(IMAGE, form, **options)
    plain = decode_image(encoded(IMAGE, form))
    upright = IMAGE if turn == 1 else IMAGE.transpose(decode.UPRIGHT[turn])
    assert np.abs(decode_image(data).astype(int) - np.asarray(upright)).max() < 30
    if turn > 4:
        np.testing.assert_array_equal(decode_image(data, (24, 40)), plain)
        assert decode_image(data, (40, 24)).shape == (40, 24, 3)


@pytest.mark.parametrize(
    "grey",
    [
        np.float32([[0, 0.5], [0.25, 1]]),
        np.float32([[-4, 0], [-2, 4]]),
        np.int32([[-2000, 0], [-1000, 2000]]),
    ],
)
def test_levels_of_32_bits_are_scaled_by_their_range(grey):
    decoded = decode_image(encoded(Image.fromarray(grey.repeat(8, 0).repeat(8, 1)), "TIFF"))
    assert decoded.shape == (16, 16, 3)
    assert decoded[::8, ::8, 0].tolist() == [[0, 127], [63, 255]]


def test_levels_of_32_bits_may_have_no_sign():
    """Pillow reads and writes them as if they had one."""
    grey = np.uint32([[0, 2**31], [2**30, 2**32 - 1]]).repeat(8, 0).repeat(8, 1)
    tag = struct.pack("<HHI", ExifTags.Base.SampleFormat, 3, 1)
    data = encoded(Image.fromarray(grey.view(np.int32)), "TIFF")
    decoded = decode_image(data.replace(tag + b"\2", tag + b"\1"))
    assert decoded[::8, ::8, 0].tolist() == [[0, 127], [63, 255]]


def test_levels_that_are_no_numbers_are_black():
    grey = np.float32([[np.nan, 1], [-np.inf, 3]]).repeat(8, 0).repeat(8, 1)
    assert decode_image(encoded(Image.fromarray(grey), "TIFF"))[::8, ::8, 0].tolist() == [
        [0, 0], [0, 255]
    ]  # fmt: skip
    flat = np.full((9, 9), np.nan, np.float32)
    assert not decode_image(encoded(Image.fromarray(flat), "TIFF")).any()


def test_a_pgm_of_16_bits_keeps_its_scale():
    data = b"P5 9 9 65535\n" + np.full((9, 9), 257 * 100, ">u2").tobytes()
    assert (decode_image(data) == 100).all()


class Source:
    """Ten images, the first of which `fail` makes unusable."""

    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 10

    def __repr__(self):
        return "Source()"

    def __getitem__(self, index):
        image = np.zeros((20, 20, 3), np.uint8)
        return {"key": str(index), "image": self.fail() if index == 0 else image}


def no_memory():
    raise MemoryError


def counting(source):
    """An Evaluation that counts images."""
    return Evaluation("counting", source, 4, None, dict, lambda samples: {}, lambda totals: ())


def test_what_does_not_fit_into_memory_is_named():
    """It is no damage of the picture, so no other one takes its place."""
    message = r"record 0 of Source\(\) does not fit into memory"
    with pytest.raises(UserError, match=message):
        batches = stream(Source(no_memory), ClipStream(10, (16,), 16), seed=0)
        next(batches)
    with pytest.raises(UserError, match=message):
        collect(counting(Source(no_memory)))


@pytest.mark.parametrize("place", ["open", "Image.load"])
def test_too_little_memory_is_no_damage(monkeypatch, place):
    data = encoded(IMAGE)
    holder, name = (Image.Image, "load") if place == "Image.load" else (Image, "open")
    monkeypatch.setattr(holder if name == "open" else PngImagePlugin.PngImageFile, name,
                        lambda *_, **options: no_memory())  # fmt: skip
    with pytest.raises(MemoryError):
        decode_image(data)


def test_a_minimum_side_holds_in_training_and_in_evaluation():
    source = Source(lambda: np.zeros((decode.MIN_SIDE - 1, 900, 3), np.uint8))
    batch = next(stream(source, ClipStream(10, (16,), 16), seed=0))
    assert batch["rejected"][decode.REASONS.index("too_small")] >= 1
    totals = collect(counting(source))
    assert dict(counts(source, totals)) == {"images": 9, "images_skipped": 1}
    assert totals["skipped/too_small"] == 1


def test_only_the_first_of_several_pictures_is_taken():
    others = [Image.fromarray(picture()[::-1]), Image.fromarray(picture()[:, ::-1])]
    for form in ("TIFF", "PNG", "WEBP"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = encoded(IMAGE, form, save_all=True, append_images=others, **options)
        np.testing.assert_array_equal(decode_image(data), picture())


def test_formats_of_pixels_that_are_not_read_have_a_reason():
    data = bytearray(encoded(IMAGE, "TIFF"))
    with Image.open(io.BytesIO(data)) as image:
        assert image.tag_v2[ExifTags.Base.BitsPerSample] == (8, 8, 8)
    place = data.index(struct.pack("<HHI", ExifTags.Base.PhotometricInterpretation, 3, 1)) + 8
    data[place] = 77
    with pytest.raises(BadRecord, match="unsupported: TIFF of these pixels"):
        open_image(bytes(data))
