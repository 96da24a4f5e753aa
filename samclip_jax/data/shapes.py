"""The procedural world: textured objects on named grounds, with masks, class names and captions.

An image is a pure function of (split, seed, index), drawn in some milliseconds. An object is known
by its coat, a pattern of two colours or one plain colour: a zebra is striped in black and white,
whatever its outline, its size, its turn and the light. So any patch of it can tell what it is. Its
6 grounds are classes too, so that every pixel has a name. All lengths are fractions of the image's
side.

    ShapeScenes   some objects, occlusion, one or two grounds: for SAM, for segmentation and, with a
                  caption that names all of it, for CLIP
    ShapeObjects  one main object, smaller ones beside it: for classification
"""

import math
from typing import Annotated

import cv2
import numpy as np

from samclip_jax.errors import UserError
from samclip_jax.validation import (
    Area,
    PositiveInt,
    Range,
    Seed,
    Share,
    as_tuple,
    check,
)

COATS = {  # class: pattern, colour of the body, colour of the pattern; no two have like colours
    "zebra": ("stripes", (240, 238, 232), (26, 26, 30)),
    "tiger": ("stripes", (244, 130, 24), (30, 24, 22)),
    "bee": ("stripes", (250, 214, 40), (40, 30, 20)),
    "candy cane": ("stripes", (246, 242, 240), (220, 30, 42)),
    "sailor shirt": ("stripes", (236, 240, 246), (30, 60, 190)),
    "watermelon": ("stripes", (124, 214, 76), (20, 92, 40)),
    "clownfish": ("stripes", (246, 240, 232), (246, 124, 20)),
    "orchid": ("stripes", (244, 236, 246), (150, 40, 176)),
    "ladybird": ("dots", (216, 32, 30), (24, 20, 22)),
    "strawberry": ("dots", (226, 40, 48), (252, 222, 64)),
    "dart frog": ("dots", (36, 186, 226), (20, 22, 34)),
    "cactus": ("dots", (16, 124, 70), (240, 240, 226)),
    "doughnut": ("dots", (70, 36, 20), (255, 130, 180)),
    "tablecloth": ("checks", (244, 244, 242), (30, 176, 214)),
    "giraffe": ("net", (104, 54, 22), (246, 226, 176)),
    "lemon": ("plain", (252, 232, 56), (252, 232, 56)),
    "plum": ("plain", (108, 34, 130), (108, 34, 130)),
    "flamingo": ("plain", (255, 112, 172), (255, 112, 172)),
    "sapphire": ("plain", (28, 60, 214), (28, 60, 214)),
    "raven": ("plain", (34, 34, 38), (34, 34, 38)),
}
GROUNDS = {
    "grass": (112, 148, 82),
    "sand": (206, 180, 130),
    "water": (84, 142, 172),
    "snow": (214, 222, 232),
    "stone": (128, 126, 124),
    "wood": (146, 102, 68),
}
OBJECT_CLASSES = tuple(COATS)
CLASSES = OBJECT_CLASSES + tuple(GROUNDS)
TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "a small {}.",
    "a large {}.",
    "there is a {} here.",
    "a {}.",
)
Count = Annotated[int, Range(ge=0, le=len(OBJECT_CLASSES))]
Radius = Annotated[float, Range(gt=0, le=0.5)]
OPTIONS = {  # of the sources
    "size": PositiveInt,
    "image_size": PositiveInt,
    "seed": Seed,
    "keep": bool,
    "objects": tuple[Count, Count],
    "radius": tuple[Radius, Radius],
    "others": tuple[Area, Area],
    "empty": Share,
}
SPLITS = ("teachers", "train", "tuning", "final")  # no image of one is in another


def vocabulary():
    """Every word that a caption or a template can hold, sorted."""
    text = " ".join((*TEMPLATES, *CLASSES, "a an and on")).replace("{}", "").replace(".", " . ")
    return sorted(set(text.split()))


def require_options(**options):
    """UserError names an option that is not what OPTIONS says, or whose first exceeds its last."""
    for name, value in options.items():
        check(name, value, OPTIONS[name])
        if isinstance(value, tuple) and value[0] > value[1]:
            raise UserError(f"{name} must be the least and the greatest, got {value}")


