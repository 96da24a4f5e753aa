"""Kinds of data.prepare: sets to evaluate on, in the folders that their downloads unpack to.

docs/data.md says what to download. Names of classes are the released ones; those that no download
has are in class_names.json, with how to say the others. All raise UserError, ValueError, KeyError
or IndexError where a file is missing or is not as it is released.
"""

import collections
import contextlib
import functools
import json
import os
import pathlib

import numpy as np

from samclip_jax.data.annotations import shown
from samclip_jax.data.captions import Captions
from samclip_jax.data.coco import (
    CocoInstances,
    CocoPanoptic,
    listed,
    match,
    panoptic_map,
    read_contents,
)
from samclip_jax.data.decode import BadRecord, line
from samclip_jax.data.files import ImageFolder
from samclip_jax.data.label_maps import label_map, loadmat, mat_map, painted_map, png_values
from samclip_jax.data.raw import Listed
from samclip_jax.data.tars import Tars, read_member
from samclip_jax.errors import UserError
from samclip_jax.paths import existing

CLASS_NAMES = {
    name: each["names"]
    for name, each in json.loads(
        pathlib.Path(__file__).with_name("class_names.json").read_text()
    ).items()
}


def imagenet(source):
    """ImageNet, the classes its 1000 WordNet ids: a folder for each of them; or, as in ImageNet-V2,
    for each of their numbers; or ILSVRC2012_val_*.JPEG and ILSVRC2012_devkit_t12."""
    images = ImageFolder(source)
    classes = list(CLASS_NAMES["imagenet"])
    labels = {name: name for name in classes} | {str(i): name for i, name in enumerate(classes)}
    kit, files = images.path / "ILSVRC2012_devkit_t12/data", {}
    if kit.exists():
        validation = enumerate(imagenet_validation(kit), start=1)
        files = {f"ILSVRC2012_val_{i:08d}": name for i, name in validation}
    items, folders = [], set()
    for name in images.files:
        path = pathlib.Path(name)
        in_folder = path.parent.name in labels
        label = labels[path.parent.name] if in_folder else files.get(path.stem)
        if label is None:
            raise UserError(
                f"nothing says of which class {name} is; put it into a folder of its WordNet id, "
                f"or ILSVRC2012_devkit_t12 into {source}"
            )
        items.append((name, {"label": label}))
        folders.add(path.parent.parent if in_folder else path.parent)
    if len(folders) > 1:
        raise UserError(f"{source} holds {', '.join(sorted(map(str, folders)))}; give one of them")
    return Listed(images.path, items, classes)


def imagenet_validation(kit):
    """The WordNet ids of the 50,000 validation images, in order, by the development kit."""
    truth = lines(kit / "ILSVRC2012_validation_ground_truth.txt")
    try:
        synsets = loadmat(kit / "meta.mat", squeeze_me=True)["synsets"]
        names = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets}
    except Exception as error:  # scipy's reader has errors of its own
        raise UserError(f"{kit / 'meta.mat'} was not read: {line(error)}") from None
    leaves = {id: name for id, name in names.items() if name in CLASS_NAMES["imagenet"]}
    return [leaves[int(each)] for each in truth]


def places365(source, images):
    """Places365's validation images, its lists of them and of the categories in `source`."""
    source = existing(source)
    listed = map(str.split, lines(source / "categories_places365.txt"))
    classes = numbered({int(number): name[len("/a/") :] for name, number in listed}, range(365))
    listed = map(str.split, lines(source / "places365_val.txt"))
    labels = dict(enumerate(classes))
    items = [(name, {"label": labels[int(number)]}) for name, number in listed]
    return Listed(existing(images), items, classes)


