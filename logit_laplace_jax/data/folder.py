"""A folder of images as the two splits of a data set."""

import hashlib
import logging
import os
from pathlib import Path

from .errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})
"""Endings of image files, compared without regard to case."""

HELD_OUT = 0.05
"""Share of a folder without split folders that is held out for validation."""

_VALIDATION_NAMES = ("val", "validation", "valid", "test")


def list_split(path: str, split: str) -> list[tuple[str, Path]]:
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
        (path relative to `path`, with `/`; the file) for each image. At least one.

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
    files = _walk(base or root)
    if not files:
        endings = " ".join(sorted(ending[1:] for ending in EXTENSIONS))
        raise DataError(f"no image in {base or root} or below it (looked for {endings})")
    if base is not None:
        prefix = base.name
        return [(f"{prefix}/{name}", file) for name, file in files]
    chosen = _held_out([name for name, _ in files])
    if len(files) == 1 and split == "validation":
        raise DataError(
            f"{root} holds a single image, so none is left for validation: "
            "add another, or the folders train and val"
        )
    return [(name, file) for name, file in files if (name in chosen) == (split == "validation")]


def _split_folder(root: Path, split: str) -> Path | None:
    """The folder of `split` where `root` has folders for both splits, else None."""
    train = root / "train"
    validation = next((root / name for name in _VALIDATION_NAMES if (root / name).is_dir()), None)
    if not train.is_dir() or validation is None:
        return None
    return train if split == "train" else validation


def _walk(root: Path) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    # A link back to a folder above would be walked for ever: each folder is entered once.
    entered: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        if Path(error.filename or "") == root:
            raise DataError(f"the folder {root} cannot be read: {error.strerror}") from error
        logging.getLogger(__name__).warning("skipped %s: %s", error.filename, error.strerror)

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            file = Path(folder, name)
            # is_file keeps pipes and devices out: reading one could wait for ever.
            if (
                not name.startswith(".")
                and file.suffix.lower() in EXTENSIONS
                and (file.is_file() or not file.exists())  # a broken link is kept, to be named
            ):
                found.append((_printable(file.relative_to(root)), file))
    return sorted(found)


def _printable(path: Path) -> str:
    # File names on Linux are bytes; one that is no UTF-8 must still be printable in a report.
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _held_out(names: list[str]) -> set[str]:
    score = {name: _hash(name) for name in names}
    ranked = sorted(names, key=score.__getitem__)
    count = sum(score[name] < HELD_OUT for name in names)
    # At least one on each side, as far as there are two.
    count = min(max(count, 1), max(len(names) - 1, 1)) if len(names) > 1 else 0
    return set(ranked[:count])


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
