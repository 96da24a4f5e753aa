"""COCO's formats: instances (LVIS' as well) and panoptic maps.

Ids that are numbers in one list and text in another are matched as text. An entry that cannot be
used costs itself: an image's, its record; an annotation's, the annotation.
"""

import collections
import functools
import json
import os
import pickle
import re
import zlib

import numpy as np
from absl import logging

from samclip_jax.data.annotations import (
    BadAnnotation,
    annotation,
    checked,
    crowd,
    entry_name,
    image_size,
    report_dropped,
    shown,
    text_id,
    unknown_category,
    usable,
)
from samclip_jax.data.decode import BadRecord, decode_image, line, open_image
from samclip_jax.data.files import Files
from samclip_jax.data.label_maps import require_class
from samclip_jax.errors import UserError
from samclip_jax.paths import existing

# What an annotation of each format has and those of the others have not: what it is, who reads it.
FORMATS = {
    "segments_info": ("panoptic maps", "coco_panoptic"),
    "caption": ("captions", "captions"),
    "bbox": ("instances", "coco_instances, which data.prepare calls coco"),
}
# What LVIS says of an image: see sources.py, and by which name.
FEDERATED = {"absent": "neg_category_ids", "incomplete": "not_exhaustive_category_ids"}
OF_2014 = re.compile(r"COCO_[a-z]+2014_(\d{12}\.jpg)")


class CompressedList(collections.abc.Sequence):
    """A list of json's values as bytes, each decoded, to a copy, when it is asked for.

    A source is sent to every worker and stays there: as Python's objects a json file takes five
    times its size, and longer to arrive than to be read.
    """

    def __init__(self, values):
        self._blocks = [zlib.compress(pickle.dumps(value), level=1) for value in values]

    def __len__(self):
        return len(self._blocks)

    def __getitem__(self, index):
        return pickle.loads(zlib.decompress(self._blocks[index]))


class Coco(Files):
    """What COCO's formats share: a json file of images, categories and annotations.

    images, a CompressedList, and dropped: as `match` makes them. image_ids: of all images, as text,
    None where an entry has none. categories: {id as text: name}.
    frequencies: {name: "r", "c" or "f"} of LVIS, which says how many images have it; else None.
    UserError where the file is of another format or its ids do not fit together.
    """

    has = None  # the key of FORMATS
    sized = False  # whether the size of an image must be known from its entry

    def __init__(self, annotations, images):
        super().__init__(annotations)
        self.folder = existing(images)
        contents = read_contents(self.path)
        images, self.dropped = match(self.path, contents, self.has, self.folder, self.sized)
        self.categories = _categories(self.path, contents, self.category_ids(images))
        self.frequencies = _frequencies(contents)
        self.image_ids = [image["id"] for image in images]
        if self.frequencies:
            _require_lists(self.path, images)
        self.images = CompressedList(images)
        self.classes = list(self.categories.values())

    def __len__(self):
        return len(self.images)

    def category_ids(self, images):
        """Those that annotations have, as they have them."""
        return [each.get("category_id") for image in images for each in image["annotations"]]

    def image(self, index):
        """An entry of `images`. BadRecord where it cannot be used."""
        return usable_image(self.images[index])


def usable_image(image):
    """The image of `match` itself. BadRecord where its entry cannot be used."""
    if image["error"]:
        raise BadRecord("bad_annotation", f"{image['key']}: {image['error']}")
    return image


def match(path, contents, has, folder, sized=False):
    """Images and, matched to them by their ids, annotations of COCO's json: images, dropped.

    Of each image the dict {"key": path under `folder`, "id": as text, "size": (height, width) if
    `sized`, "error": what is wrong with its entry or None, "annotations": entries, and what it has
    of FEDERATED, ids as text}; [(image, annotation, reason, detail)] of annotations that belong to
    none. has: the key of FORMATS that annotations must have.
    """
    images, annotations = (listed(path, contents, name) for name in ("images", "annotations"))
    _require_format(path, has, annotations)
    if not images:
        raise UserError(f"{path} lists no images.")
    matched, dropped, by_id = [], [], {}
    for place, entry in enumerate(images):
        matched.append(_image(entry, place, sized))
        id = text_id(entry.get("id")) if isinstance(entry, dict) else None
        if id in by_id:
            matched[-1]["error"] = f"its id {shown(id)} is that of {by_id[id]['key']}, too"
        elif id is not None:
            by_id[id] = matched[-1]
    _use_names_of_2017(folder, matched, images)
    refuse_repeated(matched)
    for place, entry in enumerate(annotations):
        id = text_id(entry.get("image_id")) if isinstance(entry, dict) else None
        if id in by_id:
            by_id[id]["annotations"].append(entry)
        else:
            reason = "unknown_image" if isinstance(entry, dict) else "bad_entry"
            detail = f"its image_id {shown(id)} is not among the images"
            dropped.append((f"image {id}", entry_name(entry, place), reason, detail))
    if annotations and len(dropped) == len(annotations):
        raise UserError(
            f"{path}: no 'image_id' of its annotations, such as {_example(annotations, 'image_id')}"
            f", is an 'id' of its images, such as {_example(images, 'id')}; mend the ids."
        )
    report_dropped_of_file(path, dropped)
    return matched, dropped


