"""A loaded checkpoint: parameters, tokenizer and the compiled functions everything else calls."""

import copy
import functools
import threading
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from samclip_jax import cache, checkpoint, families, models, sharding
from samclip_jax.config import Dtype
from samclip_jax.data import transforms
from samclip_jax.errors import UserError, os_errors
from samclip_jax.inference.frames import to_frame
from samclip_jax.inference.images import BATCH, checked, checked_frames, checked_sizes
from samclip_jax.inference.prompts import decoder_arguments, require_axes
from samclip_jax.inference.reading import PAPER, require_readable
from samclip_jax.inference.texts import PHOTO, class_names, class_texts, text_list
from samclip_jax.models.layers import unit
from samclip_jax.ops.correlation import self_correlated
from samclip_jax.ops.resize import resize_images
from samclip_jax.paths import any_path, is_remote
from samclip_jax.tokenizer import Tokenizer
from samclip_jax.validation import check

# That probes read; None: the last that a model has of the first two. The paper does not say which.
Layer = Literal["encoder", "head", "embedding"] | None
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
TEXT_BATCH = 256  # texts that a device takes at once, at most
PROMPT_BATCH = 32  # prompts that a device takes at once, at most
KEPT_TEXTS = 1000  # from so many on their embeddings are kept on disk


