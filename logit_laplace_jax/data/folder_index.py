"""What is in a folder of images, kept on disk so that a large one need not be walked again.

Where: in the user's cache (`user_cache`), one file for each folder, which may be deleted at any
time. Never inside the folder itself.

When an index holds. A stale one would be worse than none, so it is used only if every folder below
has the device, inode and both times of change (`walk.Stamp`) that it had when it was listed: each
is looked at again, which for a million files in a thousand folders takes milliseconds. And it is
written only where that is proof enough:

* on a file system of Linux that is known to keep these times (`_KEEPS_TIMES`): many of those in
  user space, such as buckets mounted as folders, make them up;
* once nothing below has changed for `_SETTLED`: two changes within one tick of a file system's
  clock, which may be two seconds long and differ from this machine's, look like one;
* where every folder could be read.

A link is followed again where it leads to a folder or to nothing. What a file's link leads to, and
what is in a file, is met when it is read.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from pathlib import Path

import numpy as np

from logit_laplace_jax.data.walk import (
    EXTENSIONS,
    NO_FOLDER,
    FileNames,
    Stamp,
    Walk,
    folder_stamp,
    walk,
)
from logit_laplace_jax.runs import user_cache

HELD_OUT = 0.05
"""Share of a folder without split folders that is held out for validation."""

_KEEPS_TIMES = frozenset(
    {"btrfs", "ceph", "ext2", "ext3", "ext4", "f2fs", "lustre", "nfs", "nfs4", "overlay"}
    | {"tmpfs", "xfs", "zfs"}
)
_SETTLED = 60.0
"""Seconds: many ticks of any file system's clock, and more than well-kept clocks differ by."""

_WORTH_KEEPING = 10_000
"""Files. Fewer are walked in less time than anybody notices."""

_RULES = json.dumps([1, sorted(EXTENSIONS), HELD_OUT])
"""An index made by other rules, or written in another layout (the first number), does not count."""


@dataclasses.dataclass(frozen=True)
class Index:
    """The images below a folder.

    Attributes:
        files: their names, in the order of `walk.walk`.
        held_out: int64, the numbers of those that a hash of the name gives to validation, where
            there are no folders for that: see `folder.list_split`.
    """

    files: FileNames
    held_out: np.ndarray


def open_index(root: str) -> Index:
    """The images below a folder, from the index on disk where that holds, else by walking.

    Args:
        root: the folder.

    Raises:
        DataError: the folder cannot be read.
    """
    place = _place(root)
    index = _load(place, root) if place else None
    if index is None:
        started = time.time()
        walked = walk(root)
        index = Index(walked.files, held_out(walked.files))
        if place and len(index.files) >= _WORTH_KEEPING and _is_proof(walked, root, started):
            _save(place, root, index, walked.watched)
    return index


def _place(root: str) -> Path | None:
    """The file that keeps the index of `root`, or None where none may be kept."""
    folder = user_cache.folder()
    resolved = os.path.realpath(root)
    if folder is None or folder.is_relative_to(resolved):
        return None
    key = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:32]
    return folder / f"folder_{key}.npz"


def held_out(files: FileNames) -> np.ndarray:
    """Which files a hash of their names gives to validation: int64, ascending.

    Example:
        >>> held_out(FileNames.of([b"0.png", b"1.png", b"2.png"])).tolist()
        [0]
    """
    total = len(files)
    score = np.empty(total)
    for start in range(0, total, 4096):  # All names at once would take more memory than the rest.
        part = slice(start, min(start + 4096, total))
        score[part] = [_hash(name) for name in files.printable(np.arange(part.start, part.stop))]
    count = int((score < HELD_OUT).sum())
    # At least one on each side, as far as there are two.
    count = min(max(count, 1), max(total - 1, 1)) if total > 1 else 0
    return np.sort(np.argsort(score, kind="stable")[:count])


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, as it is printed."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _is_proof(walked: Walk, root: str, started: float) -> bool:
    """Whether equal stamps will mean that nothing has changed."""
    if not walked.complete:
        return False
    newest = max(max(stamp[2:]) for stamp in walked.watched.values())
    if newest > (started - _SETTLED) * 1e9:
        return False
    top = os.fsencode(root)
    devices = {stamp[0]: path for path, stamp in walked.watched.items() if stamp != NO_FOLDER}
    return all(_file_system(os.path.join(top, path)) in _KEEPS_TIMES for path in devices.values())


def _file_system(path: bytes) -> str:
    """The type of the file system that a folder lies on; empty where that cannot be found out."""
    resolved = os.path.realpath(path)
    best, kind = b"", b""
    for line in _mounts():
        before, _, after = line.partition(b" - ")
        # Blanks in the path are written as octal numbers.
        point = re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), before.split()[4])
        inside = resolved == point or resolved.startswith(point.rstrip(b"/") + b"/")
        # A later mount at the same place hides the earlier one.
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind.decode()


def _mounts() -> list[bytes]:
    """What is mounted where, as Linux tells it; other systems do not."""
    try:
        return Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return []


def _load(place: Path, root: str) -> Index | None:
    """The index kept at `place`, or None where there is none, it is damaged, or does not hold."""
    try:
        with np.load(place, allow_pickle=False) as arrays:  # Each array has its checksum.
            files = FileNames(arrays["files"].tobytes(), arrays["ends"])
            folders = FileNames(arrays["folders"].tobytes(), arrays["folder_ends"])
            stamps, chosen = arrays["stamps"], arrays["held_out"]
            if arrays["about"].tobytes() != _about(root):
                return None
        sound = (
            _fits(files)
            and _fits(folders)
            and stamps.shape == (len(folders), 4)
            and (chosen.dtype, chosen.ndim) == (np.int64, 1)
            and bool(chosen.size) == (len(files) > 1)
            and bool(((chosen >= 0) & (chosen < len(files))).all())
        )
    except FileNotFoundError:
        return None
    except Exception as error:  # A damaged file fails in many ways inside zipfile and numpy.
        logging.getLogger(__name__).debug("the index %s is not used: %s", place, error)
        return None
    if not sound:
        return None
    top = os.fsencode(root)
    for number, stamp in enumerate(stamps.tolist()):
        if folder_stamp(os.path.join(top, folders[number])) != tuple(stamp):
            return None
    return Index(files, chosen)


def _fits(names: FileNames) -> bool:
    ends = names.ends
    return (
        ends.dtype == np.int64
        and ends.ndim == 1
        and bool((np.diff(ends, prepend=0) >= 0).all())
        and (int(ends[-1]) if ends.size else 0) == len(names.joined)
    )


def _save(place: Path, root: str, index: Index, watched: dict[bytes, Stamp]) -> None:
    folders = FileNames.of(list(watched))
    arrays = {
        "about": _bytes(_about(root)),
        "files": _bytes(index.files.joined),
        "ends": index.files.ends,
        "held_out": index.held_out,
        "folders": _bytes(folders.joined),
        "folder_ends": folders.ends,
        "stamps": np.array(list(watched.values()), np.int64),
    }
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed: whoever reads at the same time sees the old one or the new.
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=place.stem, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            os.replace(name, place)
        except BaseException:
            os.unlink(name)
            raise
    except (OSError, OverflowError) as error:  # Full, read-only, not ours: it only saves time.
        logging.getLogger(__name__).debug("no index is kept at %s: %s", place, error)


def _about(root: str) -> bytes:
    return _RULES.encode() + b"\n" + os.fsencode(os.path.realpath(root))


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)
