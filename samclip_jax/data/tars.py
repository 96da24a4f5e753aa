"""Kinds of data.prepare: tar files of images with what belongs to them beside them."""

import pathlib
import tarfile
import zlib

from samclip_jax.data.annotations import checked, sa1b_objects
from samclip_jax.data.decode import SUFFIXES, BadRecord
from samclip_jax.data.raw import Input, Kind
from samclip_jax.errors import UserError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Tars(Kind):
    """Tar files, one or all in a folder, of images among other files: img2dataset, webdataset."""

    def __init__(self, source):
        self.source = pathlib.Path(source)

    def units(self):
        paths = [self.source]
        if not self.source.is_file():
            paths = sorted(p for p in self.source.rglob("*") if p.name.endswith(TARS))
        if not paths:
            raise UserError(f"no tar files in {self.source}")
        folder = self.source.parent if self.source.is_file() else self.source
        taken = {}
        for path in paths:
            name = path.relative_to(folder).as_posix().partition(".tar")[0].replace("/", "-")
            if name in taken:
                raise UserError(f"{taken[name]} and {path} would have shards of one name")
            taken[name] = path
            yield name, path, path.stat().st_size

    def read(self, path, damaged, wanted):
        try:
            tar = tarfile.open(path)
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            damaged.append(f"{path}: {error}")
            return
        with tar:
            members = _members(tar, path, damaged)
            beside = {}  # without its ending: {ending: member}
            for member in members:
                stem, _, ending = member.name.rpartition(".")
                beside.setdefault(stem, {})[ending.lower()] = member
            for member in members:
                stem, _, ending = member.name.rpartition(".")
                if f".{ending.lower()}" in SUFFIXES and wanted(self.key(path, member.name)):
                    yield self.input(path, tar, member, beside[stem])

    def input(self, path, tar, member, beside):
        """The input whose image is `member`."""
        found = Input(self.key(path, member.name))
        try:
            found.image = _bytes(tar, member)
            self.describe(found, path, tar, beside)
        except BadRecord as error:
            found.error = error
        return found

    def key(self, path, name):
        return f"{path.name.partition('.tar')[0]}/{name.removeprefix('./')}"

    def describe(self, found, path, tar, beside):
        """Adds to the input what lies beside its image."""


class ImageNet21k(Tars):
    """ImageNet-21k as released, a tar for each synset."""

    def describe(self, found, path, tar, beside):
        found.label = path.name.partition(".")[0]


class Sa1bTars(Tars):
    """SA-1B as released: sa_1.jpg beside sa_1.json in tars."""

    def key(self, path, name):
        return pathlib.PurePosixPath(name).name

    def describe(self, found, path, tar, beside):
        if "json" not in beside:
            raise BadRecord("bad_annotation", "no json beside the image")
        with checked():
            found.size, objects = sa1b_objects(_bytes(tar, beside["json"]))
            found.annotations = [(entry, point, None) for entry, point in objects]


def _members(tar, path, damaged):
    """The files in a tar, up to where it is damaged."""
    members = []
    try:
        members = [member for member in tar if member.isfile()]
        with open(path, "rb") as file:  # tarfile takes any end for the end
            file.seek(max(0, path.stat().st_size - tarfile.BLOCKSIZE))
            if path.suffix == ".tar" and any(file.read()):
                raise tarfile.ReadError("it ends early")
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        members = members or [member for member in tar.members if member.isfile()]
        damaged.append(f"{path}: {error}")
    return members


def _bytes(tar, member):
    try:
        data = tar.extractfile(member).read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise BadRecord("truncated", f"in a tar that ends early: {error}") from None
    if len(data) != member.size:
        raise BadRecord("truncated", "in a tar that ends early")
    return data


KINDS = {"sa1b": Sa1bTars, "tar": Tars, "imagenet21k": ImageNet21k}
