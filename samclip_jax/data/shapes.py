"""The procedural world: textured objects on named grounds, with masks, class names and captions.

An image is a pure function of (split, seed, index), drawn in one or two milliseconds by numpy.
Its 36 object classes need both colour and shape ("red star", "blue star", "blue ring"); its 6
grounds are classes too, so that every pixel has a name. All lengths are fractions of the image's
side.

    ShapeScenes   several objects, occlusion, one or two grounds: for SAM and for segmentation
    ShapeObjects  one main object, small distractors, or the bare ground: for CLIP
"""

import functools
import math

import numpy as np

from samclip_jax.errors import UserError

COLOURS = {
    "red": (208, 44, 40),
    "yellow": (240, 204, 40),
    "green": (44, 160, 62),
    "blue": (40, 92, 214),
    "purple": (140, 60, 186),
    "white": (238, 238, 234),
}
SHAPES = ("ring", "square", "triangle", "star", "heart", "cross")
GROUNDS = {
    "grass": (112, 148, 82),
    "sand": (206, 180, 130),
    "water": (84, 142, 172),
    "snow": (214, 222, 232),
    "stone": (128, 126, 124),
    "wood": (146, 102, 68),
}
OBJECT_CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
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
SPLITS = ("teachers", "train", "tuning", "final")  # no image of one is in another
TEXTURES = ("plain", "stripes", "dots", "checks")


def vocabulary():
    """Every word that a caption or a template can hold, sorted."""
    text = " ".join((*TEMPLATES, *CLASSES, "a and on")).replace("{}", "").replace(".", " . ")
    return sorted(set(text.split()))


class ShapeScenes:
    """Scenes of `objects` = (fewest, most) objects of distinct classes on one or two grounds.

    `distinct=False` lets a class occur more than once. The grounds are annotated like the objects.
    """

    classes = CLASSES
    kind = 0  # keeps its random numbers apart from those of ShapeObjects
    radius = (0.13, 0.23)

    def __init__(self, split, size, image_size=96, seed=0, objects=(2, 4), distinct=True):
        if split not in SPLITS:
            raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        self.split, self.size, self.image_size, self.seed = split, size, image_size, seed
        self.objects, self.distinct = objects, distinct

    def __len__(self):
        return self.size

    def __repr__(self):  # Grain compares sources by it when it resumes
        return f"{type(self).__name__}({vars(self)})"

    def generator(self, index):
        """The random numbers of one image, its own for every (kind, split, seed, index)."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        return np.random.default_rng((self.kind, SPLITS.index(self.split), self.seed, index))

    def __getitem__(self, index):
        rng = self.generator(index)
        canvas = Canvas(rng, self.image_size, grounds=rng.integers(1, 3))
        count = rng.integers(self.objects[0], self.objects[1] + 1)
        for category in rng.choice(len(OBJECT_CLASSES), count, replace=not self.distinct):
            canvas.place(category, rng.uniform(*self.radius))
        return canvas.record(f"{self.split}-{self.seed}-{index}", canvas.caption())


class ShapeObjects(ShapeScenes):
    """One main object at a varied place and scale, up to two small distractors; `empty` of the
    images show a bare ground. `label` is the main object's class, or the ground's."""

    kind = 1
    radius = (0.18, 0.4)

    def __init__(self, split, size, image_size=96, seed=0, empty=0.0):
        super().__init__(split, size, image_size, seed)
        self.empty = empty

    def __getitem__(self, index):
        rng = self.generator(index)
        canvas = Canvas(rng, self.image_size, grounds=1)
        if rng.random() >= self.empty:
            main, *others = rng.choice(len(OBJECT_CLASSES), 1 + rng.integers(3), replace=False)
            radius = rng.uniform(*self.radius)
            canvas.place(main, radius)
            for category in others:
                canvas.place(category, rng.uniform(0.3, 0.5) * min(radius, 0.22))
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
                self.draw(*divmod(int(category), len(COLOURS)), x, y, radius)
                return

    def draw(self, shape, colour, x, y, radius):
        """Shadow, body, texture, shading and a dark rim, in the object's window of the image."""
        rng, size = self.rng, self.size
        turn = rng.uniform(-0.3, 0.3)
        reach = 1.6 * radius
        (x0, x1), (y0, y1) = (
            (math.floor((centre - reach) * size), math.ceil((centre + reach) * size))
            for centre in (x, y)
        )
        u = ((np.arange(x0, x1, dtype=np.float32) + 0.5) / size - x)[None, :] / radius
        v = ((np.arange(y0, y1, dtype=np.float32) + 0.5) / size - y)[:, None] / radius
        cos, sin = math.cos(turn), math.sin(turn)
        u, v = u * cos + v * sin, v * cos - u * sin
        distance = DISTANCES[SHAPES[shape]](u, v)
        dx, dy = (round(-0.14 * radius * size * f(self.light)) for f in (math.cos, math.sin))
        shadow = np.clip(0.5 - 3 * np.roll(distance, (dy, dx), (0, 1)), 0, 1)

        inside = np.s_[max(0, -y0) : size - y0, max(0, -x0) : size - x0]
        u, v, distance, shadow = u[inside], v[inside], distance[inside], shadow[inside]
        window = np.s_[max(0, y0) : y1, max(0, x0) : x1]
        image = self.image[window] * (1 - 0.4 * shadow[..., None])

        base = np.array(list(COLOURS.values())[colour], np.float32)
        base += rng.normal(0, 9, 3)
        lit = u * math.cos(self.light) + v * math.sin(self.light)
        shade = rng.uniform(0.86, 1.1) + 0.14 * lit
        shade = shade + rng.uniform(0.1, 0.2) * texture(rng, u, v)
        shade = shade * np.where(distance > -0.09, 0.72, 1)
        alpha = np.clip(0.5 - distance * radius * size, 0, 1)[..., None]
        self.image[window] = image + alpha * (base * shade[..., None] - image)
        self.owner[window][alpha[..., 0] > 0.5] = len(self.categories) - 1

    def caption(self):
        """As "a red star and a blue ring on grass": the objects in drawing order."""
        names = [CLASSES[category] for category in self.categories]
        things = [name for name in names if name not in GROUNDS]
        grounds = " and ".join(name for name in names if name in GROUNDS)
        if not things:
            return grounds
        return f"{' and '.join(f'a {name}' for name in things)} on {grounds}"

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
                        "category": int(categories[part]),
                    }
                )
        return {
            "key": key,
            "image": np.clip(image, 0, 255).astype(np.uint8),
            "annotations": annotations,
            "semantic": categories[self.owner],
            "label": annotations[0]["category"],
            "caption": caption,
        }


