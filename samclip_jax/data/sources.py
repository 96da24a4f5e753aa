"""Where images and annotations come from: random-access sources with one small protocol.

A source has a length, and `source[i]` is a record, a dict:

    key          str, unique in its source, the same in every run
    image        uint8 [H, W, 3], RGB, or a decode.Jpeg, which becomes it by np.asarray
    annotations  list of {"box": float32 [4], x0 y0 x1 y1 in px, "point": float32 [2], x y, or None,
                 "mask": np.asarray(mask) is bool [H, W], decoded on demand, or None,
                 "area": float, px, "category": str or None}      where it has objects
    crowds       list of the same, COCO's regions of many objects       where it tells them apart
    image_id     str, by which detections name it                        where it has one
    absent, incomplete  lists of str: LVIS's classes of which it is known that nothing of them is
                 here, and those of which not all are annotated         where it is LVIS
    semantic     int32 [h, w], index into source.classes, -1 without a class, of the image's aspect
                 ratio and perhaps more pixels                                     where it has maps
    label        int, index into source.classes                  where it has image classes
    captions     list of str, what people said of the image           where it has captions
    dropped      list of (annotation, reason, detail) of those that cannot be used: left out, with
                 one of the REASONS of annotations                where it has annotations or maps

A record that cannot be used raises decode.BadRecord with one of the REASONS there, a Jpeg when it
is decoded: training replaces it, evaluation skips it, both count it. What is wrong with a source as
a whole is a UserError.
"""

import difflib
import inspect
import pathlib

from samclip_jax.data import records
from samclip_jax.data.annotations import (
    annotation,
    checked,
    report_dropped,
    sa1b_contents,
    usable,
)
from samclip_jax.data.captions import Captions
from samclip_jax.data.coco import CocoInstances, CocoPanoptic
from samclip_jax.data.decode import open_image, read_file
from samclip_jax.data.files import Files, ImageFolder
from samclip_jax.data.shapes import ShapeObjects, ShapeScenes
from samclip_jax.errors import UserError, os_errors, under


def make_source(name, weight=None, flag=None, **options):
    """The source of that name; `options` are its constructor's, None where they are not given.

    weight: how often an epoch of a stream has each of its records; 1 where it is None. flag: what
    sets these on the command line, "--config.data" say. UserError says what is wrong, and where.
    """
    where = f"{flag}: " if flag else ""
    options = {option: value for option, value in options.items() if value is not None}
    weight = 1 if weight is None else weight
    with under(where):
        require_known(name, weight, options)
    parameters = inspect.signature(SOURCES[name]).parameters
    required = [key for key, value in parameters.items() if value.default is value.empty]
    if missing := [option for option in required if option not in options]:
        settings = " and ".join(f"{flag}.{option}" if flag else option for option in missing)
        raise UserError(f"source {name!r} needs {' and '.join(missing)}: set {settings}.")
    with under(where):
        source = SOURCES[name](**options)
    source.weight = weight
    return source


def make_sources(options, flag):  # {name: options of make_source} -> list of sources
    """The sources of a stream; `flag` sets them all on the command line."""
    return [make_source(flag=f"{flag}.{name}", **values) for name, values in options.items()]


def require_known(name, weight, options):
    """UserError unless there is a source of this name, with these options, and such a weight."""
    if name not in SOURCES:
        near = difflib.get_close_matches(str(name), SOURCES, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no source {name!r}; {guess}There are: {', '.join(SOURCES)}.")
    signature = inspect.signature(SOURCES[name])
    if unknown := [option for option in options if option not in signature.parameters]:
        raise UserError(f"source {name!r} takes {signature}, not {', '.join(unknown)}.")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1000:
        raise UserError(f"weight must be over 0 and at most 1000, got {weight!r}.")


# Sources


class Sa1b(ImageFolder):
    """SA-1B as released and unpacked: sa_1.jpg beside sa_1.json, in any folders under `path`."""

    def __init__(self, path):
        super().__init__(path)

    def __getitem__(self, index):
        name = self.files[index]
        key = pathlib.Path(name).as_posix()
        with checked():
            data = read_file((self.path / name).with_suffix(".json"), absent="bad_annotation")
        size, entries = sa1b_contents(data)
        annotations, dropped = usable(entries, lambda entry: annotation(entry, size))
        report_dropped(key, dropped)
        image = open_image(self.path / name, size)
        return {"key": key, "image": image, "annotations": annotations, "dropped": dropped}


class Prepared(Files):
    """What `python -m samclip_jax.data.prepare` made of a data set; `split` train or validation."""

    def __init__(self, path, split="train"):
        super().__init__(path)
        with os_errors(f"{path} was not read"):
            manifest = records.read_manifest(self.path)
        if manifest is None:
            raise UserError(f"{path} has no {records.MANIFEST}; let data.prepare come to its end.")
        entries = [shard for shard in manifest["shards"] if shard["split"] == split]
        if not entries:
            known = ", ".join(sorted({shard["split"] for shard in manifest["shards"]}))
            raise UserError(f"{path} has no split {split!r}; it has {known}.")
        self.classes = manifest["classes"]
        self.index = {name: i for i, name in enumerate(self.classes)}
        self.shards = records.Shards(self.path / records.SHARDS, entries)

    def __len__(self):
        return len(self.shards)

    def __getitem__(self, index):
        record = records.decode(self.shards[index])
        if "label" in record:
            record["label"] = self.index[record["label"]]
        return record


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