def load(path, dtype=jnp.float32, devices=None):
    """The Model at `path`, local or gs://.

    path: a training workdir (its newest step), a checkpoint directory, or a weight file or folder
    as released by others or exported from here. dtype: of the activations, float32 or bfloat16;
    parameters stay float32. devices: as Model has them. UserError if there is nothing that can be
    loaded.
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = dtype
    check("dtype", name, Dtype)
    config, params, tokenizer = _read(path)
    if tokenizer is not None:
        tokenizer = Tokenizer(tokenizer, config.text.context_length)
    return Model(config, params, tokenizer, jnp.dtype(name), devices)


def _read(path):
    local = any_path(path)
    with os_errors(f"{path} was not read"):
        released = not is_remote(local) and (
            local.is_file()
            or local.is_dir()
            and not (local / "model.json").exists()
            and any(file.suffix in WEIGHT_SUFFIXES for file in local.iterdir())
        )
    if not released:
        return checkpoint.load_model(path)
    # only here: not needed for own checkpoints
    from samclip_jax.convert.apply import import_weights

    config, params, tokenizer, source = import_weights(local)
    for value in source["assumed"]:
        logging.warning("%s: assumed: %s", path, value)
    return config, {k: v.astype(np.float32, copy=False) for k, v in params.items()}, tokenizer


class Model:
    """A SAM, a CLIP or a merged SAM-CLIP that answers questions.

    family: its families.Family. params: {"a/b/c": array}, anywhere, sharded or not.
    tokenizer: list of str -> int32 [N, T], or None. Every function is compiled once per shape.
    devices: those of this process that share the rows of a call, by default the first alone. Each
    has all parameters.
    """

    def __init__(self, config, params, tokenizer=None, dtype=jnp.float32, devices=None):
        self.config, self.tokenizer, self.dtype = config, tokenizer, dtype
        self.family = families.of(config)
        self.graph, _ = models.split(families.abstract(config))
        self.mesh = sharding.replicas(devices)
        self.params = sharding.copies(self.mesh, params)
        self._programs, self._lock = {}, threading.Lock()

    @property
    def device_count(self):
        """How many devices share the rows of a call."""
        return self.mesh.size

    def with_params(self, params):
        """The same model with other weights; shares what is compiled."""
        other = copy.copy(self)
        other.params = sharding.copies(self.mesh, params)
        return other

    def program(self, function, **static):
        """function(module, *whole, *rows, **static), compiled: (params, rows, whole) -> arrays, see
        sharding.on_shares; `static` values are hashable."""
        key = (function, *sorted(static.items()))
        if key not in self._programs:
            call = functools.partial(function, **static)

            def with_module(params, rows, whole):
                return call(models.merge(self.graph, params), *whole, *rows)

            self._programs[key] = sharding.on_shares(with_module, self.mesh)
        return self._programs[key]

    def run(self, function, *rows, whole=(), **static):
        """What `program` returns for the arrays `rows` [B, ...], whose rows the devices share, and
        `whole`, of which each has all. From any thread; it does not wait for the devices."""
        count = len(rows[0])
        missing = -count % self.device_count
        with self._lock:  # so that all devices have the same order of what they do together
            if missing:
                rows = [jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in rows]
            rows = jax.device_put(tuple(rows), NamedSharding(self.mesh, P("rows")))
            whole = sharding.copies(self.mesh, tuple(whole))
            outputs = self.program(function, **static)(self.params, rows, whole)
            return jax.tree.map(lambda x: x[:count], outputs) if missing else outputs

    def gives(self, output):
        """Whether the model gives this output, of Family.outputs."""
        return output in self.family.outputs

    def require(self, *outputs, what):
        """UserError unless the model gives these outputs; `what` needs them."""
        if not all(map(self.gives, outputs)):
            needed, title = families.titles(outputs), self.family.title
            raise UserError(f"{what} needs {needed} checkpoint, this is {title} checkpoint")

    # Images and texts in one space

    def encode_image(self, images, squash=False):  # uint8 [B, H, W, 3] -> float32 [B, D]
        """Embeddings, of unit length, of what Predictor.classify sees of the photographs.

        A CLIP sees the centre crop (transforms.centre_crop) at its own size; with squash=True the
        whole photograph, resized to that square whatever its shape. A merged model sees the whole
        photograph in its own shape, as Predictor.set_image shows it, in the encoder's frame.
        UserError for anything but uint8 RGB, and for squash with a merged model.
        """
        self.require("summary", what="encode_image")
        images = checked("images", images, BATCH)
        if self.side is None:
            if squash:
                raise UserError(
                    "squash is for a plain CLIP: a merged model takes photographs of any shape"
                )
            frame = self.encoder.image_size
            frames, sizes = zip(*(to_frame(image, frame) for image in images), strict=True)
            return self.head(self.encode_frames(np.stack(frames), sizes).tokens, sizes[0])[0]
        if not squash:
            images = np.stack([transforms.centre_crop(image, self.side) for image in images])
        return self.encode_crops(images)

    def encode_crops(self, images):  # uint8 [B, H, W, 3] -> float32 [B, D], unit length
        """Embeddings of images as they are, such as evaluation crops them.

        A CLIP resizes to its own square size, a merged model to the nearest sides that its patch
        divides.
        """
        self.require("summary", what="encode_crops")
        images = checked("images", images, BATCH)
        return np.asarray(self.run(_encode_image, images, dtype=self.dtype))

    def encode_text(self, texts):  # list of str -> float32 [N, D], unit length
        """Text embeddings of the texts as they are, no template added; a long one is cut.

        UserError if texts is no list of texts, see inference/texts.py; blank ones are taken.
        """
        self.require("text", what="encode_text")
        texts = text_list("texts", texts)
        if self.tokenizer is None:
            raise UserError("this checkpoint has no tokenizer.json: import it again with one")
        tokens = self.tokenizer(texts)
        parts = [
            np.asarray(self.run(_encode_text, self._padded(part, TEXT_BATCH), dtype=self.dtype))
            for part in _chunks(tokens, TEXT_BATCH * self.device_count)
        ]
        return np.concatenate(parts)[: len(tokens)]

    def class_embeddings(self, names, templates=PHOTO):  # -> float32 [N, D], unit length
        """One embedding a class: the mean over the templates, renormalised.

        names: a list of texts, none blank. templates: texts with {} for the name, functions of the
        name, or a set of templates.json: "openai" (80), "simple" (7). As
        open_clip.build_zero_shot_classifier. Those of KEPT_TEXTS texts and more are kept on disk,
        see cache.py. UserError if one cannot be used.
        """
        self.require("text", what="class_embeddings")
        names = class_names("names", names)
        texts, count = class_texts(names, templates)

        def embeddings():
            return np.asarray(unit(self.encode_text(texts).reshape(len(names), count, -1).mean(1)))

        if len(texts) < KEPT_TEXTS or self.tokenizer is None:
            return embeddings()
        tower = models.text_params(self.params)
        computed = f"{self.config.text} {jnp.dtype(self.dtype).name} {jax.default_backend()}"
        key = cache.digest(tower, self.tokenizer(texts), f"{len(names)} {computed}")
        return cache.kept_array("texts", key, embeddings)

    @property
    def logit_scale(self):
        """What cosines are multiplied by, exp of the CLIP's own logit_scale; of a merged model its
        CLIP teacher's. 100 for most released ones. UserError if it is no number."""
        scale = np.exp(np.float32(self.params["logit_scale"]))
        if not np.isfinite(scale):
            raise UserError(
                f"the model's logit_scale is {self.params['logit_scale']}, whose exponential is no "
                "number: import its weights again"
            )
        return float(scale)

    def patch_embeddings(self, images, maskclip=False, reading=PAPER):
        """uint8 [B, H, W, 3] -> [B, h, w, D]: embeddings of unit length for every patch of images
        as they are, in the text's space.

        Of a merged model from its CLIP head; of a CLIP its patch tokens, with maskclip=True by the
        last block's value path alone (arXiv 2112.01071). Sizes as encode_crops. reading: its
        features.
        """
        self.require("patches", "text", what="segmentation by text")
        images = checked("images", images, BATCH)
        if maskclip and self.side is None:
            raise UserError("maskclip is a way to read a plain CLIP; a merged model has its head")
        require_readable(self, reading)
        way = ({"values": True} if maskclip else {}) | reading.features
        return np.asarray(self.run(_encode_dense, images, dtype=self.dtype, **way))

    def self_correlated(self, features):  # unit [h, w, D] -> unit float32 [h, w, D]
        """A map of the text's space correlated with itself, see ops/correlation.py."""
        return np.asarray(self.run(_self_correlated, features[None]))[0]

    def features(self, images, layer=None):
        """uint8 [B, H, W, 3] as they are -> pooled [B, D] and patches [B, h, w, C], jax arrays of
        the model's dtype: what probes are trained on.

        layer: "encoder": before SAM's neck, with the mean as pooled; the last of a CLIP's tower,
        with its class token. "head": the CLIP head before its MLP; a CLIP's tower. "embedding": in
        the text's space. None: "head", of a SAM "encoder". UserError where the model has no such.
        """
        check("layer", layer, Layer)
        layer = layer or ("head" if self.gives("summary") else "encoder")
        if layer != "encoder":
            self.require("summary", what=f"the layer {layer!r}")
        images = checked("images", images, BATCH)
        if min(images.shape[1:3]) < self.patch:
            raise UserError(f"images must be at least a patch wide and high, {self.patch} px")
        return self.run(_features, images, dtype=self.dtype, layer=layer)

    # Masks

    def encode_frames(self, frames, sizes):  # uint8 [B, S, S, 3], int [B, 2] -> EncoderOutput
        """One encoder pass; `sizes` (height, width) of the photograph at each frame's top left.

        S is the encoder's image_size. UserError names an argument that cannot be used.
        """
        self.require("masks", what="a mask")
        frames, sizes = checked_frames(frames, sizes, self.encoder.image_size)
        return self.run(_encode_frames, frames, sizes, dtype=self.dtype)

    def head(self, tokens, size=None, reading=PAPER):
        """The CLIP head on an encoder pass, [B, h, w, C]: unit embeddings of each image, float32
        [B, D], and of its patches, [B, rows, columns, D].

        size: (height, width) px of the photographs at the frames' top left, all of the frame if
        None; the head does not see the padding. reading: its features; those of the image change
        with them. UserError names an argument that cannot be used.
        """
        self.require("masks", "text", what="the CLIP head")
        require_axes("tokens", tokens, ("B", "h", "w", self.encoder.width), "of an encoder pass")
        if size is not None:
            size = checked_sizes("size", size, (2,), range(1, self.encoder.image_size + 1))
            rows, columns = (-(-side // self.encoder.patch) for side in size)
            tokens = tokens[:, :rows, :columns]
        return jax.tree.map(np.asarray, self.run(_head, tokens, **reading.features))

    def predict_masks(self, embedding, index, points, labels, masks=None, multimask=False):
        """Masks for K prompts on a batch of image embeddings [B, h, w, C].

        index int [K]: the image that each prompt belongs to; points float [K, N, 2]: x, y in px of
        the frame; labels int [K, N] (see prompt_encoder); masks: logits [K, 4h, 4w] or None.
        Returns low_res_masks float32 [K, M, 4h, 4w] and scores [K, M]; M is 3 with multimask, the
        answers for an ambiguous prompt, else 1. UserError names an argument that cannot be used.
        """
        self.require("masks", what="a mask")
        channels = self.encoder.out_channels
        require_axes("embedding", embedding, ("B", "h", "w", channels), "of an encoder pass")
        prompts = decoder_arguments(index, points, labels, masks, embedding)
        height, width = (4 * side for side in embedding.shape[1:3])
        answers = 3 if multimask else 1
        low_res_masks = [np.zeros((0, answers, height, width), np.float32)]
        scores = [np.zeros((0, answers), np.float32)]
        with self._lock:
            embedding = sharding.copies(self.mesh, embedding)
        most = PROMPT_BATCH * self.device_count
        for chunk in zip(*(_chunks(array, most) for array in prompts), strict=True):
            padded = [self._padded(part, PROMPT_BATCH) for part in chunk]
            answer = self.run(_masks, *padded, whole=[embedding], multimask=bool(multimask))
            for arrays, array in zip((low_res_masks, scores), answer, strict=True):
                arrays.append(np.asarray(array)[: len(chunk[0])])
        return np.concatenate(low_res_masks), np.concatenate(scores)

    def _padded(self, array, most):
        """Zeros after the rows, up to a power of two for each device and `most`, so that few shapes
        are compiled."""
        share = -(-len(array) // self.device_count)
        rows = self.device_count * min(most, 1 << (share - 1).bit_length())
        return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))

    @property
    def encoder(self):
        """The config of SAM's image encoder."""
        return self.config.sam.encoder

    @property
    def patch(self):
        """The side of a patch, px."""
        return (self.encoder if self.side is None else self.config.vision).patch

    @property
    def side(self):
        """The side, px, of the squares that it sees; None: it takes images of any shape."""
        return self.family.side(self.config)


def _encode_image(module, images, dtype):
    return module.encode_image(_fitted(module, images), dtype)


def _encode_text(module, tokens, dtype):
    return module.encode_text(tokens, dtype)


def _encode_dense(module, images, dtype, self_correlation=False, **way):
    dense = module.encode_dense(_fitted(module, images), dtype, **way)
    return _self_correlated(module, dense) if self_correlation else dense


def _features(module, images, dtype, layer):
    if not hasattr(module, "encoder"):
        tower = module.vision
        grid = [side // tower.config.patch for side in images.shape[1:3]]
        tokens = tower.tokens(tower.preprocess(images, dtype, grid))
        tokens = tower.project(tokens) if layer == "embedding" else tower.post_norm(tokens)
        return tokens[:, 0], tokens[:, 1:].reshape(len(tokens), *grid, -1)
    tokens = module.encode(_fitted(module, images), dtype=dtype).tokens
    if layer == "encoder":
        return tokens.mean((1, 2)), tokens
    return module.text_head(tokens) if layer == "embedding" else module.text_head.features(tokens)


def _encode_frames(module, frames, sizes, dtype):
    return module.encode(frames, sizes, dtype)


def _head(module, tokens, self_correlation=False, **attention):
    pooled, dense = map(unit, module.text_head(tokens, **attention))
    return pooled, _self_correlated(module, dense) if self_correlation else dense


def _self_correlated(module, features):
    return unit(self_correlated(features))


def _masks(module, embedding, index, points, labels, masks=None, *, multimask):
    masks = None if masks is None else masks[:, None]
    low_res_masks, iou = module.predict_masks(
        embedding[index], points[:, None], labels[:, None], masks
    )
    chosen = slice(1, None) if multimask else slice(0, 1)
    return low_res_masks[:, 0, chosen], iou[:, 0, chosen]


def _fitted(module, images):
    """Images at sides that the patch divides; a CLIP resizes by itself."""
    if not hasattr(module, "encoder"):
        return images
    patch = module.encoder.config.patch
    sides = [max(1, int(side / patch + 0.5)) * patch for side in images.shape[1:3]]
    return resize_images(images, sides) if sides != list(images.shape[1:3]) else images


def _chunks(array, length):
    return [array[i : i + length] for i in range(0, len(array), length)]