class ShapeScenes:
    """Scenes of `objects` = (fewest, most) objects of distinct classes on one or two grounds, with
    `radius` = (smallest, largest) in parts of the side; one that finds no place is left out.

    The grounds are annotated like the objects. `keep=True`: what was drawn once stays in memory,
    about 12 bytes a pixel.
    """

    classes = CLASSES
    kind = 0  # keeps its random numbers apart from those of ShapeObjects

    def __init__(
        self, split, size, image_size=192, seed=0, keep=False, objects=(2, 4), radius=(0.16, 0.25)
    ):
        if split not in SPLITS:
            raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        objects, radius = as_tuple(objects), as_tuple(radius)
        require_options(
            size=size, image_size=image_size, seed=seed, keep=keep, objects=objects, radius=radius
        )
        self.split, self.size, self.image_size, self.seed = split, size, image_size, seed
        self.objects, self.radius = objects, radius
        self.drawn = {} if keep else None

    def __len__(self):
        return self.size

    def __repr__(self):  # Grain compares sources by it when it resumes
        settings = {name: value for name, value in vars(self).items() if name != "drawn"}
        return f"{type(self).__name__}({settings})"

    def __getitem__(self, index):
        if self.drawn is None:
            return self.draw(index)
        if index not in self.drawn:
            self.drawn[index] = self.draw(index)
        return dict(self.drawn[index])

    def generator(self, index):
        """The random numbers of one image, its own for every (kind, split, seed, index)."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        return np.random.default_rng((self.kind, SPLITS.index(self.split), self.seed, index))

    def draw(self, index):
        rng = self.generator(index)
        canvas = Canvas(rng, self.image_size, grounds=rng.integers(1, 3))
        count = rng.integers(self.objects[0], self.objects[1] + 1)
        for category in rng.choice(len(OBJECT_CLASSES), count, replace=False):
            canvas.place(category, rng.uniform(*self.radius))
        return canvas.record(f"{self.split}-{self.seed}-{index}", canvas.caption())


class ShapeObjects(ShapeScenes):
    """One main object, whose radius is 0.2 to 0.4 of the side, and up to two others, on one ground;
    `empty` of the images show a bare ground. `label` is the main object's class, or the ground's.

    `others` = (smallest, largest) radius of the others, in parts of the main one's, which counts as
    0.25 at most.
    """

    kind = 1

    def __init__(
        self, split, size, image_size=192, seed=0, keep=False, others=(0.3, 0.5), empty=0.0
    ):
        super().__init__(split, size, image_size, seed, keep, radius=(0.2, 0.4))
        self.others, self.empty = as_tuple(others), empty
        require_options(others=self.others, empty=empty)

    def draw(self, index):
        rng = self.generator(index)
        canvas = Canvas(rng, self.image_size, grounds=1)
        if rng.random() >= self.empty:
            main, *others = rng.choice(len(OBJECT_CLASSES), 1 + rng.integers(3), replace=False)
            radius = rng.uniform(*self.radius)
            canvas.place(main, radius)
            for category in others:
                canvas.place(category, rng.uniform(*self.others) * min(radius, 0.25))
        return canvas.record(f"{self.split}-{self.seed}-{index}", canvas.caption())


class Canvas:
    """A picture being drawn: `image` float32 [S, S, 3] in 0..255, `owner` int [S, S] (the part that
    each pixel shows) and `categories`, the class of each part, grounds first."""

    def __init__(self, rng, size, grounds):
        self.rng, self.size = rng, size
        self.light = rng.uniform(-np.pi, np.pi)
        self.categories, self.discs = [], []
        self.owner = np.zeros((size, size), np.int32)
        for part, kind in enumerate(rng.choice(len(GROUNDS), grounds, replace=False)):
            picture = ground(rng, list(GROUNDS)[kind], size)
            if part == 0:
                self.image = picture
            else:
                self.owner[border(rng, size)] = part
                self.image = np.where(self.owner[..., None] == part, picture, self.image)
            self.categories.append(len(OBJECT_CLASSES) + int(kind))

    def place(self, category, radius):
        """Draws an object where it hides little of the others; without such a place, not at all."""
        for _ in range(30):
            x, y = self.rng.uniform(0.85 * radius, 1 - 0.85 * radius, 2)
            if all(np.hypot(x - u, y - v) > 0.8 * (radius + r) for u, v, r in self.discs):
                self.discs.append((x, y, radius))
                self.categories.append(int(category))
                self.draw(*COATS[CLASSES[category]], x, y, radius)
                return

    def draw(self, pattern, body, mark, x, y, radius):
        """Shadow, coat and shading, in the object's window of the image."""
        rng, size = self.rng, self.size
        turn = rng.uniform(-np.pi, np.pi)
        reach = 1.6 * radius
        (x0, x1), (y0, y1) = (
            (math.floor((centre - reach) * size), math.ceil((centre + reach) * size))
            for centre in (x, y)
        )
        u = ((np.arange(x0, x1, dtype=np.float32) + 0.5) / size - x)[None, :] / radius
        v = ((np.arange(y0, y1, dtype=np.float32) + 0.5) / size - y)[:, None] / radius
        cos, sin = math.cos(turn), math.sin(turn)
        u, v = u * cos + v * sin, v * cos - u * sin
        distance = OUTLINES[rng.integers(len(OUTLINES))](u, v)
        dx, dy = (round(-0.14 * radius * size * f(self.light)) for f in (math.cos, math.sin))
        shadow = np.clip(0.5 - 3 * np.roll(distance, (dy, dx), (0, 1)), 0, 1)

        inside = np.s_[max(0, -y0) : size - y0, max(0, -x0) : size - x0]
        u, v, distance, shadow = u[inside], v[inside], distance[inside], shadow[inside]
        window = np.s_[max(0, y0) : y1, max(0, x0) : x1]
        image = self.image[window] * (1 - 0.3 * shadow[..., None])

        mix = coat(rng, pattern, u * radius, v * radius)[..., None]
        tint = np.float32(rng.normal(0, 7, 3))
        base = np.float32(body) + tint + mix * (np.float32(mark) - np.float32(body))
        lit = u * math.cos(self.light) + v * math.sin(self.light)
        shade = rng.uniform(0.84, 1.08) + 0.14 * lit
        alpha = np.clip(0.5 - distance * radius * size, 0, 1)[..., None]
        self.image[window] = image + alpha * (base * shade[..., None] - image)
        self.owner[window][alpha[..., 0] > 0.5] = len(self.categories) - 1

    def caption(self):
        """As "a zebra and an orchid on grass": the objects in drawing order."""
        names = [CLASSES[category] for category in self.categories]
        things = [name for name in names if name not in GROUNDS]
        grounds = " and ".join(name for name in names if name in GROUNDS)
        if not things:
            return grounds
        articles = ("an" if name[0] in "aeiou" else "a" for name in things)
        things = " and ".join(map(" ".join, zip(articles, things, strict=True)))
        return f"{things} on {grounds}"

    def record(self, key, caption):
        """One record of the sources' protocol."""
        size = self.size
        slope = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        lit = slope[None, :] * math.cos(self.light) + slope[:, None] * math.sin(self.light)
        tint = self.rng.uniform(0.82, 1.12) * (1 + self.rng.normal(0, 0.03, 3))
        image = self.image * ((1 + 0.25 * lit)[..., None] * tint.astype(np.float32))
        image += 2.5 * self.rng.standard_normal(image.shape, np.float32)
        categories = np.array(self.categories, np.int32)
        annotations = []
        for part in np.argsort(categories >= len(OBJECT_CLASSES), kind="stable"):
            mask = self.owner == part
            ys, xs = np.nonzero(mask)
            if len(xs):
                inside = self.rng.integers(len(xs))
                annotations.append(
                    {
                        "box": np.float32([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]),
                        "point": np.float32([xs[inside] + 0.5, ys[inside] + 0.5]),
                        "mask": mask,
                        "area": len(xs),
                        "category": CLASSES[categories[part]],
                    }
                )
        return {
            "key": key,
            "image": np.clip(image, 0, 255).astype(np.uint8),
            "annotations": annotations,
            "semantic": categories[self.owner],
            "label": CLASSES.index(annotations[0]["category"]),
            "caption": caption,
        }


