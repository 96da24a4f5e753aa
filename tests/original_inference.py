"""segment_anything's SamPredictor and SamAutomaticMaskGenerator, what they use of torchvision told
in Pillow and torch."""

import originals
import torch
from PIL import Image
from segment_anything import automatic_mask_generator
from segment_anything.predictor import SamPredictor
from segment_anything.utils import transforms


def batched_nms(boxes, scores, categories, iou_threshold):
    """torchvision.ops.batched_nms of one category."""
    kept = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        low = torch.maximum(boxes[i, :2], boxes[kept, :2])
        high = torch.minimum(boxes[i, 2:], boxes[kept, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        if not (shared / (area[i] + area[kept] - shared) > iou_threshold).any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.long)


transforms.to_pil_image = Image.fromarray
transforms.resize = lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR)
automatic_mask_generator.batched_nms = batched_nms


def predictor(config, weights):
    """The original's SamPredictor with `weights` in its own layout."""
    return SamPredictor(_sam(config, weights))


def mask_generator(config, weights, **options):
    return automatic_mask_generator.SamAutomaticMaskGenerator(_sam(config, weights), **options)


def _sam(config, weights):
    model = originals.sam(config)
    model.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    return model
