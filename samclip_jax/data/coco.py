"""COCO's formats: instances (LVIS' as well), panoptic maps and captions."""

import json
import os

import numpy as np

from samclip_jax.data.annotations import annotation, checked
from samclip_jax.data.decode import decode_image, line, open_image
from samclip_jax.data.files import Files
from samclip_jax.errors import UserError
from samclip_jax.paths import existing


class Coco(Files):
    """What COCO's formats share: a json file of images, annotations and categories."""

    def __init__(self, annotations, images):
        super().__init__(annotations)
        self.folder = existing(images)
        try:
            contents = json.loads(self.path.read_bytes())
            self.names = {each["id"]: each["name"] for each in contents["categories"]}
            self.images = {each["id"]: each | _file_name(each) for each in contents["images"]}
            self.annotations = {image: [] for image in self.images}
            for each in contents["annotations"]:
                if each["image_id"] in self.annotations:
                    self.annotations[each["image_id"]].append(each)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{annotations} is not in COCO's format: {line(error)}.") from None
        self.classes = list(self.names.values())
        self.ids = list(self.images)
        if not self.ids:
            raise UserError(f"{annotations} lists no images.")

    def __len__(self):
        return len(self.ids)


def _file_name(entry):
    """LVIS tells the photographs of COCO by their address alone: val2017/000000397133.jpg."""
    if "file_name" in entry:
        return {"file_name": str(entry["file_name"])}
    return {"file_name": "/".join(entry["coco_url"].split("/")[-2:])}


class CocoInstances(Coco):
    """Objects in COCO's instances format, crowds left out."""

    def __getitem__(self, index):
        entry = self.images[self.ids[index]]
        with checked():
            size = (entry["height"], entry["width"])
            found = [
                annotation(each, size, category=self.names[each["category_id"]])
                for each in self.annotations[entry["id"]]
                if not each.get("iscrowd")
            ]
            image = open_image(self.folder / entry["file_name"], size)
        found = [each for each in found if each is not None]
        return {"key": entry["file_name"], "image": image, "annotations": found}


class CocoPanoptic(Coco):
    """Semantic maps from COCO's panoptic format; `maps` is the folder of id-coloured png files."""

    def __init__(self, annotations, images, maps):
        super().__init__(annotations, images)
        self.maps = existing(maps)
        self.index = {category: i for i, category in enumerate(self.names)}

    def __getitem__(self, index):
        entry = self.images[self.ids[index]]
        semantic = panoptic_map(self.maps, self.index, self.annotations[entry["id"]])
        image = open_image(self.folder / entry["file_name"], semantic.shape)
        return {"key": entry["file_name"], "image": image, "semantic": semantic}


def panoptic_map(folder, index, annotations):  # -> int32 [H, W]
    """The semantic map of an image from its entry in panoptic json, the only one in `annotations`.

    folder: of the png files; index: {category: class}. BadRecord if it cannot be read.
    """
    with checked():
        (painted,) = annotations
        colours = decode_image(folder / painted["file_name"]).astype(np.int64)
        ids, inverse = np.unique(colours @ (1, 256, 256**2), return_inverse=True)
        classes = {each["id"]: index[each["category_id"]] for each in painted["segments_info"]}
        labels = np.int32([classes.get(each, -1) for each in ids.tolist()])
        return labels[inverse.reshape(colours.shape[:2])]


class Captions(Files):
    """Photographs with captions: COCO's captions json, or Karpathy's, of which `split` is taken."""

    def __init__(self, annotations, images, split=None):
        super().__init__(annotations)
        self.folder = existing(images)
        try:
            contents = json.loads(self.path.read_bytes())
            karpathy = "annotations" not in contents
            self.captions = _karpathy(contents, split) if karpathy else _captions(contents)
            if not all(isinstance(each, str) for texts in self.captions.values() for each in texts):
                raise TypeError("a caption is no text")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{annotations} has no captions as COCO: {line(error)}.") from None
        if split and not karpathy:
            raise UserError(f"{annotations} has no splits: leave out {split!r}.")
        self.captions = {name: texts for name, texts in self.captions.items() if texts}
        if not self.captions:
            raise UserError(f"{annotations} has no image with a caption in {split or 'any split'}.")
        self.names = list(self.captions)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name = self.names[index]
        image = open_image(self.folder / name)
        return {"key": name, "image": image, "captions": self.captions[name]}


def _captions(contents):
    names = {each["id"]: each["file_name"] for each in contents["images"]}
    found = {name: [] for name in names.values()}
    for each in contents["annotations"]:
        found[names[each["image_id"]]].append(each["caption"])
    return found


def _karpathy(contents, split):
    return {
        os.path.join(each.get("filepath", ""), each["filename"]): [
            sentence["raw"] for sentence in each["sentences"]
        ]
        for each in contents["images"]
        if split in (None, each["split"])
    }
