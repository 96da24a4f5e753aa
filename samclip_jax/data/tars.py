"""Kinds of data.prepare: tar files of images with what belongs to them beside them."""

import bz2
import gzip
import lzma
import os
import posixpath
import tarfile
import tempfile
import zlib

from samclip_jax.data.annotations import sa1b_contents
from samclip_jax.data.decode import PICTURES, BadRecord
from samclip_jax.data.files import is_hidden, walk
from samclip_jax.data.raw import Input, Kind
from samclip_jax.data.storage import retried
from samclip_jax.errors import UserError, os_errors
from samclip_jax.paths import existing

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
OTHER_TARS = (".tar.zst", ".tzst", ".tar.lz4", ".tar.lzma", ".tar.z")
DAMAGE = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)
DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
LINKS = 40  # one after the other, as in Linux


class Tars(Kind):
    """Tar files, one or all in a folder, of images among other files: img2dataset, webdataset.

    Files of a folder whose names are the same up to the first dot are a sample. Its picture is the
    one whose name goes on with `extension`, such as jpg or image.png; of "jpg;png" the first that
    there is. If not given, it is a name without another dot: x.jpg, before x.png and x.seg.png.
    Where there is none, as of x.1.jpg and x.2.jpg, samples end at the last dot. The other pictures
    of a sample are rejects.
    """

    def __init__(self, source, extension=None):
        self.source = existing(source)
        self.folder = self.source.parent if self.source.is_file() else self.source
        self.extensions = extension and [each.lstrip(".") for each in extension.lower().split(";")]
        self.paths = self.find_tars()
        folders = {folder for path in self.paths for folder in path.parents}
        self.beside_folders = {path for path in self.paths if _stem(path) in folders}

    def __getstate__(self):  # a worker is sent its unit, not all of them
        return self.__dict__ | {"paths": None}

    def find_tars(self):
        paths = [self.source]
        if not self.source.is_file():
            names = walk(self.source) if self.source.is_dir() else []
            if other := [name for name in names if name.lower().endswith(OTHER_TARS)]:
                raise UserError(f"{self.source / other[0]} is not read here: make it a .tar")
            paths = [self.source / name for name in names if name.lower().endswith(TARS)]
        if not paths:
            raise UserError(f"no tar files in {self.source}")
        return paths

    def units(self):
        taken = {}
        for number, path in enumerate(self.paths):
            name = self.prefix(path)
            if name in taken:
                raise UserError(
                    f"{taken[name]} and {path} would have records of one key; rename one of them."
                )
            taken[name] = path
            yield f"{number:05d}", path, [name, _of_file(path, path.stat).st_size]

    def prefix(self, path):
        """What the keys of a tar's records begin with: its path without the ending, which stays
        where other tars lie in a folder of that name: x.tar beside x/y.tar."""
        named = path if path in self.beside_folders else _stem(path)
        return named.relative_to(self.folder).as_posix()

    def key(self, path, name):
        return f"{self.prefix(path)}/{name}"

    def read(self, path, damaged, wanted):
        tar, members, error = _of_file(path, lambda: _open(path))
        if error:
            damaged.append(f"{path}: {error}")
        if tar is None:
            return
        with tar.fileobj, tar:
            files = _files(path, members)
            remaining = dict(files)  # when they are unpacked
            samples = {name: sample for sample in self.samples(remaining) for name in sample[1]}
            for name, member in files:
                picture, names = samples[name]
                if name != picture and not name.lower().endswith(PICTURES):
                    continue
                entry = Input(self.key(path, name))
                if not wanted(entry.key):
                    continue
                if name != picture:
                    reason = f"its sample's is {picture}" if picture else "not the extension given"
                    entry.error = BadRecord("other_image", reason)
                elif member is not remaining[name]:
                    entry.error = BadRecord("other_image", "the tar has it once more")
                else:
                    beside = {extension: remaining[name] for name, extension in names.items()}
                    self.fill(entry, path, tar, member, beside)
                yield entry

    def samples(self, names):
        """[(its picture or None, {name: extension})] of all names in a tar."""
        samples = []
        for sample in _group(names, str.partition):
            picture = self.choose(sample)
            others = [name for name in sample if name.lower().endswith(PICTURES)]
            if picture or self.extensions or not others:
                samples.append((picture, sample))
                continue
            parts = _group(sample, str.rpartition)
            if len(others) == 1:  # x.image.jpg beside x.cls
                parts = [sample | next(part for part in parts if others[0] in part)]
            samples += [(self.choose(part), part) for part in parts]
        return samples

    def choose(self, sample):  # {name: extension} -> name or None
        ranks = self.extensions or [extension[1:] for extension in PICTURES]
        pictures = [name for name, extension in sample.items() if extension in ranks]
        return min(pictures, key=lambda name: ranks.index(sample[name]), default=None)

    def fill(self, entry, path, tar, member, beside):
        """Adds to the input the bytes of `member` and what lies beside it."""
        try:
            entry.image = read_member(tar, member)
            self.describe(entry, path, tar, beside)
        except BadRecord as error:
            entry.error = error

    def describe(self, entry, path, tar, beside):
        """Adds to the input what lies beside its image. beside: {extension: member}"""


