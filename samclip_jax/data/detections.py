"""What a detector found, in COCO's results format: a list of {"image_id", "category_id", "bbox",
"score"}, in one json file for a whole set. What else an entry has, masks too, is not read."""

import collections
import json
from typing import NamedTuple

from samclip_jax.data.annotations import numbers, shown, text_id
from samclip_jax.data.decode import line
from samclip_jax.errors import UserError
from samclip_jax.paths import existing


class Detection(NamedTuple):
    category: str
    bbox: list  # x, y, width, height, px
    score: float


def read_detections(path, source):
    """{image_id: [Detection]} of a file, for the images and categories of a CocoInstances.

    UserError where the file holds none, names one that cannot be read, or has some of images or
    categories that the source does not know: it was made for another set.
    """
    path = existing(path)
    ids = getattr(source, "image_ids", None)
    if ids is None:
        raise UserError(f"{source} has no image ids: detections need the source coco_instances.")
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not in COCO's results format: {line(error)}.") from None
    if isinstance(entries, dict) and "annotations" in entries:
        raise UserError(f"{path} holds annotations; give detections, in COCO's results format.")
    if not isinstance(entries, list):
        raise UserError(f"{path} is not in COCO's results format: it holds {shown(entries)}.")
    if not entries:
        raise UserError(f"{path} lists no detections.")
    detections = collections.defaultdict(list)
    images, categories = set(ids), source.categories
    for place, entry in enumerate(entries):
        try:
            image, category = text_id(entry["image_id"]), text_id(entry["category_id"])
            *bbox, score = numbers([*entry["bbox"], entry["score"]]).tolist()
            _x, _y, _width, _height = bbox
        except (LookupError, TypeError, ValueError):
            raise UserError(
                f"{path}: entry {place} is {shown(entry)}; a detection has an image_id, a "
                "category_id, a bbox of four numbers and a score."
            ) from None
        for id, what, known in ((image, "image", images), (category, "category", categories)):
            if id not in known:
                raise UserError(
                    f"{path}: entry {place} is of {what} {id}, which {source.path} does not list: "
                    "take the detections of this set."
                )
        detections[image].append(Detection(categories[category], bbox, score))
    return dict(detections)
