"""The tiny SAM: its size, its data, and the training recipe of Segment Anything (appendix A)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from samclip_jax.convert.export import released, write_torch
from samclip_jax.convert.sam import SEGMENT_ANYTHING
from samclip_jax.data import shapes
from samclip_jax.models.config import ImageEncoderConfig, MaskDecoderConfig, SamConfig
from samclip_jax.models.prompt_encoder import ABSENT, FOREGROUND, NOT_A_POINT
from samclip_jax.ops.resize import resize_maps

IMAGE_SIZE = 192
SAM = SamConfig(
    encoder=ImageEncoderConfig(
        width=96,
        depth=4,
        heads=3,
        groups=2,
        patch=12,
        image_size=IMAGE_SIZE,
        window=4,
        mlp_width=384,
        out_channels=64,
    ),
    mask_decoder=MaskDecoderConfig(mlp_width=256, iou_width=64),
)
BOX = (2, 3, ABSENT, ABSENT)
ONE = (FOREGROUND, NOT_A_POINT, ABSENT, ABSENT)
TWO = (FOREGROUND, FOREGROUND, NOT_A_POINT, ABSENT)
THREE = (FOREGROUND, FOREGROUND, FOREGROUND, NOT_A_POINT)
FIRST_PROMPTS = (BOX, BOX, BOX, ONE, ONE, TWO, THREE)  # their labels; equally likely
EVALUATED = 160  # tuning scenes


class SamTask:
    """Two rounds of prompts for an object or a ground: a box or one to three inner points; then a
    mask and one more point from where the first answer was wrong. The mask is that answer's logits
    or, half of the time, a coarse noisy map of the true mask, such as a CLIP head gives. (SAM's own
    training has eleven rounds and no such maps.)"""

    config, peak, batch, prompts = SAM, 1e-3, 8, 4

    def __init__(self, images):
        scenes = shapes.ShapeScenes("teachers", images, IMAGE_SIZE)
        self.images = np.empty((images, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        self.semantic = np.empty((images, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        self.categories = []
        for i in range(images):
            record = scenes[i]
            self.images[i], self.semantic[i] = record["image"], record["semantic"]
            names = (part["category"] for part in record["annotations"])
            self.categories.append([*map(shapes.CLASSES.index, names)])

    def start(self, params):
        return params

    def sample(self, rng):
        indices = rng.integers(len(self.images), size=self.batch)
        step = 1 if rng.random() < 0.5 else -1  # mirrored half of the time
        return {
            "image": self.images[indices][:, :, ::step],
            "semantic": self.semantic[indices][:, :, ::step],
            "category": np.stack([rng.choice(self.categories[i], self.prompts) for i in indices]),
        }

    def loss(self, model, batch, key):
        keys = jax.random.split(key, 4)
        masks = batch["semantic"][:, None] == batch["category"][:, :, None, None]
        cell = SAM.encoder.patch // 4
        target = shrink(masks, cell)
        embedding = model.encode(batch["image"]).embedding
        points, labels = first_prompts(keys[0], masks)
        first = model.predict_masks(embedding, points, labels)

        logits = jax.lax.stop_gradient(first.low_res_masks[:, :, 0])
        wrong = (logits > 0) != (target > 0.5)
        index = draw(keys[1], wrong)
        inside = jnp.take_along_axis(target.reshape(*index.shape, -1), index[..., None], -1) > 0.5
        label = jnp.where(wrong.any((-1, -2))[..., None], inside.astype(labels.dtype), ABSENT)
        points = jnp.concatenate([points, pixels(index, logits.shape[-1], cell)[:, :, None]], 2)
        labels = jnp.concatenate([labels, label], 2)
        coarse = coarse_logits(keys[2], target, embedding.shape[1])
        either = jax.random.bernoulli(keys[3], 0.5, (len(masks), 1, 1, 1))
        second = model.predict_masks(embedding, points, labels, jnp.where(either, coarse, logits))
        return mask_loss(first, target) + mask_loss(second, target)

    @staticmethod
    def answer(model, images, points, labels):  # -> bool [B, H, W, P], mask 0 at logit 0
        output = model.predict_masks(model.encode(images).embedding, points, labels)
        low = jnp.moveaxis(output.low_res_masks[:, :, 0], 1, -1)
        return resize_maps(low, (IMAGE_SIZE, IMAGE_SIZE)) > 0

    def evaluate(self, answer):
        """Mean IoU for box prompts and for one inner point, objects and grounds apart, and how
        large the objects' masks are against the true ones."""
        scenes = shapes.ShapeScenes("tuning", EVALUATED, IMAGE_SIZE)
        ious = {"box": [], "point": [], "box_ground": [], "point_ground": [], "area": []}
        for start in range(0, EVALUATED, self.batch):
            records = [scenes[i] for i in range(start, start + self.batch)]
            points = np.zeros((self.batch, 12, 2, 2), np.float32)
            labels = np.full((self.batch, 12, 2), ABSENT)
            for i, record in enumerate(records):
                for j, part in enumerate(record["annotations"]):
                    points[i, 2 * j], labels[i, 2 * j] = part["box"].reshape(2, 2), (2, 3)
                    points[i, 2 * j + 1] = part["point"]
                    labels[i, 2 * j + 1] = FOREGROUND, NOT_A_POINT
            images = np.stack([record["image"] for record in records])
            masks = np.moveaxis(np.asarray(answer(images, points, labels)), -1, 1)
            for i, record in enumerate(records):
                for j, part in enumerate(record["annotations"]):
                    ground = "_ground" if part["category"] in shapes.GROUNDS else ""
                    true = part["mask"]
                    for mask, prompt in zip(masks[i, 2 * j :], ("box", "point"), strict=False):
                        ious[prompt + ground].append((mask & true).sum() / (mask | true).sum())
                    if not ground:
                        ious["area"].append(masks[i, 2 * j].sum() / true.sum())
        return {name: float(np.mean(values)) for name, values in ious.items()}

    @staticmethod
    def release(params, output):
        """A .pth file in Meta's layout, in half precision."""
        write_torch(output / "sam.pth", released(SEGMENT_ANYTHING, params), "float16")


