"""Crops of a photograph: random ones for training, fixed ones for evaluation.

All functions take uint8 [height, width, channels] (channels 1 or 3) and return uint8, values 0…255.

Area resizing is Pillow's BOX filter. Where the sizes divide it is the block mean, rounded up at
halves after each of the two directions: with a factor of 2 that is half a level too bright on
average, with other factors less. Where the sizes do not divide, each source pixel belongs whole to
the output pixel in which its centre falls, whereas TensorFlow's AREA, which the paper used, splits
pixels at the borders.
"""

import math

import numpy as np

from .errors import TooSmallImage, missing_package
from .images import height_width

try:
    from PIL import Image
except ImportError as error:
    raise missing_package("pillow") from error


def train_crop(
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    min_crop: float = 1.0,
    flip: bool = True,
) -> np.ndarray:
    """The augmentation of Ramesh et al. (2021), listing 1, at a random place of the photograph.

    A random square crop is area-resized to t×t, of which a random size×size part is taken, and
    flipped left to right with probability ½. t is uniform on the integers from 9/8·size to
    12/8·size (rounded up and down), both bounds cut to the crop's side.

    The paper's square has the photograph's short side. With few large photographs and small crops
    `min_crop < 1` gives more variety: the side is log-uniform from min_crop·short to short, but not
    below 9/8·size, so that nothing is enlarged.

    Args:
        image: uint8 [H, W, C], both sides at least `size`.
        size: side of the result, in pixels.
        rng: the source of every choice; equal generators give equal crops.
        min_crop: smallest side of the square, as a share of the short side, in (0, 1].
        flip: whether to flip at all.

    Returns:
        uint8 [size, size, C].

    Raises:
        TooSmallImage: the short side is below `size`.
        ValueError: `min_crop` is outside (0, 1].

    Example:
        >>> photo = np.zeros((60, 80, 3), np.uint8)
        >>> train_crop(photo, 32, np.random.default_rng(0), min_crop=0.5).shape
        (32, 32, 3)
    """
    if not 0 < min_crop <= 1:
        raise ValueError(f"min_crop must be in (0, 1], not {min_crop}")
    height, width = _checked(image, size)
    short = min(height, width)
    t_low = math.ceil(size * 9 / 8)
    t_high = max(t_low, math.floor(size * 12 / 8))
    side = short
    if min_crop < 1:
        low = min(max(min_crop * short, t_low), short)
        side = min(round(low * (short / low) ** rng.random()), short)
    top = rng.integers(height - side, endpoint=True)
    left = rng.integers(width - side, endpoint=True)
    t = int(rng.integers(min(side, t_low), min(side, t_high), endpoint=True))
    y = rng.integers(t - size, endpoint=True)
    x = rng.integers(t - size, endpoint=True)
    mirrored = rng.random() < 0.5  # Drawn in any case, so that `flip` changes nothing else.
    # Resizing the square to t×t and cropping equals resizing only the crop's own part of it.
    scale = side / t
    box = (left + x * scale, top + y * scale, left + (x + size) * scale, top + (y + size) * scale)
    crop = _area_resize(image, box, (size, size))
    return crop[:, ::-1] if flip and mirrored else crop


def eval_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The centre square of the short side, area-resized to `size`.

    Args:
        image: uint8 [H, W, C], both sides at least `size`.
        size: side of the result, in pixels.

    Returns:
        uint8 [size, size, C].

    Raises:
        TooSmallImage: the short side is below `size`.

    Example:
        >>> eval_crop(np.zeros((60, 80, 3), np.uint8), 32).shape
        (32, 32, 3)
    """
    height, width = _checked(image, size)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _area_resize(image, (left, top, left + side, top + side), (size, size))


def grid_crops(image: np.ndarray, size: int, scale: float = 1.0) -> list[np.ndarray]:
    """All whole tiles of the photograph at one scale: many fixed crops of few photographs.

    The photograph is area-resized by `scale`, then cut into size×size tiles that do not overlap;
    the grid is centred, and what is left over at the borders is dropped.

    Args:
        image: uint8 [H, W, C].
        size: side of a tile, in pixels.
        scale: factor of the resizing, in (0, 1].

    Returns:
        The tiles row by row, each uint8 [size, size, C]; at least one.

    Raises:
        TooSmallImage: not one tile fits after the resizing.
        ValueError: `scale` is outside (0, 1].

    Example:
        >>> len(grid_crops(np.zeros((60, 80, 3), np.uint8), 16, scale=0.5))
        2
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be in (0, 1], not {scale}")
    height, width = height_width(image)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    if min(new_height, new_width) < size:
        raise TooSmallImage(
            f"{width}×{height} pixels, at scale {scale:g} {new_width}×{new_height}, "
            f"are too small for {size}×{size}"
        )
    if (new_height, new_width) != (height, width):
        image = _area_resize(image, (0, 0, width, height), (new_width, new_height))
    rows, columns = new_height // size, new_width // size
    top, left = (new_height - rows * size) // 2, (new_width - columns * size) // 2
    return [
        image[y : y + size, x : x + size]
        for y in range(top, top + rows * size, size)
        for x in range(left, left + columns * size, size)
    ]


def _checked(image: np.ndarray, size: int) -> tuple[int, int]:
    height, width = height_width(image)
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    if min(height, width) < size:
        raise TooSmallImage(f"{width}×{height} pixels are too small for {size}×{size}")
    return height, width


def _area_resize(
    image: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    """The part `box` (left, top, right, bottom; fractions allowed) of `image` at `size` (w, h)."""
    # Only the part that is needed is copied into Pillow's format: that copy is most of the cost.
    left, top = math.floor(box[0]), math.floor(box[1])
    right = min(math.ceil(box[2]), image.shape[1])
    bottom = min(math.ceil(box[3]), image.shape[0])
    part = image[top:bottom, left:right]
    if part.shape[-1] == 1:
        part = part[..., 0]
    # The clip undoes rounding of the order of 1e-13, which Pillow would refuse.
    inner = (
        box[0] - left,
        box[1] - top,
        min(box[2], right) - left,
        min(box[3], bottom) - top,
    )
    resized = Image.fromarray(np.ascontiguousarray(part)).resize(size, Image.Resampling.BOX, inner)
    return np.asarray(resized).reshape(size[1], size[0], image.shape[-1])
