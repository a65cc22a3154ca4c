"""One way to every image: a specification becomes a small random-access source.

* `photos`: the embedded photographs (`photos.py`);
* `folder:PATH`: a folder of images (`folder.py`);
* `tfds:NAME[/CONFIG][:VERSION]`: a TFDS image data set (`tfds_images.py`).
"""

import operator
import threading
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Literal, Protocol

import numpy as np

from logit_laplace_jax.data import images
from logit_laplace_jax.data.errors import DataError, UnreadableImage, one_line

Split = Literal["train", "validation"]

Read = Callable[[int], bytes | PathLike[str] | np.ndarray]
"""Gives image i as file content, path or uint8 array."""


class DataSet(Protocol):
    """A data set of a user's own, for ``train(config, source=...)``.

    Example:
        >>> class Noise:
        ...     def split(self, name):  # "train" or "validation"
        ...         rng = np.random.default_rng(name == "train")
        ...         return rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
        >>> len(open_source(Noise(), "train"))
        4
    """

    def split(self, name: str) -> Sequence[Any] | np.ndarray:
        """The images of ``train`` or ``validation`` by number: uint8 [H, W, C] or [H, W], paths, or
        file contents."""


class Source:
    """Images by number: decoded 8-bit arrays, of which as many as fit are kept in memory.

    Safe to share between threads. Every image is decoded by the rules of `images.py`.

    Args:
        spec: what the source was opened from, for messages.
        split: `train` or `validation`.
        read: gives image i as file content, path or uint8 array. It may raise.
        name: gives the name of image i, for messages.
        count: how many images there are, readable or not; at least 1.
        channels: 3 for RGB, 1 for grey.
        cache_mib: bound of the decoded images kept in memory, in MiB; 0 keeps none.
        label: gives the name of image i's class; None: there are no classes.
        classes: the names of all classes in order; None: those that occur, sorted.

    Example:
        >>> white = np.full((2, 2), 255, np.uint8)
        >>> source = Source("demo", "train", read=lambda i: white, name=str, count=5)
        >>> len(source), source[0].shape, source.name(4)
        (5, (2, 2, 3), '4')
    """

    def __init__(
        self,
        spec: str,
        split: Split,
        *,
        read: Read,
        name: Callable[[int], str],
        count: int,
        channels: int = 3,
        cache_mib: float = 512,
        label: Callable[[int], str] | None = None,
        classes: Sequence[str] | None = None,
    ):
        if not count:
            raise DataError(f"{spec} ({split}) holds no image")
        images.check_channels(channels)
        if cache_mib < 0:
            raise DataError(f"cache_mib must be at least 0, not {cache_mib}")
        self.spec = spec
        self.split: Split = split
        self.channels = channels
        self._read = read
        self._name = name
        self._count = count
        self._kept: dict[int, np.ndarray] = {}
        self._room = int(cache_mib * 2**20)
        self._lock = threading.Lock()
        self._label = label
        self._classes = classes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:
        """Image `index`: uint8 [height, width, channels], read-only.

        Raises:
            UnreadableImage: it cannot be decoded; the message is the reason, without the name.
            IndexError: `index` is outside 0…len−1.
        """
        index = self._check(index)
        pixels = self._kept.get(index)
        if pixels is not None:
            return pixels
        try:
            data = self._read(index)
        except Exception as error:
            raise UnreadableImage(one_line(error)) from error
        if isinstance(data, np.ndarray):
            pixels = images.from_array(data, self.channels)
        else:
            pixels = images.decode(data, self.channels)
        with self._lock:
            # Nothing gives way to a later image: in an order shuffled every epoch none is likelier
            # to be asked for again. Two threads may have decoded the same one at once.
            if index not in self._kept and pixels.nbytes <= self._room:
                self._kept[index] = pixels
                self._room -= pixels.nbytes
        return pixels

    def name(self, index: int) -> str:
        """The name of image `index`: its relative path, or its place in the data set."""
        return self._name(self._check(index))

    def label(self, index: int) -> str:
        """The name of the class of image `index`.

        Raises:
            DataError: the source has no classes.
        """
        if self._label is None:
            raise DataError(f"{self.spec} has no classes: give images in one folder per class")
        return self._label(self._check(index))

    def classes(self) -> tuple[str, ...]:
        """The names of all classes.

        Raises:
            DataError: there are no classes, or only one.
        """
        names = self._classes
        if names is None:
            names = sorted({self.label(index) for index in range(self._count)})
        if len(names) < 2:
            raise DataError(f"{self.spec} has a single class: give images in one folder per class")
        return tuple(names)

    def _check(self, index: int) -> int:
        index = operator.index(index)
        if not 0 <= index < self._count:
            raise IndexError(f"image {index} of {self._count}")
        return index


def open_source(
    spec: str | DataSet,
    split: Split,
    *,
    data_dir: str | None = None,
    channels: int = 3,
    cache_mib: float = 512,
) -> Source:
    """Opens one split of a data source, preparing it first where that is needed.

    Args:
        spec: `photos`, `folder:PATH`, `tfds:NAME[/CONFIG][:VERSION]`, or a user's own data set.
        split: `train` or `validation`. For a folder see `folder.read_split`; for TFDS the held-out
            split is `validation`, else `test`, else the last 5 % of `train`.
        data_dir: where TFDS keeps its data sets; None is TFDS's own default. A folder needs none.
        channels: 3 for RGB, 1 for grey.
        cache_mib: bound of the decoded images kept in memory, in MiB.

    Returns:
        The source, with at least one image in it (which may still prove unreadable).

    Raises:
        DataError: no such source, nothing in it, or a package or file that it needs is missing.

    Example:
        >>> open_source("photo", "train")
        Traceback (most recent call last):
        ...
        logit_laplace_jax.data.errors.DataError: unknown data source 'photo': give photos, ...
    """
    if split not in ("train", "validation"):
        raise DataError(f"unknown split {split!r}: give train or validation")
    label = spec if isinstance(spec, str) else type(spec).__name__
    kind, colon, rest = label.partition(":")
    if not isinstance(spec, str):
        parts = _split_of(spec, split)
    elif spec == "photos":
        from logit_laplace_jax.data import photos, tfds_images

        parts = tfds_images.read_split(photos.prepare(data_dir), split, name_feature="name")
    elif kind == "folder" and colon:
        from logit_laplace_jax.data import folder

        parts = folder.read_split(rest, split)
    elif kind == "tfds" and colon:
        from logit_laplace_jax.data import tfds_images

        parts = tfds_images.read_split(tfds_images.prepare(rest, data_dir), split)
    else:
        raise DataError(f"unknown data source {spec!r}: give photos, folder:PATH or tfds:NAME")
    return Source(label, split, **parts, channels=channels, cache_mib=cache_mib)


def _split_of(data_set: DataSet, split: Split) -> dict[str, Any]:
    """`read`, `name` and `count` of `Source` for one split of a user's own data set."""
    name = type(data_set).__name__
    if not callable(getattr(data_set, "split", None)):
        raise DataError(f"a data set needs a method split(name), which {name} has not")
    images_of: Any = data_set.split(split)
    return {"read": images_of.__getitem__, "name": str, "count": len(images_of)}
