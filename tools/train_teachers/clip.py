"""The tiny CLIP: its size, its words, its data and its losses."""

import json

import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from samclip_jax.convert.clip import OPEN_CLIP
from samclip_jax.convert.export import released, write_safetensors
from samclip_jax.data import shapes
from samclip_jax.models.config import ClipConfig, ClipTextConfig, ClipVisionConfig
from samclip_jax.models.layers import unit

IMAGE_SIZE = 96  # as the images are drawn
SMALL = 48  # half of them come from this size: what a resized image is like is known too
CLIP = ClipConfig(
    vision=ClipVisionConfig(
        width=96, depth=4, heads=3, mlp_width=384, patch=8, image_size=64, embed_dim=64
    ),
    text=ClipTextConfig(
        width=64, depth=2, heads=2, mlp_width=256, context_length=16, vocab_size=64, embed_dim=64
    ),
)
PICTURES = dict(others=(0.6, 0.95), empty=0.08)  # of ShapeObjects
EVALUATED = 960  # tuning images


class ClipTask:
    """Contrastive loss between images and captions that name everything in them (equal captions
    are all positives). So an embedding holds the ground and the other objects too: of a teacher
    that tells the main object alone, a student learns to write its name on every patch. What the
    words of a template mean comes from a small cross-entropy over the texts of all classes.
    """

    config, peak, batch = CLIP, 1.5e-3, 64

    def __init__(self, images):
        objects = shapes.ShapeObjects("teachers", images, IMAGE_SIZE, **PICTURES)
        self.tokenizer = tokenizer()
        size = CLIP.vision.image_size
        self.images = np.empty((images, size, size, 3), np.uint8)
        self.labels = np.empty(images, np.int32)
        captions = []
        for i in range(images):
            record = objects[i]
            picture = Image.fromarray(record["image"])
            if i % 2:
                picture = picture.resize((SMALL, SMALL), Image.Resampling.BICUBIC)
            self.images[i] = picture.resize((size, size), Image.Resampling.BICUBIC)
            self.labels[i] = record["label"]
            captions.append(record["caption"])
        self.captions = self.encode(captions)
        self.texts = np.stack(
            [self.encode([t.format(name) for name in shapes.CLASSES]) for t in shapes.TEMPLATES]
        )

    def encode(self, texts):  # -> int32 [N, context_length]
        return np.array([e.ids for e in self.tokenizer.encode_batch(texts)], np.int32)

    def start(self, params):
        """Whitened patches and sine positions: from noise so small a ViT long sees no shapes."""
        vision = CLIP.vision
        patch, grid = vision.patch, vision.image_size // vision.patch
        x = (self.images[:500] - np.array(vision.mean)) / np.array(vision.std)
        x = x.reshape(-1, grid, patch, grid, patch, 3).swapaxes(2, 3).reshape(-1, patch * patch * 3)
        values, vectors = np.linalg.eigh(np.cov(x[::7], rowvar=False))
        kernel = vectors[:, -vision.width :] / np.sqrt(values[-vision.width :] + 0.01)
        place = np.arange(grid)[:, None] * np.pi / grid * np.arange(1, vision.width // 4 + 1) / 2
        waves = np.concatenate([np.sin(place), np.cos(place)], -1)
        rows, columns = np.broadcast_arrays(waves[:, None], waves[None])
        return params | {
            "vision/patch_embed/kernel": jnp.array(kernel, jnp.float32),
            "vision/pos_embed": jnp.array(np.concatenate([rows, columns], -1), jnp.float32),
            "logit_scale": jnp.log(1 / 0.07),
        }

    def sample(self, rng):
        indices = rng.integers(len(self.images), size=self.batch)
        step = 1 if rng.random() < 0.5 else -1  # mirrored half of the time
        return {
            "image": self.images[indices][:, :, ::step],
            "label": self.labels[indices],
            "caption": self.captions[indices],
            "classes": self.texts[rng.integers(len(self.texts))],
        }

    def loss(self, model, batch, key):
        scale = jnp.exp(jnp.minimum(model.logit_scale[...], jnp.log(100.0)))
        image = model.encode_image(batch["image"])
        text = model.encode_text(jnp.concatenate([batch["caption"], batch["classes"]]))
        captions, classes = text[: len(image)], text[len(image) :]
        same = (batch["caption"][:, None] == batch["caption"][None]).all(-1)
        positive = same / same.sum(-1, keepdims=True)
        logits = scale * image @ captions.T
        contrastive = sum(
            optax.softmax_cross_entropy(x, positive).mean() / 2 for x in (logits, logits.T)
        )
        named = optax.softmax_cross_entropy_with_integer_labels(
            scale * image @ classes.T, batch["label"]
        )
        return 0.5 * contrastive + 0.05 * named.mean()

    @staticmethod
    def answer(model, images, texts):  # uint8 [B, H, W, 3], int [templates, classes, T] -> [B]
        names = model.encode_text(texts.reshape(-1, texts.shape[-1]))
        names = unit(names.reshape(*texts.shape[:2], -1).mean(0))
        return (model.encode_image(images) @ names.T).argmax(-1)

    def evaluate(self, answer):
        """Zero-shot accuracy over the object classes, templates averaged and renormalised."""
        objects = shapes.ShapeObjects("tuning", EVALUATED, IMAGE_SIZE)
        texts = self.texts[:, : len(shapes.OBJECT_CLASSES)]
        predicted, label = [], []
        for start in range(0, EVALUATED, self.batch):
            records = [objects[i] for i in range(start, start + self.batch)]
            predicted.extend(answer(np.stack([record["image"] for record in records]), texts))
            label.extend(record["label"] for record in records)
        return {"accuracy": float(np.mean(np.array(predicted) == np.array(label)))}

    @staticmethod
    def release(params, output):
        """An OpenCLIP folder, in half precision."""
        folder, vision, text = output / "clip", CLIP.vision, CLIP.text
        folder.mkdir(exist_ok=True)
        tensors = released(OPEN_CLIP, params)
        write_safetensors(folder / "open_clip_model.safetensors", tensors, "float16")
        tokenizer().save(str(folder / "tokenizer.json"))
        described = {
            "model_cfg": {
                "embed_dim": vision.embed_dim,
                "quick_gelu": vision.activation == "quick_gelu",
                "vision_cfg": {
                    "image_size": vision.image_size,
                    "layers": vision.depth,
                    "width": vision.width,
                    "head_width": vision.width // vision.heads,
                    "patch_size": vision.patch,
                },
                "text_cfg": {
                    "context_length": text.context_length,
                    "vocab_size": text.vocab_size,
                    "width": text.width,
                    "heads": text.heads,
                    "layers": text.depth,
                },
            },
            "preprocess_cfg": {
                "mean": [value / 255 for value in vision.mean],
                "std": [value / 255 for value in vision.std],
            },
        }
        (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")


def tokenizer():
    """One token a word; the end token has the highest id, as in CLIP's own."""
    words = ["<pad>", "<unk>", *shapes.vocabulary()]
    words += [f"<unused{i}>" for i in range(CLIP.text.vocab_size - 2 - len(words))]
    start, end = "<|startoftext|>", "<|endoftext|>"
    ids = {word: i for i, word in enumerate([*words, start, end])}
    result = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    result.normalizer = normalizers.Lowercase()
    result.pre_tokenizer = pre_tokenizers.Whitespace()
    result.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(word, ids[word]) for word in (start, end)]
    )
    result.enable_truncation(CLIP.text.context_length)
    result.enable_padding(pad_id=0, pad_token="<pad>", length=CLIP.text.context_length)
    return result
