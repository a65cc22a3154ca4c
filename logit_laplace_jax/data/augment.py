"""Crops of a photograph: random ones for training, fixed ones for evaluation.

All functions take uint8 [height, width, channels] (channels 1 or 3) and return uint8, values 0…255.

Area resizing is exact: every output pixel is the mean over its rectangle of the source, pixels at
the rectangle's border counting by the part of them inside, as in TensorFlow's AREA, which the paper
used. (Pillow's BOX filter gives border pixels whole to one side: 4 to 6 grey levels RMS away from
this at the small factors of this augmentation.) Means are rounded to the nearest integer. From a
factor of 8 on the source is first reduced by Pillow to block means, at least 4 of which make an
output pixel: only the blocks at a rectangle's border are then shared out as if they were flat.
"""

import math

import numpy as np

from logit_laplace_jax.data.errors import TooSmallImage, missing_package

try:
    from PIL import Image
except ImportError as error:
    raise missing_package("pillow") from error

_LARGE_FACTOR = 8
"""From this factor on, block means come first: the sums below grow with the source's size."""


def train_crop(
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    min_crop: float = 1.0,
    max_crop: float = 1.0,
    jitter: float = 0.0,
    flip: bool = True,
) -> np.ndarray:
    """The augmentation of Ramesh et al. (2021), listing 1, at a random place of the photograph.

    A random square crop is area-resized to t×t, of which a random size×size part is taken, and
    flipped left to right with probability ½. t is uniform on the integers from 9/8·size to
    12/8·size (rounded up and down), both bounds cut to the crop's side.

    The paper's square has the photograph's short side. With few large photographs and small crops
    `min_crop < 1` gives more variety: the side is log-uniform from min_crop·short to
    max_crop·short, but not below 9/8·size, so that nothing is enlarged.

    Args:
        image: uint8 [H, W, C], both sides at least `size`.
        size: side of the result, in pixels.
        rng: the source of every choice; equal generators give equal crops.
        min_crop: smallest side of the square, as a share of the short side, in (0, 1].
        max_crop: largest side, likewise; at least `min_crop` where that is below 1.
        jitter: strength of :func:`jitter_colours` after the crop; 0 leaves the colours alone.
        flip: whether to flip at all.

    Returns:
        uint8 [size, size, C].

    Raises:
        TooSmallImage: the short side is below `size`.
        ValueError: `min_crop` or `max_crop` is outside (0, 1], or `jitter` is negative.

    Example:
        >>> photo = np.zeros((60, 80, 3), np.uint8)
        >>> train_crop(photo, 32, np.random.default_rng(0), min_crop=0.5).shape
        (32, 32, 3)
    """
    for name, share in (("min_crop", min_crop), ("max_crop", max_crop)):
        if not 0 < share <= 1:
            raise ValueError(f"{name} must be in (0, 1], not {share}")
    if jitter < 0:
        raise ValueError(f"jitter must be 0 or more, not {jitter}")
    height, width = _checked(image, size)
    short = min(height, width)
    t_low = math.ceil(size * 9 / 8)
    t_high = max(t_low, math.floor(size * 12 / 8))
    side = short
    if min_crop < 1:
        low = min(max(min_crop * short, t_low), short)
        high = max(max_crop * short, low)
        side = min(round(low * (high / low) ** rng.random()), short)
    top = rng.integers(height - side, endpoint=True)
    left = rng.integers(width - side, endpoint=True)
    t = int(rng.integers(min(side, t_low), min(side, t_high), endpoint=True))
    y = rng.integers(t - size, endpoint=True)
    x = rng.integers(t - size, endpoint=True)
    mirrored = rng.random() < 0.5  # Drawn in any case, so that `flip` changes nothing else.
    # Resizing the square to t×t and cropping equals resizing only the crop's own part of it.
    scale = side / t
    box = (left + x * scale, top + y * scale, left + (x + size) * scale, top + (y + size) * scale)
    crop = area_resize(image, (size, size), box)
    if flip and mirrored:
        crop = crop[:, ::-1]
    return jitter_colours(crop, jitter, rng) if jitter > 0 else crop


_GREY = np.full(3, 1 / math.sqrt(3))
_CHROMA = np.array([[2, -1, -1], [0, math.sqrt(3), -math.sqrt(3)]]) / math.sqrt(6)
"""An orthonormal basis of the colours: along grey, and the two directions of colourfulness."""