# Shapes: distance to the outline in radii, negative inside; u to the right, v down


def ring(u, v):
    return np.abs(np.hypot(u, v) - 0.7) - 0.29


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


DISTANCES = {f.__name__: f for f in (ring, square, triangle, star, heart, cross)}


# Textures: patterns in about -1..1


def texture(rng, u, v):
    """A pattern across an object, at a random scale and turn."""
    kind = TEXTURES[rng.integers(len(TEXTURES))]
    turn, pitch = rng.uniform(0, np.pi), rng.uniform(6, 11)
    a = np.sin(pitch * (u * np.cos(turn) + v * np.sin(turn)))
    if kind == "plain":
        return np.zeros_like(a)
    if kind == "stripes":
        return np.clip(3 * a, -1, 1)
    b = np.sin(pitch * (v * np.cos(turn) - u * np.sin(turn)))
    return np.clip(3 * a * b, -1, 1) if kind == "checks" else np.clip(4 * (a * b - 0.5), -1, 1)


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


def noise(rng, size, rows, columns):  # -> float32 [S, S], uniform grid values in -1..1
    """Smooth noise: random values on a grid of cells, interpolated."""
    grid = rng.uniform(-1, 1, (rows + 1, columns + 1)).astype(np.float32)
    return spread(size, rows) @ grid @ spread(size, columns).T


@functools.cache
def spread(size, cells):  # -> float32 [size, cells + 1]
    """The matrix that interpolates `cells` + 1 values over `size` pixels, by smoothstep."""
    place = (np.arange(size, dtype=np.float32) + 0.5) / size * cells
    left = np.minimum(place.astype(int), cells - 1)
    t = place - left
    t = t * t * (3 - 2 * t)
    matrix = np.zeros((size, cells + 1), np.float32)
    matrix[np.arange(size), left], matrix[np.arange(size), left + 1] = 1 - t, t
    return matrix