def _categories(path, contents, used):  # -> {id as text: name}
    """used: the ids that annotations have; UserError where none of them is listed."""
    categories = {}
    for place, entry in enumerate(listed(path, contents, "categories")):
        id, name = _category(entry)
        if id is None or name is None:
            raise UserError(
                f"{path}: categories[{place}] is {shown(entry)}; give it an 'id' and a 'name'."
            )
        if categories.setdefault(id, name) != name:
            raise UserError(f"{path}: category {id} is {categories[id]!r} and {name!r}; mend it.")
    if used and not any(text_id(id) in categories for id in used):
        raise UserError(
            f"{path}: no 'category_id' of its annotations, such as {shown(used[0])}, is an 'id' of "
            f"its categories, such as {shown(next(iter(categories), None))}; mend the ids."
        )
    return categories


def _frequencies(contents):
    frequencies = {_category(entry)[1]: entry.get("frequency") for entry in contents["categories"]}
    known = all(frequency in ("r", "c", "f") for frequency in frequencies.values())
    return frequencies if known else None


def _require_lists(path, images):
    """UserError where an image of LVIS lacks one of FEDERATED."""
    for image in images:
        for name, key in FEDERATED.items():
            if name not in image and image["error"] is None:
                raise UserError(
                    f"{path}: image {image['id']} has no {key!r}; give LVIS's own json."
                )


def listed(path, contents, name):
    """A list of the json at `path`, or UserError."""
    if not isinstance(contents.get(name), list):
        raise UserError(f"{path} is not in COCO's format: it has no list {name!r}.")
    return contents[name]


def read_contents(path):
    """The object of a json file. UserError where it holds none."""
    try:
        contents = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not in COCO's format: {line(error)}.") from None
    if isinstance(contents, list):
        raise UserError(
            f"{path} is a COCO results file, a list of detections; give the json of the "
            "annotations, such as instances_val2017.json."
        )
    if not isinstance(contents, dict):
        raise UserError(f"{path} is not in COCO's format: it holds {shown(contents)}.")
    return contents


def _require_format(path, has, annotations):
    """UserError where the first annotations are of another of COCO's formats."""
    few = [entry for entry in annotations[:100] if isinstance(entry, dict)]
    others = [name for name in FORMATS if name != has and any(name in entry for entry in few)]
    if few and others and not any(has in entry for entry in few):
        what, name = FORMATS[others[0]]
        raise UserError(f"{path} holds {what}, not {FORMATS[has][0]}; read it as {name}.")


def report_dropped_of_file(path, dropped):
    """Writes how many annotations of a file are left out to the log, and the first one."""
    if dropped:
        image, name, reason, detail = dropped[0]
        text = "%s: %d annotations are left out, the first is %s of %s, %s: %s"
        logging.warning(text, path, len(dropped), name, image, reason, detail)


def _example(entries, name):
    values = (entry[name] for entry in entries if isinstance(entry, dict) and name in entry)
    return shown(next(values, None))


def _category(entry):  # -> id, name; LVIS v0.5 has synonyms
    if not isinstance(entry, dict):
        return None, None
    synonyms = entry.get("synonyms")
    name = entry.get("name", synonyms[0] if isinstance(synonyms, list) and synonyms else None)
    return text_id(entry.get("id")), text_id(name) if is_text(text_id(name)) else None


def _image(entry, place, sized):
    """What is known of an image by its entry: see Coco. sized: the size must be."""
    image = {"key": f"images[{place}]", "id": None, "error": None, "size": None, "annotations": []}
    try:
        with checked():
            image["key"] = _file_name(entry)
            image["id"] = text_id(entry.get("id"))
            if image["id"] is None:
                raise ValueError("its entry has no id")
            for name, key in FEDERATED.items():
                if key in entry:
                    image[name] = [text_id(id) for id in entry[key]]
            if sized:
                image["size"] = image_size(entry)
    except BadRecord as bad:
        image["error"] = str(bad.detail)
    return image


def _file_name(entry):
    """LVIS tells the photographs of COCO by their address alone: val2017/000000397133.jpg."""
    if "file_name" in entry:
        name = entry["file_name"]
    else:
        name = "/".join(entry["coco_url"].split("/")[-2:])
    if not is_file_name(name):
        raise ValueError(f"{shown(name)} is no name of a file")
    return name