class ImageNet21k(Tars):
    """ImageNet-21k as released, a tar for each synset."""

    def __init__(self, source):
        super().__init__(source)

    def describe(self, entry, path, tar, beside):
        entry.label = path.name.partition(".")[0]


class Sa1bTars(Tars):
    """SA-1B as released: sa_1.jpg beside sa_1.json in tars."""

    def __init__(self, source):
        super().__init__(source)

    def key(self, path, name):
        return posixpath.basename(name)

    def describe(self, entry, path, tar, beside):
        if "json" not in beside:
            raise BadRecord("bad_annotation", "no json beside the image")
        entry.size, entry.annotations = sa1b_contents(read_member(tar, beside["json"]))


def _stem(path):
    """The path of a tar without its ending."""
    ending = next((each for each in TARS if path.name.lower().endswith(each)), "")
    return path.with_name(path.name[: len(path.name) - len(ending)])


def _of_file(path, read):
    """read(), or a UserError where there is no file at `path`."""
    try:
        return retried(read, path)
    except OSError as error:
        raise UserError(f"{path} was not read: {error.strerror}") from None


def _open(path):
    """An open tar or None, its members up to where it is damaged, the damage or None."""
    file, damage = _decompressed(path)
    tar = None
    try:
        file.seek(0)
        tar = tarfile.open(path, "r:", file)
        members = list(tar)
        file.seek(max(0, file.seek(0, os.SEEK_END) - tarfile.BLOCKSIZE))
        if any(file.read()):  # tarfile takes any end for the end
            raise tarfile.ReadError("it ends early")
        file.seek(tar.offset)
        if any(file.read(1 << 20)):
            raise tarfile.ReadError("after its last file it is damaged, or another tar")
        return tar, members, damage
    except DAMAGE as error:
        if tar is None or _of_storage(error):
            file.close()
        if _of_storage(error):
            raise
        return tar, list(tar.members) if tar else [], damage or error


def _decompressed(path):
    """An open file of a tar's bytes, up to where its compression is damaged, the damage or None.

    A compressed tar is read once, into a temporary file: to seek back in it would be to decompress
    it from its start.
    """
    file = open(path, "rb")
    start = file.read(6)
    decompress = next(
        (DECOMPRESSORS[each] for each in DECOMPRESSORS if start.startswith(each)), None
    )
    if decompress is None:
        return file, None
    file.seek(0)
    copied, folder = tempfile.TemporaryFile(), tempfile.gettempdir()
    try:
        with file, decompress(file) as blocks:
            while block := blocks.read1(1 << 20):
                with os_errors(f"{path} was not unpacked to {folder}, which TMPDIR names"):
                    copied.write(block)
                    copied.flush()
    except DAMAGE as error:
        if _of_storage(error):
            copied.close()
            raise
        return copied, error
    return copied, None


def _of_storage(error):
    """Whether it is the storage that failed, not the tar that is damaged."""
    return getattr(error, "errno", None) is not None


def _files(path, members):
    """[(name, the member that has its bytes)] of the files in a tar, for a link its target, None
    where that is not in the tar."""
    named = [(posixpath.normpath(member.name), member) for member in members]
    last = dict(named)
    files = []
    for name, member in named:
        linked = member.issym() or member.islnk()
        if not (linked or member.isfile()) or any(map(is_hidden, name.split("/"))):
            continue
        if name.lower().endswith(TARS + OTHER_TARS):
            raise UserError(f"{path} holds tars, {name}: unpack it and give the folder as SOURCE")
        files.append((name, _target(member, last) if linked else member))
    return files


def _target(member, named):
    for _ in range(LINKS):
        if member is None or not (member.issym() or member.islnk()):
            break
        folder = posixpath.dirname(member.name) if member.issym() else ""
        member = named.get(posixpath.normpath(posixpath.join(folder, member.linkname)))
    return member if member and member.isfile() else None


def _group(names, cut):
    """[{name: extension}] of names that are the same up to the first or the last dot."""
    groups = {}
    for name in names:
        folder, base = posixpath.split(name)
        stem, _, extension = cut(base, ".")
        groups.setdefault((folder, stem), {})[name] = extension.lower()
    return list(groups.values())


def read_member(tar, member):
    if member is None:
        raise BadRecord("unreadable", "a link to what is not in the tar")
    try:
        data = retried(lambda: tar.extractfile(member).read(), tar.name)
    except DAMAGE as error:
        raise BadRecord("truncated", f"in a tar that ends early: {error}") from None
    if len(data) != member.size:
        raise BadRecord("truncated", "in a tar that ends early")
    return data


KINDS = {"sa1b": Sa1bTars, "tar": Tars, "imagenet21k": ImageNet21k}
