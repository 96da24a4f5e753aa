"""The views that models take: their geometry is CLIP's and SAM's own."""

import io

import numpy as np
import pytest
from PIL import Image

from samclip_jax.data import transforms
from samclip_jax.data.decode import Jpeg, open_image


def ramp(height, width):
    """Red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / (width - 1), 255 * y / (height - 1), 0 * x], -1).astype(np.uint8)


@pytest.mark.parametrize("shape", [(60, 80), (200, 20), (20, 200), (2, 2)])
def test_a_random_crop_keeps_its_share_and_its_orientation(shape):
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop = transforms.random_resized_crop(ramp(*shape), 32, rng)
        assert crop.shape == (32, 32, 3) and crop.dtype == np.uint8
        reach = np.ptp(crop.astype(int), axis=(0, 1))[:2]  # of x, of y
        assert reach.min() > 0
        if max(shape) / min(shape) < 4 / 3 + 0.01 and min(shape) > 2:
            assert 0.75 < reach.prod() / 255**2 < 1.02
    assert (np.diff(crop[..., 0].astype(int), axis=1) >= 0).all()
    assert (np.diff(crop[..., 1].astype(int), axis=0) >= 0).all()


def test_a_random_crop_is_drawn_from_its_generator():
    image = ramp(60, 80)
    draws = [transforms.random_resized_crop(image, 16, np.random.default_rng(i)) for i in (1, 1, 2)]
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()


@pytest.mark.parametrize("size, allowed", [(24, 8), (64, 4), (224, 4)])
def test_a_crop_of_a_jpeg_is_that_of_its_pixels(size, allowed):
    """Decoded at 1/8, 3/8 and whole; where a crop ends between pixels, half a pixel is 4 levels."""
    file = io.BytesIO()
    Image.fromarray(ramp(241, 403)).save(file, "JPEG", quality=95)
    jpeg = open_image(file.getvalue())
    for seed in range(5):
        found, expected = (
            transforms.random_resized_crop(image, size, np.random.default_rng(seed)).astype(int)
            for image in (jpeg, np.asarray(jpeg))
        )
        assert np.abs(found - expected).max() <= allowed


@pytest.mark.parametrize(
    "side, filter, decoded",
    [
        (440, transforms.BILINEAR, 220),
        (440, transforms.BICUBIC, 275),
        (400, transforms.BILINEAR, 250),
    ],
)
def test_half_a_jpeg_may_lack_a_fifteenth(side, filter, decoded, monkeypatch):
    """Of bilinear resizing to 224 px; the filter of preparation and evaluation has all it needs."""
    file = io.BytesIO()
    Image.fromarray(ramp(side, side)).save(file, "JPEG", quality=95)
    jpeg, shapes, original = open_image(file.getvalue()), [], Jpeg.at_least

    def noted(self, height, width):
        small = original(self, height, width)
        shapes.append(small.shape[0])
        return small

    expected = transforms.resize(np.asarray(jpeg), 224, 224, filter).astype(int)
    monkeypatch.setattr(Jpeg, "at_least", noted)
    assert np.abs(transforms.resize(jpeg, 224, 224, filter) - expected).max() <= 4
    assert shapes == [decoded]


@pytest.mark.parametrize("shape", [(2, 2), (3, 5), (2, 900), (500, 4)])
def test_a_crop_of_a_tiny_jpeg_is_never_empty(shape):
    file = io.BytesIO()
    Image.fromarray(ramp(*shape)).save(file, "JPEG")
    for seed in range(50):
        rng = np.random.default_rng(seed)
        crop = transforms.random_resized_crop(open_image(file.getvalue()), 16, rng, (0.01, 1))
        assert crop.shape == (16, 16, 3)


@pytest.mark.parametrize("shape", [(300, 400), (401, 300), (97, 97), (50, 333)])
def test_centre_crop_is_openclips(shape):
    """As torchvision has it: Resize(size, BICUBIC) truncates, CenterCrop rounds half to even."""
    crop = transforms.centre_crop(ramp(*shape), 64)
    height, width = shape
    new = (64, int(64 * width / height)) if height <= width else (int(64 * height / width), 64)
    image = Image.fromarray(ramp(*shape)).resize(new[::-1], Image.Resampling.BICUBIC)
    left, top = int(round((new[1] - 64) / 2)), int(round((new[0] - 64) / 2))
    np.testing.assert_array_equal(crop, image.crop((left, top, left + 64, top + 64)))


@pytest.mark.parametrize(
    "shape, new",
    [((480, 640), (768, 1024)), ((640, 427), (1024, 683)), ((1500, 2250), (683, 1024)),
     ((3, 5000), (1, 1024))],
)  # fmt: skip
def test_longest_side_is_segment_anythings(shape, new):
    """Rounded half up; never less than one pixel."""
    assert transforms.longest_shape(*shape, 1024) == new
    assert transforms.resize_longest(ramp(*shape), 1024).shape[:2] == new


def test_coordinates_follow_the_picture():
    """A mark stays under its coordinates, on both axes."""
    image = np.zeros((40, 100, 3), np.uint8)
    image[10:22, 70:90] = 255
    small = transforms.resize_longest(image, 50)
    corners = transforms.scale_coords([[70, 10], [90, 22]], (40, 100), small.shape[:2])
    assert corners.dtype == np.float32 and corners.tolist() == [[35, 5], [45, 11]]
    assert transforms.scale_coords([10, 10], (100, 50), (30, 10)).tolist() == [2, 3]
    marked = np.argwhere(small[..., 0] > 127)
    assert marked.min(0).tolist() == [5, 35] and marked.max(0).tolist() == [10, 44]


def test_padding_is_below_and_to_the_right():
    padded = transforms.pad(np.full((3, 5, 3), 7, np.uint8), 8)
    assert padded.shape == (8, 8, 3) and padded.dtype == np.uint8
    assert (padded[:3, :5] == 7).all() and padded.sum() == 7 * 45


@pytest.mark.parametrize("shape", [(24, 224), (300, 20), (7, 1999)])
def test_a_slender_picture_is_cropped_as_any_other(shape, monkeypatch):
    """Before it is enlarged: the same pixels, but for rounding between Pillow's passes."""
    image = ramp(*shape)
    found = transforms.centre_crop(image, 32).astype(int)
    monkeypatch.setattr(transforms, "SLENDER", 10**9)
    assert np.abs(found - transforms.centre_crop(image, 32)).max() <= 1


@pytest.mark.parametrize("shape", [(1, 12000), (12000, 1), (1, 1)])
def test_a_line_of_pixels_fills_no_memory(shape, monkeypatch):
    sizes, resize = [], transforms.resize

    def noted(image, height, width, *more, **options):
        sizes.append(height * width)
        return resize(image, height, width, *more, **options)

    monkeypatch.setattr(transforms, "resize", noted)
    image = np.full((*shape, 3), 9, np.uint8)
    assert (transforms.centre_crop(image, 224) == np.full((224, 224, 3), 9)).all()
    assert transforms.resize_longest(image, 64).shape[:2] in ((1, 64), (64, 1), (64, 64))
    transforms.random_resized_crop(image, 64, np.random.default_rng(0))
    assert max(sizes) <= 8 * 224**2
