"""Image files under a folder, with or without classes."""

import collections
import os
import pathlib

from absl import logging

from samclip_jax.data.decode import PICTURES, open_image
from samclip_jax.data.storage import retried
from samclip_jax.errors import UserError
from samclip_jax.paths import existing

# Folders that systems make: of archives and thumbnails, repaired files, deleted ones.
SYSTEM = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")


def is_hidden(name):
    """Whether a file or folder of this name is none of the user's: .DS_Store, ._a.jpg, __MACOSX."""
    return name.startswith(".") and name not in (".", "..") or name in SYSTEM


def walk(root, apart=()):  # -> list of str
    """The files under a folder, by their paths from there, sorted; hidden ones are left out.

    Links are followed. A folder to which several ways lead, such as a link to a parent, is read
    once, by the way without links if there is one; folders of `apart` are not. UserError where a
    folder cannot be read.
    """
    files, seen = [], set(map(os.path.realpath, apart))
    folders, links = [("", os.path.realpath(root))], collections.deque()
    while folders or links:
        linked = not folders
        name, real = links.popleft() if linked else folders.pop()
        if real in seen:
            if linked:
                logging.warning("%s: %s leads to a folder that is read already", root, name)
            continue
        seen.add(real)
        for entry in _entries(pathlib.Path(root, name)):
            path = os.path.join(name, entry.name)
            if entry.is_dir(follow_symlinks=False):
                folders.append((path, os.path.join(real, entry.name)))
            elif entry.is_symlink() and os.path.isdir(entry.path):
                links.append((path, os.path.realpath(entry.path)))
            elif entry.is_symlink() or entry.is_file():
                files.append(path)
    return sorted(files)


def _entries(folder):  # -> list of os.DirEntry, sorted
    try:
        entries = retried(lambda: list(os.scandir(folder)), folder)
    except OSError as error:
        raise UserError(f"{folder} was not read: {error.strerror}; give a folder.") from None
    visible = (entry for entry in entries if not is_hidden(entry.name))
    return sorted(visible, key=lambda entry: entry.name)


def _pictures(names):
    return [name for name in names if name.lower().endswith(PICTURES)]


class Files:
    """A source that lies at `path`."""

    def __init__(self, path):
        self.path = existing(path)

    def __repr__(self):
        return f"{type(self).__name__}({self.path})"


class ImageFolder(Files):
    """Every image under a folder. With `labels` its sub-folders, or links to folders, are the
    classes, sorted by name: UserError where one holds no image, as torchvision has it."""

    def __init__(self, path, labels=False):
        super().__init__(path)
        self.labels = labels
        self.files = self._of_classes() if labels else _pictures(walk(self.path))
        if not self.files:
            raise UserError(f"no images under {path} ({' '.join(PICTURES)}).")

    def _of_classes(self):
        entries = _entries(self.path)
        for entry in entries:
            if not os.path.exists(entry.path):
                raise UserError(f"{entry.path} is a link to nothing: mend it, or remove it.")
        self.classes = [entry.name for entry in entries if os.path.isdir(entry.path)]
        if loose := _pictures(entry.name for entry in entries if entry.name not in self.classes):
            raise UserError(f"{self.path} needs a folder for each class; {loose[0]} is in none.")
        files = []
        for name in self.classes:
            pictures = _pictures(walk(self.path / name, apart=[self.path]))
            if not pictures:
                raise UserError(
                    f"{self.path / name} is a class without images; add them, or remove the folder."
                )
            files += [os.path.join(name, file) for file in pictures]
        return sorted(files)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        name = self.files[index]
        record = {"key": pathlib.Path(name).as_posix(), "image": open_image(self.path / name)}
        if self.labels:
            record["label"] = self.classes.index(name.split(os.sep)[0])
        return record