# Outlines: the distance to them in radii, negative inside; u to the right, v down


def disc(u, v):
    return np.hypot(u, v) - 0.95


def square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) - 0.8


def triangle(u, v):
    v = v - 0.2
    return np.maximum(v, 0.866 * np.abs(u) - 0.5 * v) - 0.6


def star(u, v):
    """Five points: every point is folded into one tenth of the turn, bounded by one edge."""
    sector = np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + sector) % (2 * sector) - sector)
    length = np.hypot(u, v)
    tip, notch = 1.12, 0.5 * np.exp(1j * sector)
    normal = (notch - tip) * 1j / abs(notch - tip)
    return (tip - length * np.cos(angle)) * normal.real - length * np.sin(angle) * normal.imag


def heart(u, v):
    u, v = np.abs(u) / 1.75, 0.56 - v / 1.75
    lobe = np.hypot(u - 0.25, v - 0.75) - 0.3536
    fold = 0.5 * np.maximum(u + v, 0)
    flank = np.minimum(np.hypot(u, v - 1), np.hypot(u - fold, v - fold)) * np.sign(u - v)
    return 1.75 * np.where(u + v > 1, lobe, flank)


def cross(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 0.34, v - 0.98), np.maximum(v - 0.34, u - 0.98))


OUTLINES = (disc, square, triangle, star, heart, cross)


