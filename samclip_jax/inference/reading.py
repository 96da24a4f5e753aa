"""How a map of the text's classes is read from a model; what the paper does not do is off."""

import dataclasses

import numpy as np
from scipy import special

from samclip_jax.config import TEXT_HEAD
from samclip_jax.errors import UserError
from samclip_jax.inference.windows import Windows
from samclip_jax.models.clip_head import Attention
from samclip_jax.validation import NonNegativeInt, PositiveInt, Share, Validated


@dataclasses.dataclass(frozen=True)
class Reading(Validated):
    """The defaults are the paper's form. Of a plain CLIP `attention` must be left as it is."""

    attention: Attention = "softmax"  # of the head's last blocks; see models/clip_head.py: attend
    blocks: PositiveInt = 1  # how many of them
    self_correlation: bool = False  # of the map; see ops/correlation.py
    prune: Share = 0.0  # classes nowhere more probable than this are left out (RADSeg: 0.5)
    window: PositiveInt | None = None  # px; see inference/windows.py (RADSeg: 336)
    stride: PositiveInt | None = None  # px; half a window if None (RADSeg: 112 to 224)
    short: PositiveInt = 448  # px, the image's short side when windows are read
    vote_points: NonNegativeInt = 0  # a side; over 0: a vote of the pixels of each of its masks
    vote_iou: float = 0.88  # pred_iou_thresh of the MaskGenerator of these
    vote_stability: float = 0.95  # its stability_score_thresh

    @property
    def features(self):
        """What the model computes differently, as keywords for its programs; {} for nothing."""
        if self.attention == "softmax":
            changed = {}
        else:
            changed = {"attention": self.attention, "blocks": self.blocks}
        return changed | ({"self_correlation": True} if self.self_correlation else {})


PAPER = Reading()


def require_readable(model, reading):
    """UserError unless the model can be read so."""
    if reading.vote_points:
        model.require("masks", what="reading.vote_points")
    if reading.attention != "softmax":
        if model.side is not None:
            raise UserError("reading.attention is that of a merged model's head: a CLIP has none")
        depth = model.config.heads[TEXT_HEAD].depth
        if reading.blocks > depth:
            raise UserError(f"reading.blocks must be at most {depth}, those of the CLIP head")
    if reading.window is not None:
        if model.side not in (None, reading.window):
            raise UserError(f"reading.window must be {model.side}, the px that this CLIP sees")
        Windows(reading, model.patch)


def pruned(cosines, scale, share):  # float [N, h, w] -> [N, h, w]
    """The cosines with -1 for each text that is nowhere more probable than `share`, if another one
    is: RADSeg's prompt denoising."""
    if not share:
        return cosines
    likely = special.softmax(scale * cosines, axis=0).max((1, 2)) > share
    return np.where(likely[:, None, None] | ~likely.any(), cosines, np.float32(-1))