def _use_names_of_2017(folder, images, entries):
    """LVIS v0.5 calls the files of COCO's release of 2017, which it is made for, by their names of
    2014: the first name by which one of them is there is that of all."""
    renamed = []
    for image, entry in zip(images, entries, strict=True):
        if named := OF_2014.fullmatch(image["key"]):
            url = str(entry.get("coco_url", "")).split("/")
            renamed.append((image, (image["key"], named[1], "/".join(url[-2:]))))
    for _, names in renamed[:100]:
        if there := [form for form, name in enumerate(names) if (folder / name).is_file()]:
            for image, names in renamed:
                image["key"] = names[there[0]]
            return


def refuse_repeated(images):
    """Sets the error of images whose key an earlier one has: keys are unique in a source."""
    keys = set()
    for image in images:
        if image["error"] is None and image["key"] in keys:
            image["error"] = "an earlier entry has its file"
        keys.add(image["key"])


def is_file_name(value):
    """Whether it is text that can be the name of a file, of whatever bytes."""
    try:
        return (
            isinstance(value, str) and bool(value.strip("\0 ")) and b"\0" not in os.fsencode(value)
        )
    except UnicodeEncodeError:
        return False


def is_text(value):
    """Whether it is text with something in it that can be written as UTF-8."""
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode())
    except UnicodeEncodeError:  # one half of a surrogate pair
        return False


class CocoInstances(Coco):
    """Objects in COCO's instances format, crowds apart."""

    has, sized = "bbox", True

    def __getitem__(self, index):
        image = self.image(index)
        record = {"key": image["key"], "image_id": image["id"], "dropped": []}
        for name, read in (("annotations", annotation), ("crowds", crowd)):
            read = functools.partial(read, size=image["size"], categories=self.categories)
            record[name], dropped = usable(image["annotations"], read)
            record["dropped"] += dropped
        report_dropped(image["key"], record["dropped"])
        for name in FEDERATED.keys() & image.keys():
            record[name] = [self.categories[id] for id in image[name] if id in self.categories]
        return record | {"image": open_image(self.folder / image["key"], image["size"])}


class CocoPanoptic(Coco):
    """Semantic maps from COCO's panoptic format; `maps` is the folder of id-coloured png files."""

    has = "segments_info"

    def __init__(self, annotations, images, maps):
        super().__init__(annotations, images)
        self.maps = existing(maps)
        self.index = {id: i for i, id in enumerate(self.categories)}

    def category_ids(self, images):
        maps = (each.get("segments_info") for image in images for each in image["annotations"])
        segments = (each for listed in maps if isinstance(listed, list) for each in listed)
        return [each.get("category_id") for each in segments if isinstance(each, dict)]

    def __getitem__(self, index):
        image = self.image(index)
        semantic, dropped = panoptic_map(self.maps, self.index, image["annotations"])
        report_dropped(image["key"], dropped)
        pixels = open_image(self.folder / image["key"], semantic.shape)
        return {"key": image["key"], "image": pixels, "semantic": semantic, "dropped": dropped}


def panoptic_map(folder, index, annotations):  # -> int32 [H, W], dropped
    """The semantic map of an image by its entry in panoptic json, the only one in `annotations`,
    and the segments that were left out, as `usable` has them.

    folder: of the png files; index: {id of a category as text: class}. Pixels of no segment, which
    are black, and of segments of an unknown category have no class. BadRecord if it cannot be read.
    """
    classes = {0: -1}
    with checked():
        if len(annotations) != 1:
            raise ValueError(f"{len(annotations)} maps are listed for this image, not one")
        path = folder / annotations[0]["file_name"]
        colours = decode_image(path).astype(np.int64)
        add = functools.partial(_add_segment, classes, index)
        _, dropped = usable(annotations[0]["segments_info"], add)
    ids, inverse = np.unique(colours @ (1, 256, 256**2), return_inverse=True)
    unnamed = any(reason == "bad_entry" for _, reason, _ in dropped)  # whose pixels may be these
    unknown = [id for id in ids.tolist() if id not in classes]
    if unknown and not unnamed:
        raise BadRecord("bad_annotation", f"{path} has the value {unknown[0]}, no segment of it")
    labels = np.int32([classes.get(id, -1) for id in ids.tolist()])
    return require_class(labels[inverse.reshape(colours.shape[:2])], path), dropped


def _add_segment(classes, index, segment):
    """Adds the class of a segment to {id: class}."""
    id = text_id(segment.get("id")) if isinstance(segment, dict) else None
    if id is None or not id.isdecimal() or id == "0":  # black is no segment
        raise BadAnnotation("bad_entry", f"{shown(segment)} has no id that a pixel can have")
    category = text_id(segment.get("category_id"))
    classes[int(id)] = index.get(category, -1)
    if category not in index:
        raise unknown_category(segment)
