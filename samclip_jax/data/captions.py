"""Photographs with captions: COCO's json, Karpathy's, or Flickr30k's own list."""

import os

from samclip_jax.data.annotations import BadAnnotation, shown, usable
from samclip_jax.data.coco import (
    CompressedList,
    is_file_name,
    is_text,
    listed,
    match,
    read_contents,
    refuse_repeated,
    report_dropped_of_file,
    usable_image,
)
from samclip_jax.data.decode import BadRecord, line, open_image
from samclip_jax.data.files import Files
from samclip_jax.errors import UserError
from samclip_jax.paths import existing


class Captions(Files):
    """COCO's captions json; Karpathy's, of which `split` is taken; Flickr30k's
    results_20130124.token.

    images: a CompressedList, of each the dict {"key": path under the folder `images`, "captions":
    [str], "error": what is wrong with it or None}; to read one without captions is a BadRecord,
    `no_annotation`. dropped: [(image, caption's id, reason, detail)] of the captions that cannot be
    used. UserError where no caption can.
    """

    def __init__(self, annotations, images, split=None):
        super().__init__(annotations)
        self.folder, self.dropped, splits = existing(images), [], False
        if self.path.suffix == ".token":
            entries = _flickr30k(self.path)
        else:
            contents = read_contents(self.path)
            if splits := "annotations" not in contents:
                entries = _karpathy(listed(self.path, contents, "images"), split)
            else:
                entries, self.dropped = match(self.path, contents, "caption", self.folder)
        if split and not splits:
            raise UserError(f"{annotations} has no splits: leave out {split!r}.")
        images = [self._read(image) for image in entries]
        if not any(image["captions"] for image in images):
            raise UserError(
                f"{annotations} has no captions that can be used in {split or 'any split'}; give "
                "COCO's or Karpathy's json or Flickr30k's results_20130124.token."
            )
        report_dropped_of_file(self.path, self.dropped)
        self.images = CompressedList(images)

    def _read(self, image):
        captions, dropped = usable(image["annotations"], _caption)
        self.dropped += [(image["key"], *each) for each in dropped]
        return {"key": image["key"], "captions": captions, "error": image["error"]}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = usable_image(self.images[index])
        require_captions(image["captions"])
        pixels = open_image(self.folder / image["key"])
        return {"key": image["key"], "image": pixels, "captions": image["captions"]}


def require_captions(captions):
    """BadRecord where an image has none."""
    if not captions:
        raise BadRecord("no_annotation", "it has no caption that can be used")


def _caption(entry):
    text = entry.get("caption") if isinstance(entry, dict) else entry
    if not is_text(text):
        raise BadAnnotation("bad_caption", f"{shown(text)} is no text")
    return text


def _karpathy(entries, split):  # -> images as `match` has them, captions with ids
    images = []
    for place, entry in enumerate(entries):
        image = {"key": f"images[{place}]", "error": None, "annotations": []}
        if not isinstance(entry, dict) or not is_file_name(entry.get("filename")):
            image["error"] = f"{shown(entry)} has no 'filename'"
        elif split not in (None, entry.get("split")):
            continue
        else:
            image["key"] = os.path.join(str(entry.get("filepath") or ""), entry["filename"])
            sentences = entry.get("sentences")
            for each in sentences if isinstance(sentences, list) else [sentences]:
                each = each if isinstance(each, dict) else {"raw": each}
                image["annotations"].append({"id": each.get("sentid"), "caption": each.get("raw")})
        images.append(image)
    refuse_repeated(images)
    return images


def _flickr30k(path):
    """Lines of name.jpg#n, a tab, and a caption -> images as `match` has them."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} was not read: {line(error)}") from None
    images = {}
    for number, text in enumerate(lines, start=1):
        place, _, caption = text.partition("\t")
        name, _, id = place.rpartition("#")
        error = None
        if not is_file_name(name):
            name, error = f"line {number}", f"{shown(text)} is not name.jpg#n, a tab and a caption"
        if text.strip():
            image = images.setdefault(name, {"key": name, "error": error, "annotations": []})
            image["annotations"].append({"id": id, "caption": caption.strip()})
    return list(images.values())