def coat(rng, pattern, u, v):  # -> float32 [h, w], in 0..1: 1 where the pattern has its colour
    """A pattern at a random turn, phase and period; u and v in parts of the image's side."""
    turn, period = rng.uniform(0, np.pi), rng.uniform(0.055, 0.075)
    p, q = rng.uniform(0, 2 * np.pi, 2)
    x = 2 * np.pi / period * (u * np.cos(turn) + v * np.sin(turn)) + p
    y = 2 * np.pi / period * (v * np.cos(turn) - u * np.sin(turn)) + q
    if pattern == "plain":
        return np.zeros_like(x + y)
    if pattern == "stripes":
        return 0.5 + 0.5 * np.clip(3 * np.sin(x + 0.7 * np.sin(0.6 * y)), -1, 1)
    if pattern == "checks":
        return 0.5 + 0.5 * np.clip(5 * np.sin(x) * np.sin(y), -1, 1)
    # cells in rows, every second row half a cell further
    down = y / (2 * np.pi)
    row = np.floor(down)
    across, down = (x / (2 * np.pi) + row / 2) % 1 - 0.5, down - row - 0.5
    if pattern == "dots":
        return np.clip(0.5 + 8 * (0.3 - np.hypot(across, down)), 0, 1)
    return np.clip(0.5 + 12 * (np.maximum(np.abs(across), np.abs(down)) - 0.4), 0, 1)


def ground(rng, name, size):  # -> float32 [S, S, 3]
    """A ground's colour under its own pattern and a slow change of brightness."""
    v = ((np.arange(size, dtype=np.float32) + 0.5) / size)[:, None]
    phase = rng.uniform(0, 2 * np.pi)
    if name == "grass":
        pattern = 0.9 * noise(rng, size, 14, 48)
    elif name == "sand":
        pattern = 0.3 * np.sin(50 * v + 5 * noise(rng, size, 3, 3) + phase)
        pattern += 0.3 * noise(rng, size, 48, 48)
    elif name == "water":
        pattern = 0.8 * np.sin(30 * v + 4 * noise(rng, size, 8, 4) + phase) ** 3
    elif name == "snow":
        pattern = 0.35 * noise(rng, size, 7, 7)
    elif name == "stone":
        pattern = 1.2 * np.minimum(np.abs(noise(rng, size, 9, 9)) * 4, 1) - 0.8
    else:
        seam = np.abs((v * 6 + phase) % 1 - 0.5) > 0.46
        pattern = 0.6 * noise(rng, size, 40, 4) - 0.9 * seam
    shade = 1 + 0.2 * pattern + 0.12 * noise(rng, size, 3, 3)
    base = np.array(GROUNDS[name], np.float32) + rng.normal(0, 6, 3).astype(np.float32)
    return (shade[..., None] * base).astype(np.float32)


def border(rng, size):  # -> bool [S, S]
    """One side of a wavy line through the middle third of the image."""
    across = (np.arange(size, dtype=np.float32) + 0.5) / size
    turn, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.12, 0.12)
    along = (across - 0.5)[None, :] * np.cos(turn) + (across - 0.5)[:, None] * np.sin(turn)
    return along + 0.06 * noise(rng, size, 4, 4) > shift


def noise(rng, size, rows, columns):  # -> float32 [size, size], in about -1.5..1.5
    """Smooth noise: random values of a grid of cells, interpolated."""
    grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
