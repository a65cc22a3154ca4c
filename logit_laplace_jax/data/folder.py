"""A folder of images as the two splits of a data set."""

import os
from pathlib import Path

import numpy as np

from logit_laplace_jax.data.errors import DataError
from logit_laplace_jax.data.folder_index import open_index
from logit_laplace_jax.data.walk import EXTENSIONS, FileNames, printable

_VALIDATION_NAMES = ("val", "validation", "valid", "test")


class SplitFiles:
    """The images of one split by number, in the order of their printable names.

    Args:
        root: the folder that the names are relative to.
        prefix: put before every name.
        files: the names of both splits.
        chosen: int64, which of them belong to the split; None is all.
    """

    def __init__(self, root: str, prefix: str, files: FileNames, chosen: np.ndarray | None = None):
        self._root = os.fsencode(root)
        self._prefix = prefix
        self._files = files
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._files) if self._chosen is None else len(self._chosen)

    def name(self, index: int) -> str:
        """The path relative to the data set's folder, with `/`, in a form that can be printed."""
        return self._prefix + printable(self._file(index))

    def names(self, start: int, stop: int) -> list[str]:
        """The names of images start … stop − 1."""
        numbers = np.arange(start, stop) if self._chosen is None else self._chosen[start:stop]
        names = self._files.printable(numbers)
        return [self._prefix + name for name in names] if self._prefix else names

    def path(self, index: int) -> Path:
        """The file."""
        return Path(os.fsdecode(os.path.join(self._root, self._file(index))))

    def _file(self, index: int) -> bytes:
        return self._files[index if self._chosen is None else int(self._chosen[index])]


def list_split(path: str, split: str) -> SplitFiles:
    """The images of one split of a folder, in the order of their relative paths.

    Where `path` has a folder `train` and one of `val`, `validation`, `valid`, `test`, those are the
    splits. Otherwise every image is sorted by a hash of its relative path: about 5 %, and at least
    one, are held out for validation. An image never changes sides when others are added, except
    that a sole held-out one gives way.

    Hidden files and folders (`.name`) are passed over; links are followed, each folder once. Large
    folders are walked once and then remembered: see `folder_index.py`.

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
    index = open_index(str(base or root))
    files = index.files
    if not len(files):
        endings = " ".join(sorted(ending[1:] for ending in EXTENSIONS))
        raise DataError(f"no image in {base or root} or below it (looked for {endings})")
    if base is not None:
        return SplitFiles(str(base), f"{base.name}/", files)
    if len(files) == 1 and split == "validation":
        raise DataError(
            f"{root} holds a single image, so none is left for validation: "
            "add another, or the folders train and val"
        )
    chosen = index.held_out
    if split == "train":
        chosen = np.delete(np.arange(len(files)), chosen)
    return SplitFiles(str(root), "", files, chosen)


def _split_folder(root: Path, split: str) -> Path | None:
    """The folder of `split` where `root` has folders for both splits, else None."""
    train = root / "train"
    validation = next((root / name for name in _VALIDATION_NAMES if (root / name).is_dir()), None)
    if not train.is_dir() or validation is None:
        return None
    return train if split == "train" else validation
