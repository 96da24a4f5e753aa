"""Where images and annotations come from: random-access sources with one small protocol.

A source has a length, and `source[i]` is a record, a dict:

    key          str, unique in its source, the same in every run
    image        uint8 [H, W, 3], RGB, or a decode.Jpeg, which becomes it by np.asarray
    annotations  list of {"box": float32 [4], x0 y0 x1 y1 in px, "point": float32 [2], x y, or None,
                 "mask": np.asarray(mask) is bool [H, W], decoded on demand, or None,
                 "area": float, px, "category": str or None}      where it has objects
    semantic     int32 [h, w], index into source.classes, -1 without a class, of the image's aspect
                 ratio and perhaps more pixels                                     where it has maps
    label        int, index into source.classes                  where it has image classes
    captions     list of str, what people said of the image           where it has captions

A record that cannot be used raises decode.BadRecord with one of the REASONS there, a Jpeg when it
is decoded: training replaces it, evaluation skips it, both count it. What is wrong with a source as
a whole is a UserError.
"""

import difflib
import inspect
import json
import os
import pathlib

import numpy as np

from samclip_jax.data import records
from samclip_jax.data.decode import (
    SUFFIXES,
    annotation,
    checked,
    decode_image,
    line,
    open_image,
    sa1b_objects,
)
from samclip_jax.data.shapes import ShapeObjects, ShapeScenes
from samclip_jax.errors import UserError, os_errors


def make_source(name, weight=None, **options):
    """The source of that name; `options` are its constructor's, None where they are not given.

    weight: how often an epoch of a stream has each of its records; 1 where it is None. UserError
    says what is wrong.
    """
    options = {option: value for option, value in options.items() if value is not None}
    if name not in SOURCES:
        near = difflib.get_close_matches(str(name), SOURCES, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no source {name!r}; {guess}There are: {', '.join(SOURCES)}.")
    signature = inspect.signature(SOURCES[name])
    taken = signature.parameters
    if unknown := [option for option in options if option not in taken]:
        raise UserError(f"source {name!r} takes {signature}, not {', '.join(unknown)}.")
    required = [option for option in taken if taken[option].default is inspect.Parameter.empty]
    if missing := [option for option in required if option not in options]:
        raise UserError(f"source {name!r} takes {signature}; set {' and '.join(missing)}.")
    weight = 1 if weight is None else weight
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1000:
        raise UserError(f"the weight of a source must be over 0 and at most 1000, got {weight!r}.")
    source = SOURCES[name](**options)
    source.weight = weight
    return source


# Sources


class Files:
    """A source that lies at `path`."""

    def __init__(self, path):
        self.path = existing(path)

    def __repr__(self):
        return f"{type(self).__name__}({self.path})"


class ImageFolder(Files):
    """Every image under a folder. With `labels` its sub-folders are the classes, sorted by name."""

    def __init__(self, path, labels=False):
        super().__init__(path)
        self.files = sorted(
            os.path.relpath(os.path.join(folder, name), self.path)
            for folder, _, names in os.walk(self.path, followlinks=True)
            for name in names
            if name.lower().endswith(SUFFIXES)
        )
        if not self.files:
            raise UserError(f"no images under {path} ({' '.join(SUFFIXES)}).")
        self.labels = labels
        if labels:
            loose = [name for name in self.files if os.sep not in name]
            if loose:
                raise UserError(f"{path} needs a folder for each class; {loose[0]} is in none.")
            self.classes = sorted({name.split(os.sep)[0] for name in self.files})

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        name = self.files[index]
        record = {"key": pathlib.Path(name).as_posix(), "image": open_image(self.path / name)}
        if self.labels:
            record["label"] = self.classes.index(name.split(os.sep)[0])
        return record


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


class Sa1b(ImageFolder):
    """SA-1B as released and unpacked: sa_1.jpg beside sa_1.json, in any folders under `path`."""

    def __init__(self, path):
        super().__init__(path)

    def __getitem__(self, index):
        name = self.files[index]
        with checked():
            size, objects = sa1b_objects((self.path / name).with_suffix(".json").read_bytes())
            found = [annotation(entry, size, point) for entry, point in objects]
            image = open_image(self.path / name, size)
        found = [each for each in found if each is not None]
        return {"key": pathlib.Path(name).as_posix(), "image": image, "annotations": found}


class Prepared(Files):
    """What `python -m samclip_jax.data.prepare` made of a data set; `split` train or validation."""

    def __init__(self, path, split="train"):
        super().__init__(path)
        with os_errors(f"{path} was not read"):
            manifest = records.read_manifest(self.path)
        if manifest is None:
            raise UserError(f"{path} has no {records.MANIFEST}; let data.prepare come to its end.")
        names = [each["name"] for each in manifest["shards"] if each["split"] == split]
        if not names:
            known = ", ".join(sorted({each["split"] for each in manifest["shards"]}))
            raise UserError(f"{path} has no split {split!r}; it has {known}.")
        self.classes = manifest["classes"]
        self.index = {name: i for i, name in enumerate(self.classes)}
        self.shards = records.read_shards([self.path / records.SHARDS / name for name in names])

    def __len__(self):
        return len(self.shards)

    def __getitem__(self, index):
        record = records.decode(self.shards[index])
        if "label" in record:
            record["label"] = self.index[record["label"]]
        return record


def existing(path):
    """The path, without ~. UserError where nothing lies there."""
    if not str(path):
        raise UserError("no path is set; give the path where the data lie.")
    path = pathlib.Path(str(path)).expanduser()
    with os_errors(f"{path} was not read"):
        exists = path.exists()
    if not exists:
        raise UserError(f"{path} does not exist; give the path where the data lie.")
    return path


SOURCES = {
    "folder": ImageFolder,
    "coco_instances": CocoInstances,
    "coco_panoptic": CocoPanoptic,
    "captions": Captions,
    "sa1b": Sa1b,
    "prepared": Prepared,
    "shape_scenes": ShapeScenes,
    "shape_objects": ShapeObjects,
}
