"""inference/images.py: what is no photograph is one sentence that says what makes it one."""

import numpy as np
import pytest
from PIL import Image

from samclip_jax.errors import UserError
from samclip_jax.inference.images import BATCH, PHOTOGRAPH, checked

RGB = np.zeros((4, 5, 3), np.uint8)


def test_arrays_and_pillows_images_are_photographs():
    assert checked("image", RGB, PHOTOGRAPH) is RGB
    assert checked("image", Image.new("RGB", (5, 4)), PHOTOGRAPH).shape == (4, 5, 3)
    assert checked("images", [RGB, Image.new("RGB", (5, 4))], BATCH).shape == (2, 4, 5, 3)


@pytest.mark.parametrize(
    "image, axes, sentence",
    [
        (RGB / 255, PHOTOGRAPH, r"image: need uint8 \[H, W, 3\].* give \(255 \* image\)"),
        (RGB[..., 0], PHOTOGRAPH, "convert it to RGB"),
        (Image.new("RGBA", (5, 4)), PHOTOGRAPH, "convert it to RGB"),
        (Image.new("LA", (5, 4)), PHOTOGRAPH, "convert it to RGB"),
        (RGB.transpose(2, 0, 1), PHOTOGRAPH, "put the channels last"),
        (RGB[None], PHOTOGRAPH, "one photograph at a time"),
        (RGB.astype(np.uint16), PHOTOGRAPH, "bring it to 0 to 255"),
        (RGB[:0], PHOTOGRAPH, r"got uint8 \[0, 5, 3\]"),
        ("photo.jpg", PHOTOGRAPH, r"Image.open\(path\)"),
        (None, PHOTOGRAPH, r"Image.open\(path\)"),
        (RGB, BATCH, r"add the first axis, image\[None\]"),
        (RGB[None, ..., 0], BATCH, "convert it to RGB"),
        ([RGB, RGB[:2]], BATCH, "images of different sizes one by one"),
        ([], BATCH, r"got float64 \[0\]"),
    ],
)
def test_what_is_no_photograph(image, axes, sentence):
    with pytest.raises(UserError, match=sentence):
        checked("image", image, axes)


def test_a_damaged_file_is_said(tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(UserError, match="image: need uint8"):
        checked("image", Image.open(tmp_path / "b.png"), PHOTOGRAPH)
