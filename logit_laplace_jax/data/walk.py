"""All image files below a folder, quickly and in little memory.

A name is its bytes relative to the folder; on Linux a file's name is bytes, and need not be text.
For a million files no object is made for each: `FileNames` holds one string of all of them.
"""

import dataclasses
import logging
import os
import stat
from collections.abc import Iterable

import numpy as np

from logit_laplace_jax.data.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})
"""Endings of image files, compared without regard to case."""

_ENDINGS = frozenset(ending.encode() for ending in EXTENSIONS)

Stamp = tuple[int, int, int, int]
"""What a folder looked like: device, inode, and when its entries and it itself last changed (ns).

A file that is added, removed or renamed changes the time of its folder's entries. The second time
cannot be set by a program, so an archive that sets the first one back is noticed too.
"""

NO_FOLDER: Stamp = (0, 0, 0, 0)
"""The stamp of a path that leads to no folder."""


@dataclasses.dataclass(frozen=True)
class FileNames:
    """Many names, one after the other in one string of bytes.

    Attributes:
        joined: the names without anything between them.
        ends: int64 [N], where each name ends in `joined`.

    Example:
        >>> names = FileNames.of([b"a.png", b"b/c.png"])
        >>> len(names), names[1]
        (2, b'b/c.png')
    """

    joined: bytes
    ends: np.ndarray

    @classmethod
    def of(cls, names: list[bytes]) -> "FileNames":
        """Joins a list of names."""
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        return cls(b"".join(names), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        start = int(self.ends[index - 1]) if index else 0
        return self.joined[start : int(self.ends[index])]

    def printable(self, numbers: np.ndarray) -> list[str]:
        """`printable` of many names, several times as fast as one by one."""
        ends = self.ends[numbers]
        starts = np.where(numbers > 0, self.ends[numbers - 1], 0)
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        # No name holds a zero.
        whole = b"\0".join([self.joined[start:end] for start, end in pairs])
        return printable(whole).split("\0") if len(numbers) else []


@dataclasses.dataclass(frozen=True)
class Walk:
    """What was found below a folder.

    Attributes:
        files: the images, in the order of their printable names.
        watched: path and stamp of all folders, and of the links to nowhere that may yet become one:
            as long as all of them stay, a new walk would find the same files.
        complete: False where a folder could not be read.
    """

    files: FileNames
    watched: dict[bytes, Stamp]
    complete: bool


def walk(root: str) -> Walk:
    """Finds the images below `root`.

    Hidden files and folders (`.name`) are passed over; links are followed, each folder once. What
    is neither a file nor a link to nowhere (a pipe, a device) is passed over: reading it could wait
    for ever. Links to nowhere are kept, to be named when they are read.

    Args:
        root: the folder.

    Raises:
        DataError: the folder itself cannot be read. One below it is named in the log.
    """
    top = os.fsencode(root)
    found: list[bytes] = []
    watched: dict[bytes, Stamp] = {}
    # A link back to a folder above would be walked for ever: each folder is entered once.
    entered: set[tuple[int, int]] = set()
    complete = True
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        path = os.path.join(top, folder) if folder else top
        watched[folder] = stamp = folder_stamp(path)  # Before the listing, or a change is lost.
        if stamp[:2] in entered:
            continue
        if stamp != NO_FOLDER:
            entered.add(stamp[:2])
        try:
            with os.scandir(path) as entries:
                files, folders, nowhere = _listed(entries)
        except OSError as error:
            if not folder:
                raise DataError(f"the folder {root} cannot be read: {error.strerror}") from error
            complete = False
            logging.getLogger(__name__).warning("skipped %s: %s", printable(path), error.strerror)
            continue
        prefix = folder + b"/" if folder else b""
        found.extend([prefix + name for name in files])
        watched.update((prefix + name, NO_FOLDER) for name in nowhere)
        # The order decides under which of its names a folder with several is entered.
        waiting.extend(prefix + name for name in sorted(folders, key=os.fsdecode, reverse=True))
    return Walk(FileNames.of(_in_order(found)), watched, complete)


def folder_stamp(path: bytes) -> Stamp:
    """The stamp of a folder; `NO_FOLDER` where there is none, or none that can be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return NO_FOLDER
    if not stat.S_ISDIR(status.st_mode):
        return NO_FOLDER
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def printable(name: bytes) -> str:
    r"""A file's name as text that can be printed: bytes that are no UTF-8 become `\xff`."""
    return name.decode("utf-8", "backslashreplace")


def _listed(entries: Iterable[os.DirEntry[bytes]]) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """The images, the folders, and the links to nowhere that are no images by their name."""
    files: list[bytes] = []
    folders: list[bytes] = []
    nowhere: list[bytes] = []
    for entry in entries:
        name = entry.name
        if name.startswith(b"."):
            continue
        # The system's listing tells files from folders: no file is looked at by itself.
        if _is_folder(entry):
            folders.append(name)
        elif name[name.rfind(b".") :].lower() in _ENDINGS:
            if _is_file(entry) or _leads_nowhere(entry):
                files.append(name)
        elif _leads_nowhere(entry):
            nowhere.append(name)
    return files, folders, nowhere


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link whose end cannot be looked at.
        return False


def _is_file(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _leads_nowhere(entry: os.DirEntry[bytes]) -> bool:
    if not entry.is_symlink():
        return False
    try:
        entry.stat()
    except OSError:
        return True
    return False


def _in_order(names: list[bytes]) -> list[bytes]:
    """Sorted by what is printed; UTF-8 sorts as its text does."""
    try:
        b"\0".join(names).decode()
    except UnicodeDecodeError:
        names.sort(key=lambda name: (printable(name), name))
    else:
        names.sort()
    return names
