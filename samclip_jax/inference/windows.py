"""A large image read by overlapping square windows, whose features are averaged."""

import dataclasses
import itertools

import numpy as np

from samclip_jax.data import transforms
from samclip_jax.errors import UserError


class Windows:
    """Windows of a Reading: of `window` px every `stride` px, half a window if None, the last one
    at the image's end; where several see a patch, its feature is the mean of theirs, of unit length
    again (RADSeg averages features; means of cosines, as mmsegmentation has them, are the same but
    for that length).

    An image's short side becomes `short` px; both become multiples of `patch`, px. UserError unless
    these fit together.
    """

    def __init__(self, reading, patch):
        self.short, self.side, self.patch = reading.short, reading.window, patch
        half = max(patch, self.side // 2 // patch * patch)
        self.stride = half if reading.stride is None else reading.stride
        if self.side % patch or self.stride % patch:
            raise UserError(f"reading.window and stride must be multiples of the patch, {patch} px")
        if not self.stride <= self.side <= self.short:
            raise UserError("reading.window must be at least stride and at most short")

    def read(self, model, images, rows, reading, **options):  # -> of each [h / patch, w / patch, D]
        """The features of images by model.patch_embeddings of `rows` windows at a time; a map that
        is correlated with itself is the joined one (RADSeg)."""
        alone = dataclasses.replace(reading, self_correlation=False)
        parts = [self.cut(image) for image in images]
        every = np.concatenate(parts)
        missing = -len(every) % rows  # a last, shorter batch keeps the compiled shape
        every = np.pad(every, [(0, missing), (0, 0), (0, 0), (0, 0)])
        batches = (every[i : i + rows] for i in range(0, len(every), rows))
        features = [model.patch_embeddings(each, reading=alone, **options) for each in batches]
        ends = np.cumsum([len(part) for part in parts])
        features = np.split(np.concatenate(features), ends)[: len(parts)]
        maps = [*map(self.joined, images, features)]
        return [model.self_correlated(each) for each in maps] if reading.self_correlation else maps

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
