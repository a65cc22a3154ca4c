"""Images of any size for a model that takes multiples of its downsampling: crop, pad or tile."""

from typing import Literal, NamedTuple, get_args

import numpy as np

from logit_laplace_jax.data.augment import eval_crop
from logit_laplace_jax.data.errors import DataError, TooSmallImage

Fit = Literal["crop", "pad", "tile"]
"""`crop`: the centre, as large as the model allows, or a square of a given size. `pad`: all of the
image, the last row and column repeated. `tile`: the same in squares of a given size, each on its
own."""


class Fitted(NamedTuple):
    """An image as the pictures that a model encodes."""

    pieces: np.ndarray
    """uint8 [R, Q, h, w, C], R rows of Q pictures side by side (1 and 1 unless tiled)."""
    size: tuple[int, int]
    """(height, width) of what counts of the pictures when they are joined."""


def check_options(how: Fit, factor: int, image_size: int | None) -> None:
    """Refuses a size that does not go with a fit.

    Args:
        how: the fit.
        factor: the model's downsampling.
        image_size: the side of a crop or tile in pixels, or None.

    Raises:
        DataError: `tile` without a size, `pad` with one, or one that the model does not take.

    Example:
        >>> check_options("tile", 8, 100)
        Traceback (most recent call last):
        ...
        logit_laplace_jax.data.errors.DataError: image size 100 is no positive multiple of 8, ...
    """
    if how not in get_args(Fit):
        raise DataError(f"unknown fit {how!r}: give crop, pad or tile")
    if how == "tile" and image_size is None:
        raise DataError("tiles need an image size: the side of a tile in pixels")
    if how == "pad" and image_size is not None:
        raise DataError("padded images keep their size: leave the image size out, or crop or tile")
    if image_size is not None and (image_size < 1 or image_size % factor):
        raise DataError(
            f"image size {image_size} is no positive multiple of {factor}, the model's downsampling"
        )


def fit(image: np.ndarray, how: Fit, factor: int, image_size: int | None = None) -> Fitted:
    """Cuts or pads one image to what the model takes.

    * `crop`: the centre, cut to multiples of `factor`; with an `image_size` the centre square of
      the short side, area-resized to it (as evaluation does: `augment.eval_crop`).
    * `pad`: the last row and column are repeated up to multiples of `factor`.
    * `tile`: they are repeated up to multiples of `image_size`, and squares of it cut.

    Args:
        image: uint8 [H, W, C].
        how: the fit.
        factor: the model's downsampling.
        image_size: the side of a crop or tile in pixels.

    Raises:
        TooSmallImage: nothing is left of a crop.
        DataError: as of `check_options`.

    Example:
        >>> photo = np.zeros((9, 14, 3), np.uint8)
        >>> for how, size in (("crop", None), ("crop", 8), ("pad", None), ("tile", 8)):
        ...     fitted = fit(photo, how, 4, size)
        ...     print(how, fitted.pieces.shape, fitted.size)
        crop (1, 1, 8, 12, 3) (8, 12)
        crop (1, 1, 8, 8, 3) (8, 8)
        pad (1, 1, 12, 16, 3) (9, 14)
        tile (2, 2, 8, 8, 3) (9, 14)
    """
    check_options(how, factor, image_size)
    height, width = image.shape[:2]
    if how == "crop" and image_size is not None:
        image = eval_crop(image, image_size)
    elif how == "crop":
        if min(height, width) < factor:
            raise TooSmallImage(f"{width}×{height} pixels give no token of {factor}×{factor}")
        top, left = height % factor // 2, width % factor // 2
        bottom, right = top + height // factor * factor, left + width // factor * factor
        image = image[top:bottom, left:right]
    size = (image.shape[0], image.shape[1])
    multiple = image_size or factor
    padding = [(0, -side % multiple) for side in size]
    padded = np.pad(image, [*padding, (0, 0)], mode="edge")
    return Fitted(split(padded, (multiple, multiple) if how == "tile" else None), size)


def split(image: np.ndarray, tile: tuple[int, int] | None) -> np.ndarray:
    """An array [H, W, ...] as its tiles [R, Q, h, w, ...]; None: one, the whole of it.

    Args:
        image: pixels, or a grid of tokens.
        tile: (h, w), which divide H and W.

    Raises:
        DataError: they do not.

    Example:
        >>> split(np.arange(8).reshape(2, 4), (2, 2))[0, 1].tolist()
        [[2, 3], [6, 7]]
    """
    height, width = image.shape[:2]
    h, w = tile or (height, width)
    if height % h or width % w:
        raise DataError(f"tiles of {h} x {w} do not divide {height} x {width}")
    rest = image.shape[2:]
    return image.reshape(height // h, h, width // w, w, *rest).swapaxes(1, 2)


def join(pieces: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """The inverse of `split`: tiles [R, Q, h, w, ...] to [H, W, ...].

    Args:
        pieces: the tiles.
        size: (height, width) to which the whole is cut; None cuts nothing.

    Example:
        >>> image = np.arange(24).reshape(4, 6)
        >>> join(split(image, (2, 3)), (3, 5)).tolist() == image[:3, :5].tolist()
        True
    """
    rows, columns, h, w, *rest = pieces.shape
    whole = pieces.swapaxes(1, 2).reshape(rows * h, columns * w, *rest)
    return whole if size is None else whole[: size[0], : size[1]]
