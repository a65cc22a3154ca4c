"""A folder of images as the two splits of a data set."""

import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def read_split(path: str, split: str) -> dict[str, Any]:
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
        `read`, `name`, `count` (at least 1) and `label` of `sources.Source`. A name is the path
        relative to the folder, in a form that can be printed; a label is the name of the folder
        that the file lies in, empty in the split's own folder.

    Raises:
        DataError: no such folder, unreadable, or no image in the split.
    """
    if not path:
        raise DataError("folder: needs a path, as in folder:/data/photos")
    root = base = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"the folder {root} does not exist")
    if not root.is_dir():
        raise DataError(f"{root} is a file, not a folder: give the folder that holds the images")
    validation = next((root / name for name in _VALIDATION_NAMES if (root / name).is_dir()), None)
    if validation is not None and (root / "train").is_dir():
        base = root / "train" if split == "train" else validation
    files, others = find_images(str(base))
    named = ", ".join([printable(f) for f in others[:_NAMED]] + ["…"] * (len(others) > _NAMED))
    plural = "image file has a format" if len(others) == 1 else "image files have formats"
    told = f"{len(others)} {plural} that cannot be read here ({named}): convert to PNG or JPEG"
    if not files:
        endings = " ".join(sorted(ending[1:] for ending in EXTENSIONS))
        told = told if others else f"looked for {endings}"
        raise DataError(f"no image in {base} or below it; {told}")
    if others:
        _warn_once(f"in {printable(str(base))} {told}")
    prefix = f"{base.name}/"
    if base == root:
        if len(files) == 1 and split == "validation":
            raise DataError(
                f"{root} holds a single image, so none is left for validation: "
                "add another, or the folders train and val"
            )
        prefix, chosen = "", held_out(files)
        files = [file for file in files if (file in chosen) == (split == "validation")]
    return {
        "read": lambda i: base / files[i],
        "name": lambda i: prefix + printable(files[i]),
        "label": lambda i: printable(os.path.basename(os.path.dirname(files[i]))),
        "count": len(files),
    }


def held_out(files: Sequence[str]) -> set[str]:
    """Which files a hash of their names gives to validation.

    Example:
        >>> held_out(["0.png", "1.png", "2.png"])
        {'0.png'}
    """

    def score(file: str) -> float:
        digest = hashlib.sha256(printable(file).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    ranked = sorted((score(file), file) for file in files)
    count = sum(value < HELD_OUT for value, _ in ranked)
    # At least one on each side, as far as there are two.
    return {file for _, file in ranked[: min(max(count, 1), len(files) - 1)]}


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

    def failed(error: OSError) -> None:
        if error.filename == root:
            raise DataError(f"the folder {root} cannot be read: {error.strerror}") from error
        skipped = printable(error.filename)
        logging.getLogger(__name__).warning("skipped %s: %s", skipped, error.strerror)

    known, unreadable = EXTENSIONS | _OTHER_FORMATS, _OTHER_FORMATS | images.missing_endings()
    found: list[str] = []
    others: list[str] = []
    entered: set[tuple[int, int]] = set()  # A link back to a folder above would be walked for ever.
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=failed):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        # The order decides under which of its names a folder with several is entered.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith(".") or ending not in known:
                continue
            path = os.path.join(folder, name)
            if os.path.isfile(path) or not os.path.exists(path):
                file = path.removeprefix(root).lstrip("/")
                (others if ending in unreadable else found).append(file)

    def order(file: str) -> tuple[str, bytes]:
        return printable(file), os.fsencode(file)

    return sorted(found, key=order), sorted(others, key=order)


def printable(file: str) -> str:
    r"""A file's name as text that can be printed: bytes that are no UTF-8 become `\xff`."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")
