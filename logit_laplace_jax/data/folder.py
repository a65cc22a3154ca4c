"""A folder of images as the two splits of a data set."""

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from logit_laplace_jax.data.errors import DataError

EXTENSIONS = frozenset(
    (  # noqa: SIM905
        ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .bmp .tif .tiff .gif "
        ".ppm .pgm .pbm .pnm .avif .avifs .heic .heics .heif .heifs .hif"
    ).split()
)
"""Endings of image files that `images.decode` reads, compared without regard to case; those of
AVIF and HEIF only where `images.missing_endings` says so."""

_OTHER_FORMATS = frozenset(
    (  # noqa: SIM905
        ".jxl .jp2 .j2k .jpf .jpx .pfm .exr .hdr .tga .psd .xcf .svg .ico "
        ".icns .pcx .dds .qoi .sgi .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf"
    ).split()
)
"""Endings of image files that are never read: they are named, so that nobody misses them."""

_NAMED = 5
"""So many image files of unreadable formats are named; all are counted."""

HELD_OUT = 0.05
"""Share of a folder without split folders that is held out for validation."""

_VALIDATION_NAMES = ("val", "validation", "valid", "test")


class SplitFiles:
    """The images of one split by number, in the order of their printable names.

    Args:
        root: the folder that the files are relative to.
        prefix: put before every name.
        files: paths relative to ``root``.
    """

    def __init__(self, root: str, prefix: str, files: Sequence[str]):
        self._root, self._prefix, self._files = root, prefix, files

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The path relative to the data set's folder, with `/`, in a form that can be printed."""
        return self._prefix + printable(self._files[index])

    def label(self, index: int) -> str:
        """The name of the folder that the file lies in; empty in the split's own folder."""
        return printable(os.path.basename(os.path.dirname(self._files[index])))

    def path(self, index: int) -> Path:
        """The file."""
        return Path(self._root, self._files[index])


def list_split(path: str, split: str) -> SplitFiles:
    """The images of one split of a folder, in the order of their relative paths.

    Where `path` has a folder `train` and one of `val`, `validation`, `valid`, `test`, those are the
    splits. Otherwise every image is sorted by a hash of its relative path: about 5 %, and at least
    one, are held out for validation. An image never changes sides when others are added, except
    that a sole held-out one gives way.

    Hidden files and folders (`.name`) are passed over; links are followed, each folder once.

    Args:
        path: the folder; `~` is expanded.
        split: `train` or `validation`.

    Returns:
        The images, at least one.

    Raises:
        DataError: no such folder, unreadable, or no image in the split.
    """
    root = Path(path).expanduser() if path else None
    if root is None:
        raise DataError("folder: needs a path, as in folder:/data/photos")
    if not root.exists():
        raise DataError(f"the folder {root} does not exist")
    if not root.is_dir():
        raise DataError(f"{root} is a file, not a folder: give the folder that holds the images")
    base = _split_folder(root, split)
    files, others = find_images(str(base or root))
    named = ", ".join(
        [printable(file) for file in others[:_NAMED]] + ["…"] * (len(others) > _NAMED)
    )
    plural = "image file has a format" if len(others) == 1 else "image files have formats"
    told = f"{len(others)} {plural} that cannot be read here ({named}): convert to PNG or JPEG"
    if not files:
        endings = " ".join(sorted(ending[1:] for ending in EXTENSIONS))
        told = told if others else f"looked for {endings}"
        raise DataError(f"no image in {base or root} or below it; {told}")
    if others:
        _warn_once(f"in {printable(str(base or root))} {told}")
    if base is not None:
        return SplitFiles(str(base), f"{base.name}/", files)
    if len(files) == 1 and split == "validation":
        raise DataError(
            f"{root} holds a single image, so none is left for validation: "
            "add another, or the folders train and val"
        )
    chosen = held_out(files)
    return SplitFiles(str(root), "", [f for f in files if (f in chosen) == (split == "validation")])


def _split_folder(root: Path, split: str) -> Path | None:
    """The folder of `split` where `root` has folders for both splits, else None."""
    train = root / "train"
    validation = next((root / name for name in _VALIDATION_NAMES if (root / name).is_dir()), None)
    if not train.is_dir() or validation is None:
        return None
    return train if split == "train" else validation


def held_out(files: Sequence[str]) -> set[str]:
    """Which files a hash of their names gives to validation.

    Example:
        >>> held_out(["0.png", "1.png", "2.png"])
        {'0.png'}
    """

    def score(file: str) -> float:
        digest = hashlib.sha256(printable(file).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    scores = {file: score(file) for file in files}
    count = sum(value < HELD_OUT for value in scores.values())
    # At least one on each side, as far as there are two.
    count = min(max(count, 1), max(len(files) - 1, 1)) if len(files) > 1 else 0
    return set(sorted(files, key=scores.__getitem__)[:count])


@functools.cache
def _warn_once(message: str) -> None:
    # A run opens the same folder several times.
    logging.getLogger(__name__).warning("%s", message)


def find_images(root: str) -> tuple[list[str], list[str]]:
    """The images below a folder, and the image files of formats that cannot be read here.

    Both are paths relative to the folder, in the order of their printable names. What is neither a
    file nor a link to nowhere (a pipe, a device) is passed over: reading it could wait for ever.
    Links to nowhere are kept, to be named when they are read.

    Raises:
        DataError: the folder itself cannot be read. One below it is named in the log.
    """
    from logit_laplace_jax.data import images  # It needs Pillow; `EXTENSIONS` does not.

    unreadable = _OTHER_FORMATS | images.missing_endings()
    known = EXTENSIONS | _OTHER_FORMATS
    found: dict[bool, list[str]] = {True: [], False: []}  # by whether they can be read
    entered: set[tuple[int, int]] = set()  # a link back to a folder above would be walked for ever
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listed:
                entries = [entry for entry in listed if not entry.name.startswith(".")]
        except OSError as error:
            if folder == root:
                raise DataError(f"the folder {root} cannot be read: {error.strerror}") from error
            logging.getLogger(__name__).warning("skipped %s: %s", printable(folder), error.strerror)
            continue
        folders = [entry.path for entry in entries if _holds(entry.is_dir)]
        # The order decides under which of its names a folder with several is entered.
        waiting.extend(sorted(folders, reverse=True))
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if ending in known and (_holds(entry.is_file) or not os.path.exists(entry.path)):
                file = entry.path.removeprefix(root).lstrip("/")
                found[ending not in unreadable].append(file)

    def order(file: str) -> tuple[str, bytes]:
        return printable(file), os.fsencode(file)

    return sorted(found[True], key=order), sorted(found[False], key=order)


def printable(file: str) -> str:
    r"""A file's name as text that can be printed: bytes that are no UTF-8 become `\xff`."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link whose end cannot be looked at
        return False
