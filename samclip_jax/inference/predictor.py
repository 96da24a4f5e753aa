"""Questions about one photograph; names and semantics of segment_anything.SamPredictor."""

import numpy as np
from scipy import special

from samclip_jax.data import transforms
from samclip_jax.errors import UserError
from samclip_jax.inference import frames
from samclip_jax.inference.images import PHOTOGRAPH, checked
from samclip_jax.inference.prompts import decoder_prompts, numbers
from samclip_jax.inference.reading import PAPER, Reading, pruned, require_readable
from samclip_jax.inference.refine import Refinement, refined_labels
from samclip_jax.inference.texts import PHOTO
from samclip_jax.inference.windows import Windows
from samclip_jax.validation import NonNegativeInt, check

WINDOWS = 8  # that a device takes at once


class Predictor:
    """Masks, classes and label maps of one photograph, all from the encoder pass of `set_image`.

    A plain SAM has masks only; a plain CLIP has classes, and label maps from its patch tokens.
    """

    mask_threshold = 0.0

    def __init__(self, model):
        self.model = model
        self.reset_image()

    def reset_image(self):
        """Forgets the photograph."""
        self.original_size = None  # (height, width) px
        self.input_size = None  # the same in the encoder's frame
        self._image = self._encoded = self._text_space = None

    @property
    def is_image_set(self):
        return self._image is not None

    def set_image(self, image, image_format="RGB"):  # uint8 [H, W, 3]
        """Encodes the photograph that everything else is about. image_format: RGB or BGR."""
        if image_format not in ("RGB", "BGR"):
            raise UserError(f"image_format must be RGB or BGR, got {image_format!r}")
        image = checked("image", image, PHOTOGRAPH)
        self.reset_image()
        self._image = np.array(image if image_format == "RGB" else image[..., ::-1])
        self.original_size = image.shape[:2]
        if self.model.gives("masks"):
            frame, self.input_size = frames.to_frame(self._image, self.model.encoder.image_size)
            self._encoded = self.model.encode_frames(frame[None], np.int32([self.input_size]))

    def get_image_embedding(self):  # -> float32 [1, C, h, w]
        """What the mask decoder reads; channels first, as in the original."""
        self._require_masks()
        return np.asarray(self._encoded.embedding, np.float32).transpose(0, 3, 1, 2)

    # Masks

    def predict(
        self,
        point_coords=None,
        point_labels=None,
        box=None,
        mask_input=None,
        multimask_output=True,
        return_logits=False,
    ):
        """Masks for one prompt.

        point_coords [N, 2]: x, y in px of the photograph; point_labels [N]: 1 foreground, 0
        background, -1 no point, whose place is not looked at, but which is a token of its own and
        changes the masks a little, as in the original; box [4]: x0, y0, x1, y1, two opposite
        corners; mask_input [1, 4h, 4w]: logits, one of the low_res_masks of an earlier answer.
        Points and boxes may lie partly outside of the photograph; farther outside than it is long
        is a mistake. A box without area is taken as it is.
        Returns masks bool [C, H, W] (float32 logits with return_logits), scores [C], the model's
        estimate of each mask's IoU, and low_res_masks [C, 4h, 4w], logits. C is 3, or 1 without
        multimask_output. UserError names an argument that cannot be used.
        """
        prompts = self._prompts(point_coords, point_labels, box, mask_input, single=True)
        answers = self._predict(prompts, multimask_output, return_logits)
        return tuple(answer[0] for answer in answers)

    def predict_batch(
        self,
        point_coords=None,
        point_labels=None,
        boxes=None,
        mask_input=None,
        multimask_output=True,
        return_logits=False,
    ):
        """`predict` for K prompts at once: every argument and every answer has a first axis K.

        The original's predict_torch, but in px of the photograph. K may be 0. Prompts with fewer
        points than others are filled up with points labelled -1, see `predict`.
        """
        prompts = self._prompts(point_coords, point_labels, boxes, mask_input)
        return self._predict(prompts, multimask_output, return_logits)

    def predict_low_res(
        self,
        point_coords=None,
        point_labels=None,
        boxes=None,
        mask_input=None,
        multimask_output=True,
    ):
        """The low_res_masks and scores of `predict_batch`, without its masks."""
        prompts = self._prompts(point_coords, point_labels, boxes, mask_input)
        return self._predict_low_res(prompts, multimask_output)

    def postprocess_masks(self, low_res_masks):  # [..., 4h, 4w] -> float32 [..., H, W]
        """Logits at the photograph's own size."""
        self._require_masks()
        axes = ("...", *self._grid)
        low_res_masks = numbers("low_res_masks", low_res_masks, axes, "those of an answer")
        extent = (self.model.encoder.image_size,) * 2
        return frames.to_photograph(low_res_masks, extent, self.input_size, self.original_size)

    @property
    def _grid(self):  # (4h, 4w) of low_res_masks
        return tuple(4 * side for side in self._encoded.embedding.shape[1:3])

    def _prompts(self, *arguments, single=False):
        self._require_masks()
        return decoder_prompts(*arguments, self.original_size, self._grid, single)

    def _predict(self, prompts, multimask_output, return_logits):
        low_res_masks, scores = self._predict_low_res(prompts, multimask_output)
        masks = self.postprocess_masks(low_res_masks)
        return masks if return_logits else masks > self.mask_threshold, scores, low_res_masks

    def _predict_low_res(self, prompts, multimask_output):
        coords, labels, masks = prompts
        coords = transforms.scale_coords(coords, self.original_size, self.input_size)
        index = np.zeros(len(coords), np.int32)
        return self.model.predict_masks(
            self._encoded.embedding, index, coords, labels, masks, multimask_output
        )

    # Text

    def classify(self, names, templates=PHOTO):  # list of str -> float32 [N], sum 1
        """The probability of each name: softmax of the cosines times Model.logit_scale; see
        Model.class_embeddings."""
        self.model.require("summary", "text", what="classify")
        pooled, _, _, _ = self._embeddings()
        cosines = self.model.class_embeddings(names, templates) @ pooled
        return special.softmax(self.model.logit_scale * cosines)

    def segment(self, names, refine=False, templates=PHOTO, seed=0, reading=PAPER):
        """list of str -> int32 [H, W]: for every pixel the index of the name that fits best.

        From the CLIP head alone or, with refine=True or a Refinement, from both heads (paper 4.5);
        `seed`, 0 or more, is for the points that are then drawn. reading: a Reading, for what goes
        beyond the paper.
        """
        self.model.require("patches", "text", what="segment")
        if not isinstance(refine, bool | Refinement):
            raise UserError(f"refine must be True, False or a Refinement, got {refine!r}")
        check("reading", reading, Reading)
        check("seed", seed, NonNegativeInt)
        if refine:
            self._require_masks()
        require_readable(self.model, reading)
        dense, extent, size = self._map(reading)
        cosine = np.einsum("hwd,nd->nhw", dense, self.model.class_embeddings(names, templates))
        cosine = pruned(cosine, self.model.logit_scale, reading.prune)
        if not refine:
            labels = frames.label_map(cosine, extent, size, self.original_size)
        else:
            if reading.window is not None:
                cosine = frames.at_patches(cosine, self.input_size, self.model.patch)
            options = Refinement() if refine is True else refine
            photograph = ([cosine], [self.input_size], [self.original_size])
            embedding = self._encoded.embedding
            (labels,) = refined_labels(self.model, embedding, *photograph, options, [seed])
        if reading.vote_points:
            from samclip_jax.inference.vote import voted_by_masks  # it needs this module

            labels = voted_by_masks(self.model, self._image, labels, reading)
        return labels

    def _map(self, reading):  # -> dense [h, w, D]; px that it covers, px of the photograph in them
        self._require_image()
        if reading.window is not None:
            windows = Windows(reading, self.model.patch)
            image = windows.resized(self._image)
            rows = WINDOWS * self.model.device_count
            (dense,) = windows.read(self.model, [image], rows, reading)
            return dense, image.shape[:2], image.shape[:2]
        _, dense, extent, size = self._embeddings()
        if reading.features and self.model.side is not None:
            (dense,) = self.model.patch_embeddings(self._squashed(), reading=reading)
        elif reading.features:
            _, (dense,) = self.model.head(self._encoded.tokens, size, reading)
        return dense, extent, size

    def _squashed(self):  # -> uint8 [1, side, side, 3], as a CLIP sees all of the photograph
        side = self.model.side
        return transforms.resize(self._image, side, side, transforms.BICUBIC)[None]

    def _embeddings(self):
        """pooled [D] and dense [h, w, D] in the text's space; the px that dense covers, and those
        of them that are the photograph's. The head does not see the frame's padding."""
        self._require_image()
        if self._text_space is not None:
            return self._text_space
        if side := self.model.side:
            pooled = self.model.encode_image(self._image[None])
            dense = self.model.patch_embeddings(self._squashed())
            extent = size = (side, side)
        else:
            patch, size = self.model.encoder.patch, self.input_size
            pooled, dense = self.model.head(self._encoded.tokens, size)
            extent = tuple(patch * side for side in dense.shape[1:3])
        self._text_space = pooled[0], dense[0], extent, size
        return self._text_space

    def _require_image(self):
        if not self.is_image_set:
            raise UserError("no image is set: call set_image first")

    def _require_masks(self):
        self._require_image()
        self.model.require("masks", what="a mask")