def voc(source, split="val"):
    """PASCAL VOC 2012's segmentation, VOCdevkit/VOC2012: 21 classes, the background the first."""
    source = existing(source)
    names = lines(source / "ImageSets/Segmentation" / f"{split}.txt")
    pairs = [(f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png") for name in names]
    classes = CLASS_NAMES["voc"]
    return label_maps(source, pairs, classes, {i: i for i in range(21)} | {255: -1})


def ade20k(source, split="validation"):
    """ADE20k's 150 classes, ADEChallengeData2016; of several names the first."""
    source = existing(source)
    rows = (row.split("\t") for row in lines(source / "objectInfo150.txt")[1:])
    names = {int(row[0]): row[-1].split(",")[0].strip() for row in rows}
    classes = numbered(names, range(1, 151))
    files = ImageFolder(source / "images" / split).files
    pairs = [
        (f"images/{split}/{name}", f"annotations/{split}/{os.path.splitext(name)[0]}.png")
        for name in files
    ]
    return label_maps(source, pairs, classes, {i: i - 1 for i in range(151)})


def pascal_context(source, split="val"):
    """PASCAL-Context, 60 classes, the background, all that is none of the 59, the first. In one
    folder with VOCdevkit/VOC2010: 59_context_labels and 59_labels.txt, trainval/*.mat, or
    trainval_merged.json."""
    return _pascal_context(existing(source), split, background=0)


def pascal_context_59(source, split="val"):
    """PASCAL-Context's 59 classes without the background."""
    return _pascal_context(existing(source), split, background=-1)


def _pascal_context(source, split, background):
    """background: its class, 0, or -1 where it has none."""
    voc2010 = source / "VOCdevkit/VOC2010"
    names, indices = _context_numbers(source, background)
    classes = names if background < 0 else ["background", *names]
    for path in (source / "trainval_merged.json", voc2010 / "trainval_merged.json"):
        if path.exists():
            return _merged(path, voc2010 / "JPEGImages", split, classes, indices, background)
    read, folder, suffix = mat_map, "trainval", "mat"
    if (source / "59_context_labels").exists():
        read, folder, suffix = label_map, "59_context_labels", "png"
    elif not (source / folder).exists():
        raise UserError(
            f"{source} has none of 59_context_labels, trainval and trainval_merged.json; put one"
            " of them into it, beside VOCdevkit."
        )
    pairs = [
        (f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg", f"{folder}/{name}.{suffix}")
        for name in lines(voc2010 / "ImageSets/Main" / f"{split}.txt")
    ]
    return label_maps(source, pairs, classes, indices, read)


def _context_numbers(source, background):  # -> the 59 names, {number in the maps: class}
    if (source / "59_context_labels").exists():
        named = _numbered_lines(source / "59_labels.txt")
        names = numbered(named, range(1, 60))
        others = {0: background}
    else:
        named = {int(number): name for number, name in CLASS_NAMES["pascal_context"].items()}
        names = list(named.values())
        if (source / "labels.txt").exists():
            named |= _numbered_lines(source / "labels.txt")
        others = dict.fromkeys(range(460), background)
    index = {name: background + 1 + i for i, name in enumerate(names)}
    return names, others | {number: index.get(name, background) for number, name in named.items()}


def _numbered_lines(path):  # of "7: name" -> {7: "name"}
    return {int(number): name.strip() for number, name in (each.split(":") for each in lines(path))}


def _merged(path, images, split, classes, indices, background):
    """PASCAL-Context by the json that "PASCAL in Detail" has made of it."""
    contents = read_contents(path)
    entries = [
        entry | {"id": entry.get("image_id")} if isinstance(entry, dict) else entry
        for entry in listed(path, contents, "images")
    ]
    annotations = listed(path, contents, "annos_segmentation")
    both = {"images": entries, "annotations": annotations}
    matched, dropped = match(path, both, "bbox", images, sized=True)
    items = [
        (image["key"], {"map": image, "error": image["error"]})
        for entry, image in zip(entries, matched, strict=True)
        if not isinstance(entry, dict) or entry.get("phase") == split
    ]
    if not items:
        raise UserError(f"{path} has no image of the split {split!r}; give --split=val or train.")
    numbers = {str(number): index for number, index in indices.items()}
    semantic = functools.partial(painted_map, indices=numbers, background=background)
    return Listed(existing(images), items, classes, semantic, dropped=dropped)


def coco_stuff(source, images):
    """COCO-Stuff's 171 classes: a folder of stuffthingmaps, and COCO's images. Of the folder
    stuff_val2017_pixelmaps, where things are not told apart, its 91."""
    return _coco_stuff(source, images, {name: name for name in CLASS_NAMES["coco_stuff"].values()})


def coco_stuff_27(source, images):
    """COCO-Stuff's 27 supercategories of the same, or the 15 of stuff."""
    groups = CLASS_NAMES["coco_stuff_27"].items()
    return _coco_stuff(source, images, {name: group for group, names in groups for name in names})


def _coco_stuff(source, images, class_of):
    """class_of: {name of COCO-Stuff: class}, by the order of the classes."""
    source, images = existing(source).resolve(), existing(images).resolve()
    files = [name for name in ImageFolder(source).files if name.endswith(".png")]
    files = [name for name in files if not name.endswith("_labelTrainIds.png")]  # mmsegmentation's
    names = {int(value): class_of[name] for value, name in CLASS_NAMES["coco_stuff"].items()}
    left_out = [255, *range(182)]  # 11 of these no image has
    if _are_pixelmaps(source, files):
        names = {value + 1: name for value, name in names.items() if value > 90}
        left_out = [0, 183]  # neither, a thing
    classes = [name for name in dict.fromkeys(class_of.values()) if name in names.values()]
    indices = {value: classes.index(name) for value, name in names.items()}
    pairs = [(str(images / name.replace(".png", ".jpg")), name) for name in files]
    return label_maps(source, pairs, classes, dict.fromkeys(left_out, -1) | indices)


def _are_pixelmaps(folder, files):
    """Whether these are of stuff_*_pixelmaps, whose values are one higher than in stuffthingmaps:
    the first map with a value that only one of them has tells, or else the folder's name."""
    for name in files[:100]:
        with contextlib.suppress(BadRecord):
            values = np.unique(png_values(folder / name))
            if np.isin(values, [255, *range(1, 92)]).any():
                return False
            if np.isin(values, [182, 183]).any():
                return True
    return "pixelmaps" in str(folder)


def label_maps(root, pairs, classes, indices, read=label_map):
    """Images and label maps, {value of a pixel: index of its class or -1} and who reads a map."""
    items = [(image, {"key": pathlib.Path(image).name, "map": name}) for image, name in pairs]
    return Listed(root, items, classes, functools.partial(_semantic, read, root, indices))


def _semantic(read, root, indices, name):
    return read(root / name, indices), []


def coco_panoptic(source, images, maps):
    """COCO's panoptic json with the folders of its images and of its maps."""
    panoptic = CocoPanoptic(source, images, maps)
    items = [
        (image["key"], {"map": image["annotations"], "error": image["error"]})
        for image in panoptic.images
    ]
    semantic = functools.partial(panoptic_map, panoptic.maps, panoptic.index)
    return Listed(panoptic.folder, items, panoptic.classes, semantic, dropped=panoptic.dropped)


def coco_object(source, images):
    """COCO-Object's 81 classes, the background the first, painted from COCO's instances in their
    order; crowds have no class."""
    instances = CocoInstances(source, images)
    items = [(image["key"], {"map": image, "error": image["error"]}) for image in instances.images]
    indices = {id: i for i, id in enumerate(instances.categories, start=1)}
    semantic = functools.partial(painted_map, indices=indices, background=0, crowds=-1)
    classes = ["background", *instances.classes]
    return Listed(instances.folder, items, classes, semantic, dropped=instances.dropped)


def captions(source, images, split=None):
    """Images with captions, in COCO's json, in Karpathy's, which has splits, or Flickr30k's."""
    captioned = Captions(source, images, split)
    items = [(image["key"], image) for image in captioned.images]
    return Listed(captioned.folder, items, dropped=captioned.dropped)


class Webdataset(Tars):
    """Shards of images with a number beside each, 0.webp and 0.cls, as DataComp's evaluation sets;
    classnames.txt lies beside them or one folder higher."""

    def __init__(self, source):
        super().__init__(source)
        folder = existing(source)
        folder = folder if folder.is_dir() else folder.parent
        paths = [place / "classnames.txt" for place in (folder, folder.parent)]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            raise UserError(f"{folder} has no classnames.txt, here or one folder higher; add it.")
        self.classes = lines(path, blank=True)  # a line's number is its class
        if "" in self.classes:
            number = self.classes.index("") + 1
            raise UserError(f"line {number} of {path} is blank; it must name class {number - 1}.")
        if self.classes == list(CLASS_NAMES["imagenet"].values()):  # where two names occur twice
            self.classes = list(CLASS_NAMES["imagenet"])
        if twice := [name for name, n in collections.Counter(self.classes).items() if n > 1]:
            raise UserError(f"{path} has {twice[0]!r} twice; make the names of classes differ.")

    def describe(self, entry, path, tar, beside):
        if "cls" not in beside:
            raise BadRecord("bad_annotation", "no .cls beside the image")
        number = read_member(tar, beside["cls"]).strip()
        if not number.isdigit() or int(number) >= len(self.classes):
            detail = f".cls is {shown(number)}, not from 0 to {len(self.classes) - 1}"
            raise BadRecord("bad_annotation", detail)
        entry.label = self.classes[int(number)]


def numbered(names, numbers):
    """The names in the order of their numbers, which must be these."""
    if sorted(names) != list(numbers):
        raise ValueError(
            f"{len(names)} classes are named, not those from {numbers[0]} to {numbers[-1]}"
        )
    return [names[number] for number in numbers]


def lines(path, blank=False):
    """The lines of a text file that are not blank; with `blank` all up to the last of these."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if blank:
            return [each.strip() for each in text.rstrip().splitlines()]
        return [each for each in text.splitlines() if each.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} was not read: {line(error)}") from None


KINDS = {
    "imagenet": imagenet,
    "places365": places365,
    "voc": voc,
    "pascal_context": pascal_context,
    "pascal_context_59": pascal_context_59,
    "ade20k": ade20k,
    "coco_panoptic": coco_panoptic,
    "coco_stuff": coco_stuff,
    "coco_stuff_27": coco_stuff_27,
    "coco_object": coco_object,
    "captions": captions,
    "webdataset": Webdataset,
}
