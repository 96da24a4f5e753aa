"""Questions about one photograph; names and semantics of segment_anything.SamPredictor."""

import numpy as np
from scipy import special

from samclip_jax.data import transforms
from samclip_jax.errors import UserError
from samclip_jax.inference import frames
from samclip_jax.inference.model import PHOTO, checked
from samclip_jax.inference.refine import Refinement, refined_labels
from samclip_jax.models.prompt_encoder import (
    ABSENT,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    NOT_A_POINT,
)

LOGIT_SCALE = 100.0  # of cosines; where CLIP's own temperature ends


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
        image = checked(image, ("H", "W", "3"))
        self.reset_image()
        self._image = image if image_format == "RGB" else image[..., ::-1]
        self.original_size = image.shape[:2]
        if self.model.kind != "clip":
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
        background; box [4]: x0, y0, x1, y1; mask_input [1, 4h, 4w]: logits of an earlier answer.
        Returns masks bool [C, H, W] (float32 logits with return_logits), scores [C], the model's
        estimate of each mask's IoU, and low_res_masks [C, 4h, 4w], logits. C is 3, or 1 without
        multimask_output.
        """
        given = (point_coords, point_labels, box, mask_input)
        given = (None if each is None else np.asarray(each)[None] for each in given)
        answers = self.predict_batch(*given, multimask_output, return_logits)
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

        The original's predict_torch, but in px of the photograph.
        """
        low_res_masks, scores = self.predict_low_res(
            point_coords, point_labels, boxes, mask_input, multimask_output
        )
        masks = self.postprocess_masks(low_res_masks)
        return masks if return_logits else masks > self.mask_threshold, scores, low_res_masks

    def predict_low_res(
        self,
        point_coords=None,
        point_labels=None,
        boxes=None,
        mask_input=None,
        multimask_output=True,
    ):
        """The low_res_masks and scores of `predict_batch`, without its masks."""
        self._require_masks()
        coords, labels = _prompt_points(point_coords, point_labels, boxes, mask_input)
        coords = transforms.scale_coords(coords, self.original_size, self.input_size)
        masks = None if mask_input is None else self._low_res(mask_input)
        index = np.zeros(len(coords), np.int32)
        return self.model.predict_masks(
            self._encoded.embedding, index, coords, labels, masks, multimask_output
        )

    def postprocess_masks(self, low_res_masks):  # [..., 4h, 4w] -> float32 [..., H, W]
        """Logits at the photograph's own size."""
        extent = (self.model.encoder.image_size,) * 2
        return frames.to_photograph(low_res_masks, extent, self.input_size, self.original_size)

    # Text

    def classify(self, names, templates=PHOTO):  # list of str -> float32 [N], sum 1
        """The probability of each name, softmax of 100 x cosine; see Model.class_embeddings."""
        self.model.require("clip", "samclip", what="classify")
        pooled, _, _, _ = self._embeddings()
        return special.softmax(LOGIT_SCALE * self.model.class_embeddings(names, templates) @ pooled)

    def segment(self, names, refine=False, templates=PHOTO, seed=0):  # list of str -> int32 [H, W]
        """For every pixel the index of the name that fits best.

        From the CLIP head alone or, with refine=True or a Refinement, from both heads (paper 4.5);
        `seed` is for the points that are then drawn.
        """
        self.model.require("clip", "samclip", what="segment")
        _, dense, extent, size = self._embeddings()
        cosine = np.einsum("hwd,nd->nhw", dense, self.model.class_embeddings(names, templates))
        if not refine:
            return frames.label_map(cosine, extent, size, self.original_size)
        self._require_masks()
        options = Refinement() if refine is True else refine
        photograph = ([cosine], [size], [self.original_size])
        return refined_labels(self.model, self._encoded.embedding, *photograph, options, [seed])[0]

    def _embeddings(self):
        """pooled [D] and dense [h, w, D] in the text's space; the px that dense covers, and those
        of them that are the photograph's. The head does not see the frame's padding."""
        self._require_image()
        if self._text_space is not None:
            return self._text_space
        if self.model.kind == "clip":
            side = self.model.config.vision.image_size
            crop = transforms.centre_crop(self._image, side)
            whole = transforms.resize(self._image, side, side, transforms.BICUBIC)
            pooled = self.model.encode_image(crop[None])
            dense = self.model.patch_embeddings(whole[None])
            extent = size = (side, side)
        else:
            patch, size = self.model.encoder.patch, self.input_size
            rows, columns = (-(-side // patch) for side in size)
            pooled, dense = self.model.head(self._encoded.tokens[:, :rows, :columns])
            extent = (rows * patch, columns * patch)
        self._text_space = pooled[0], dense[0], extent, size
        return self._text_space

    def _low_res(self, mask_input):  # [K, 1, 4h, 4w] -> [K, 4h, 4w]
        wanted = tuple(4 * side for side in self._encoded.embedding.shape[1:3])
        mask_input = np.asarray(mask_input, np.float32)
        if mask_input.shape[1:] != (1, *wanted):
            raise UserError(
                f"mask_input must be low_res_masks of an earlier answer, {[1, *wanted]}; got "
                f"{list(mask_input.shape[1:])}"
            )
        return mask_input[:, 0]

    def _require_image(self):
        if not self.is_image_set:
            raise UserError("no image is set: call set_image first")

    def _require_masks(self):
        self._require_image()
        self.model.require("sam", "samclip", what="a mask")


def _prompt_points(point_coords, point_labels, boxes, mask_input):
    """K prompts as coords float [K, N, 2] and labels int [K, N], N a power of two.

    As the original: a prompt without a box ends in one NOT_A_POINT. ABSENT slots fill up.
    """
    if (point_coords is None) != (point_labels is None):
        raise UserError("point_coords and point_labels go together: give both")
    given = [each for each in (point_coords, boxes, mask_input) if each is not None]
    if not given:
        raise UserError("nothing to predict from: give points, a box or a mask")
    count = len(given[0])
    coords, labels = np.zeros((count, 0, 2)), np.zeros((count, 0), np.int32)
    if point_coords is not None:
        coords, labels = np.asarray(point_coords, float), np.asarray(point_labels, np.int32)
        if boxes is None:
            coords = np.concatenate([coords, np.zeros((count, 1, 2))], 1)
            labels = np.concatenate([labels, np.full((count, 1), NOT_A_POINT)], 1)
    if boxes is not None:
        corners = np.asarray(boxes, float).reshape(count, 2, 2)
        coords = np.concatenate([coords, corners], 1)
        labels = np.concatenate([labels, np.tile([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], (count, 1))], 1)
    if coords.shape != (*labels.shape, 2):
        raise UserError(
            f"points need [x, y] and a label each; got {list(coords.shape)}, {list(labels.shape)}"
        )
    slots = max(2, 1 << (coords.shape[1] - 1).bit_length())
    spare = ((0, 0), (0, slots - coords.shape[1]))
    return np.pad(coords, (*spare, (0, 0))), np.pad(labels, spare, constant_values=ABSENT)
