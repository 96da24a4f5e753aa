"""Image files under a folder, with or without classes."""

import os
import pathlib

from samclip_jax.data.decode import SUFFIXES, open_image
from samclip_jax.errors import UserError
from samclip_jax.paths import existing


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
