"""The classes of a segmentation by text: which texts stand for each, and what is the background."""

import json
from typing import Literal

import numpy as np

from samclip_jax.data.decode import line
from samclip_jax.data.evaluation_sets import CLASS_NAMES
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import class_names, said
from samclip_jax.inference import texts
from samclip_jax.paths import existing

BACKGROUND = "background"  # as VOC, PASCAL-Context and COCO-Object call their first class
OF_VOC = {*CLASS_NAMES["voc"], "table"}  # PASCAL-Context's diningtable
# CLIPpy's code: the background and the 39 classes of PASCAL-Context that VOC has not
CLIPPY = [BACKGROUND, *(n for n in CLASS_NAMES["pascal_context"].values() if n not in OF_VOC)]

Background = Literal["class", "clippy", "none"] | tuple[str, ...]


class Classes:
    """What is asked for to find the classes of a source.

    background: the texts of the class of that name: its name like any other's ("class"), CLIPpy's
    list ("clippy"), texts of one's own, or "none". threshold: a pixel is background where its class
    is less probable than this, too; with neither texts nor threshold pixels of the background do
    not count. names: a json file {class: [text, ...]} of classes for which other texts stand than
    their name; of several the likeliest counts.

    texts: list of str [N]; owners: int [N], the class of each; count: of the source's classes;
    background: the number of that class, -1 where the source has none. UserError where it has none
    and one is asked for, or where a class of `names` is none of the source's.
    """

    def __init__(self, source, background="class", threshold=None, names=None):
        asked = [[name] for name in class_names(source)]
        for name, stand_ins in {} if names is None else _read_names(names).items():
            if name not in source.classes:
                raise UserError(f"{names}: {name!r} is no class of {source}; take its names.")
            if name == BACKGROUND and background != "class":
                raise UserError(f"{names} has texts for the background: leave `background` alone.")
            asked[[*source.classes].index(name)] = stand_ins
        self.background, self.threshold = -1, threshold
        if BACKGROUND in source.classes:
            self.background = [*source.classes].index(BACKGROUND)
        elif background != "class" or threshold is not None:
            raise UserError(
                f"{source} has no class {BACKGROUND!r}: leave background and background_threshold "
                "as they are."
            )
        if background == "clippy":
            asked[self.background] = [*map(said, CLIPPY)]
        elif background == "none":
            asked[self.background] = []
        elif background != "class":
            asked[self.background] = texts.class_names("background", background)
        self.count = len(asked)
        self.texts = [text for several in asked for text in several]
        self.owners = np.repeat(np.arange(self.count), [len(several) for several in asked])
        if not self.texts:
            raise UserError(f"{source} has no class but the background: nothing to ask for.")
        is_uncounted = background == "none" and threshold is None
        self.uncounted = self.background if is_uncounted else -1

    def labels(self, cosines, scale):  # float [N, ...] -> int [...]
        """The class of the likeliest text, or the background. scale: of the cosines before the
        softmax over texts that the threshold is for."""
        likeliest = cosines.argmax(0)
        labels = self.owners[likeliest]
        if self.threshold is not None:
            others = np.exp(scale * (cosines - cosines.max(0))).sum(0)
            labels = np.where(1 / others < self.threshold, self.background, labels)
        return labels

    @property
    def asked(self):  # int [classes for which a text stands]
        return np.unique(self.owners)

    def of_classes(self, cosines):  # float [N, ...] -> [len(asked), ...]
        """Of each class that is asked for the cosine of its likeliest text."""
        if len(self.texts) == len(self.asked):
            return cosines
        return np.stack([cosines[self.owners == owner].max(0) for owner in self.asked])

    def of_asked(self, numbers):  # int [...], which of `asked`, -1 for none -> int [...]
        """The classes of the source; none is the background."""
        return np.append(self.asked, self.background)[numbers]

    def truth(self, semantic):  # int [H, W] -> int [H, W]
        """The map with -1 where a pixel does not count."""
        return np.where(semantic == self.uncounted, -1, semantic)


def _read_names(path):
    path = existing(path)
    try:
        names = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} was not read as json: {line(error)}") from None
    if not isinstance(names, dict):
        raise UserError(f'{path} must hold names of classes, {{"class": ["text", ...], ...}}.')
    return {
        name: texts.class_names(f"{path}: {name}", stand_ins) for name, stand_ins in names.items()
    }
