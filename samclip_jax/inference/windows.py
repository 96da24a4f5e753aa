"""A large image read by overlapping square windows, whose features are averaged."""

import itertools

import numpy as np

from samclip_jax.data import transforms
from samclip_jax.errors import UserError


class Windows:
    """Windows of `side` px every `stride` px, the last one at the image's end; where several see a
    patch, its feature is the mean of theirs, of unit length again (RADSeg averages features; means
    of cosines, as mmsegmentation has them, are the same but for that length).

    short: px, what an image's short side is resized to; both become multiples of `patch`, px.
    stride: half a window if None. UserError unless these fit together.
    """

    def __init__(self, short, side, stride, patch):
        self.short, self.side, self.patch = short, side, patch
        self.stride = max(patch, side // 2 // patch * patch) if stride is None else stride
        if side % patch or self.stride % patch:
            raise UserError(f"window and stride must be multiples of the model's patch, {patch} px")
        if not self.stride <= side <= short:
            raise UserError("window must be at least stride and at most short")

    @classmethod
    def of(cls, model, reading):
        """Those of a Reading for a model; a CLIP's are of its own size."""
        return cls(reading.short, model.side or reading.window, reading.stride, model.patch)

    def read(self, images, embeddings, rows):  # -> of each [h / patch, w / patch, D]
        """The features of images by embeddings(uint8 [rows, side, side, 3])."""
        parts = [self.cut(image) for image in images]
        every = np.concatenate(parts)
        missing = -len(every) % rows  # a last, shorter batch keeps the compiled shape
        every = np.pad(every, [(0, missing), (0, 0), (0, 0), (0, 0)])
        features = [embeddings(every[i : i + rows]) for i in range(0, len(every), rows)]
        ends = np.cumsum([len(part) for part in parts])
        features = np.split(np.concatenate(features), ends)[: len(parts)]
        return [*map(self.joined, images, features)]

    def resized(self, image):  # uint8 [H, W, 3] -> uint8 [h, w, 3]
        scale = self.short / min(image.shape[:2])
        sides = (
            max(self.side, round(side * scale / self.patch) * self.patch)
            for side in image.shape[:2]
        )
        return transforms.resize(image, *sides, transforms.BICUBIC)

    def cut(self, image):  # uint8 [h, w, 3] -> uint8 [n, side, side, 3]
        return np.stack([image[y : y + self.side, x : x + self.side] for y, x in self._at(image)])

    def joined(self, image, features):  # [n, k, k, D] -> [h / patch, w / patch, D]
        """Of the windows of `image`."""
        rows, columns = (side // self.patch for side in image.shape[:2])
        total = np.zeros((rows, columns, features.shape[-1]), np.float32)
        for (y, x), feature in zip(self._at(image), features, strict=True):
            y, x = y // self.patch, x // self.patch
            total[y : y + len(feature), x : x + len(feature)] += feature
        return total / np.linalg.norm(total, axis=-1, keepdims=True)

    def _at(self, image):  # -> (y, x) of each window, px
        return itertools.product(
            *(
                [*range(0, length - self.side, self.stride), length - self.side]
                for length in image.shape[:2]
            )
        )