def shrink(masks, cell):  # [B, P, H, W] -> float32 [B, P, H / cell, W / cell]
    """The share of every cell that a mask covers."""
    b, p, h, w = masks.shape
    cells = masks.astype(jnp.float32).reshape(b, p, h // cell, cell, w // cell, cell)
    return cells.mean((3, 5))


def draw(key, region):  # bool [B, P, h, w] -> int [B, P], the flat index of one place in it
    scores = jax.random.uniform(key, region.shape) + region
    return scores.reshape(*region.shape[:2], -1).argmax(-1)


def pixels(index, width, cell):  # int [...] -> float32 [..., 2], x and y
    return (jnp.stack([index % width, index // width], -1) + 0.5) * cell - 0.5


def first_prompts(key, masks):  # bool [B, P, H, W] -> points [B, P, 4, 2], labels [B, P, 4]
    """A box, its corners off by a normal 5 % of its sides, or one to three inner points."""
    *point_keys, box_key, kind_key = jax.random.split(key, 5)
    b, p, h, w = masks.shape
    inner = [pixels(draw(point_key, masks), w, 1) for point_key in point_keys]
    columns, rows = masks.any(2), masks.any(3)
    low = jnp.stack([columns.argmax(-1), rows.argmax(-1)], -1)
    high = jnp.stack([w - columns[..., ::-1].argmax(-1), h - rows[..., ::-1].argmax(-1)], -1)
    noise = 0.05 * (high - low) * jax.random.normal(box_key, (2, b, p, 2))
    corners = [jnp.clip(corner, 0, w) for corner in (low + noise[0], high + noise[1])]
    kind = jax.random.randint(kind_key, (b, p), 0, len(FIRST_PROMPTS))
    labels = jnp.array(FIRST_PROMPTS)[kind]
    nowhere = jnp.zeros((b, p, 2))
    boxes, inner = jnp.stack([*corners, nowhere, nowhere], 2), jnp.stack([*inner, nowhere], 2)
    return jnp.where((labels[:, :, :1] == 2)[..., None], boxes, inner), labels


def coarse_logits(key, target, cells):  # [B, P, 4h, 4w] -> [B, P, 4h, 4w]
    """The true mask as `cells` x `cells` patches would show it, with noise, at any scale."""
    keys = jax.random.split(key)
    low = 2 * shrink(target, target.shape[-1] // cells) - 1
    low = low + 0.3 * jax.random.normal(keys[0], low.shape)
    low = low * jax.random.uniform(keys[1], (*low.shape[:2], 1, 1), minval=2, maxval=12)
    return jnp.moveaxis(resize_maps(jnp.moveaxis(low, 1, -1), target.shape[2:]), -1, 1)


def mask_loss(output, target):
    """20 focal + dice of mask 0 and of the best multimask, and the IoU head's squared error.

    The focal loss has no alpha: SAM's 0.25 makes masks too small at logit 0.
    """
    logits, target = output.low_res_masks, target[:, :, None]
    probability = jax.nn.sigmoid(logits)
    entropy = optax.sigmoid_binary_cross_entropy(logits, target)
    focal = (jnp.square(probability - target) * entropy).mean((-1, -2))
    both = (probability * target).sum((-1, -2))
    dice = 1 - (2 * both + 1) / (probability.sum((-1, -2)) + target.sum((-1, -2)) + 1)
    loss = 20 * focal + dice
    found, true = logits > 0, target > 0.5
    iou = (found & true).sum((-1, -2)) / jnp.maximum((found | true).sum((-1, -2)), 1)
    return (loss[:, :, 0] + loss[:, :, 1:].min(-1)).mean() + jnp.square(output.iou - iou).mean()