def jitter_colours(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Changes contrast, brightness, saturation and hue of a whole image a little, at random.

    At strength 1: contrast by a log-normal factor of deviation 0.2 about mid-grey, brightness by a
    normal shift of deviation 18 levels, saturation by a factor uniform in [0.7, 1.3], hue by an
    angle uniform within 18 degrees. All grow in proportion to the strength.

    Args:
        image: uint8 [H, W, C]; of one channel only contrast and brightness change.
        strength: 0 or more.
        rng: the source of every choice.

    Returns:
        uint8 [H, W, C], clipped to 0…255.

    Example:
        >>> grey = np.full((2, 2, 3), 90, np.uint8)
        >>> bool((jitter_colours(grey, 1.0, np.random.default_rng(0)).std(-1) == 0).all())
        True
    """
    contrast = math.exp(strength * rng.normal(0.0, 0.2))
    brightness = strength * rng.normal(0.0, 18.0)
    saturation = max(1.0 + strength * rng.uniform(-0.3, 0.3), 0.0)
    angle = strength * math.pi * rng.uniform(-0.1, 0.1)
    x = image.astype(np.float32)
    if image.shape[-1] == 3:
        cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
        turn = _CHROMA.T @ np.array([[cos, -sin], [sin, cos]]) @ _CHROMA + np.outer(_GREY, _GREY)
        x = x @ turn.T.astype(np.float32)
    x = (x - 127.5) * contrast + (127.5 + brightness)
    return np.rint(np.clip(x, 0, 255)).astype(np.uint8)


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
    return area_resize(image, (size, size), (left, top, left + side, top + side))


def grid_crops(image: np.ndarray, size: int, resize: float = 1.0) -> list[np.ndarray]:
    """All whole tiles of the photograph at one size: many fixed crops of few photographs.

    The photograph is area-resized by `resize`, then cut into size×size tiles that do not overlap;
    the grid is centred, and what is left over at the borders is dropped. A photograph in which not
    even one tile would fit is reduced less, until one does.

    Args:
        image: uint8 [H, W, C].
        size: side of a tile, in pixels.
        resize: factor of the resizing, in (0, 1].

    Returns:
        The tiles row by row, each uint8 [size, size, C]; at least one.

    Raises:
        TooSmallImage: the short side is below `size`.
        ValueError: `resize` is outside (0, 1].

    Example:
        >>> len(grid_crops(np.zeros((60, 80, 3), np.uint8), 16, resize=0.5))
        2
    """
    if not 0 < resize <= 1:
        raise ValueError(f"resize must be in (0, 1], not {resize}")
    height, width = _checked(image, size)
    resize = max(resize, size / min(height, width))
    new_height, new_width = max(size, round(height * resize)), max(size, round(width * resize))
    if (new_height, new_width) != (height, width):
        image = area_resize(image, (new_width, new_height))
    rows, columns = new_height // size, new_width // size
    top, left = (new_height - rows * size) // 2, (new_width - columns * size) // 2
    return [
        image[y : y + size, x : x + size]
        for y in range(top, top + rows * size, size)
        for x in range(left, left + columns * size, size)
    ]


def _checked(image: np.ndarray, size: int) -> tuple[int, int]:
    height, width = image.shape[:2]
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    if min(height, width) < size:
        raise TooSmallImage(f"{width}×{height} pixels are too small for {size}×{size}")
    return height, width


def area_resize(
    image: np.ndarray,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resizes an image, or a rectangle of it, so that each output pixel is a mean over its area.

    Args:
        image: uint8 [H, W, C].
        size: (width, height) of the result, in pixels.
        box: (left, top, right, bottom) of the rectangle, in pixels, fractions allowed; the whole
            image by default.

    Returns:
        uint8 [height, width, C].

    Example:
        >>> area_resize(np.array([[[0], [90], [30]]], np.uint8), (2, 1)).ravel().tolist()
        [30, 50]
    """
    left, top, right, bottom = box or (0, 0, image.shape[1], image.shape[0])
    rows = slice(max(math.floor(top), 0), min(math.ceil(bottom), image.shape[0]))
    columns = slice(max(math.floor(left), 0), min(math.ceil(right), image.shape[1]))
    part = image[rows, columns]
    down = np.array([top, bottom]) - rows.start
    across = np.array([left, right]) - columns.start
    block = int(min(np.ptp(down) / size[1], np.ptp(across) / size[0]) * 2 / _LARGE_FACTOR)
    if block > 1:
        pixels = part[..., 0] if part.shape[-1] == 1 else part
        reduced = Image.fromarray(np.ascontiguousarray(pixels)).reduce(block)
        part = np.asarray(reduced).reshape(reduced.height, reduced.width, -1)
        down, across = down / block, across / block
    thin = _area_means(part, down, size[1])
    small = _area_means(thin.swapaxes(0, 1), across, size[0])
    return np.rint(np.ascontiguousarray(small.swapaxes(0, 1))).astype(np.uint8)


def _area_means(rows: np.ndarray, span: np.ndarray, count: int) -> np.ndarray:
    """Means of ``rows`` [L, M, C] over ``count`` equal parts of ``span``: [count, M, C]."""
    edges = np.linspace(span[0], span[1], count + 1)
    first = np.floor(edges[:-1]).astype(int)
    # A part touches few rows: adding them one by one beats a matrix product, which for so small a
    # matrix would wake all of the BLAS library's threads besides.
    flat = rows.reshape(len(rows), -1)
    total = np.zeros((count, flat.shape[1]), np.float32)
    weight_sum = np.zeros((count, 1), np.float32)
    for tap in range(int(np.max(np.ceil(edges[1:]) - first))):
        index = first + tap
        inside = np.minimum(edges[1:], index + 1) - np.maximum(edges[:-1], index)
        weight = np.maximum(inside, 0.0).astype(np.float32)[:, None]
        total += weight * flat[np.minimum(index, len(flat) - 1)]
        weight_sum += weight
    return (total / weight_sum).reshape(count, *rows.shape[1:])
