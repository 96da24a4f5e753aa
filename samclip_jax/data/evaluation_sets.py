"""Kinds of data.prepare: sets to evaluate on, in the folders that their downloads unpack to.

docs/data.md says what to download. Names of classes are the released ones; those that no download
has are in class_names.json, with how to say the others. All raise UserError, ValueError, KeyError
or IndexError where a file is missing or is not as it is released.
"""

import functools
import json
import pathlib

from scipy.io import loadmat

from samclip_jax.data.annotations import label_map
from samclip_jax.data.coco import Captions, CocoPanoptic, panoptic_map
from samclip_jax.data.decode import line
from samclip_jax.data.files import ImageFolder
from samclip_jax.data.raw import Listed
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
    kit = images.path / "ILSVRC2012_devkit_t12/data"
    if kit.exists():
        validation = enumerate(imagenet_validation(kit), start=1)
        labels |= {f"ILSVRC2012_val_{i:08d}": name for i, name in validation}
    items, folders = [], set()
    for name in images.files:
        path = pathlib.Path(name)
        in_folder = path.parent.name in labels
        label = labels.get(path.parent.name if in_folder else path.stem)
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
    return label_maps(source, pairs, CLASS_NAMES["voc"])


def pascal_context(source, split="val"):
    """PASCAL-Context: 59_context_labels, 59_labels.txt and VOCdevkit/VOC2010 in one folder; 60
    classes, the background, all that is none of the 59, the first."""
    source = existing(source)
    names = lines(source / "VOCdevkit/VOC2010/ImageSets/Main" / f"{split}.txt")
    listed = (each.split(":") for each in lines(source / "59_labels.txt"))
    classes = numbered({int(number): name.strip() for number, name in listed}, range(1, 60))
    pairs = [
        (f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg", f"59_context_labels/{name}.png")
        for name in names
    ]
    return label_maps(source, pairs, ["background", *classes])


def ade20k(source, split="validation"):
    """ADE20k's 150 classes, ADEChallengeData2016; of several names the first."""
    source = existing(source)
    rows = (row.split("\t") for row in lines(source / "objectInfo150.txt")[1:])
    listed = {int(row[0]): row[-1].split(",")[0].strip() for row in rows}
    classes = numbered(listed, range(1, 151))
    files = ImageFolder(source / "images" / split).files
    pairs = [
        (f"images/{split}/{name}", f"annotations/{split}/{pathlib.Path(name).stem}.png")
        for name in files
    ]
    return label_maps(source, pairs, classes, range(1, 151))


def coco_stuff(source, images):
    """COCO-Stuff's 171 classes: a folder of stuffthingmaps, and COCO's images."""
    source, images = existing(source).resolve(), existing(images).resolve()
    values, classes = zip(*CLASS_NAMES["coco_stuff"].items(), strict=True)
    names = [name for name in ImageFolder(source).files if name.endswith(".png")]
    names = [name for name in names if not name.endswith("_labelTrainIds.png")]  # mmsegmentation's
    pairs = [(str(images / name.replace(".png", ".jpg")), name) for name in names]
    return label_maps(source, pairs, list(classes), list(map(int, values)))


def label_maps(root, pairs, classes, values=None):
    """Images and label maps, whose pixels are `values` of the classes, 0 onwards if not given."""
    items = [(image, {"key": pathlib.Path(image).name, "map": name}) for image, name in pairs]
    values = list(range(len(classes)) if values is None else values)
    return Listed(root, items, classes, functools.partial(_semantic, root, values))


def _semantic(root, values, name):
    return label_map(root / name, values)


def coco_panoptic(source, images, maps):
    """COCO's panoptic json with the folders of its images and of its maps."""
    found = CocoPanoptic(source, images, maps)
    names = ((id, found.images[id]["file_name"]) for id in found.ids)
    items = [(name, {"map": found.annotations[id]}) for id, name in names]
    semantic = functools.partial(panoptic_map, found.maps, found.index)
    return Listed(found.folder, items, found.classes, semantic)


def captions(source, images, split=None):
    """Images with captions, in COCO's json or in Karpathy's, which has splits."""
    found = Captions(source, images, split)
    items = [(name, {"captions": texts}) for name, texts in found.captions.items()]
    return Listed(found.folder, items)


def numbered(names, numbers):
    """The names in the order of their numbers, which must be these."""
    if sorted(names) != list(numbers):
        raise ValueError(
            f"{len(names)} classes are named, not those from {numbers[0]} to {numbers[-1]}"
        )
    return [names[number] for number in numbers]


def lines(path):
    """The lines of a text file that are not blank."""
    try:
        return [each for each in path.read_text().splitlines() if each.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} was not read: {line(error)}") from None


KINDS = {
    "imagenet": imagenet,
    "places365": places365,
    "voc": voc,
    "pascal_context": pascal_context,
    "ade20k": ade20k,
    "coco_panoptic": coco_panoptic,
    "coco_stuff": coco_stuff,
    "captions": captions,
}
