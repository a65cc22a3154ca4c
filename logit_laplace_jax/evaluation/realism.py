"""Do images look real? Distances between two sets of images that need no downloaded weights.

Both compare distributions, so neither set is paired with the other. Images are float [N, H, W, C]
in [0, 1]; everything runs in NumPy and SciPy on the host.
"""

import numpy as np

_BLUR = np.array([1.0, 4.0, 6.0, 4.0, 1.0], np.float32) / 16.0
"""Burt and Adelson's kernel (1983)."""

_PATCH = 7
"""Side of a patch, as in Karras et al."""

SMALLEST = 8
"""Least side of a pyramid's level: a patch fits in."""


def laplacian_pyramid(images: np.ndarray) -> list[np.ndarray]:
    """Band-pass levels from fine to coarse; the last is what remains, low frequencies.

    Args:
      images: float [N, H, W, C], of any height and width.

    Returns:
      float32 arrays whose sides halve (rounded up) from level to level, as long as they do not fall
      below :data:`SMALLEST`.

    >>> [level.shape for level in laplacian_pyramid(np.zeros((1, 32, 32, 3)))]
    [(1, 32, 32, 3), (1, 16, 16, 3), (1, 8, 8, 3)]

    Source: Burt and Adelson 1983.
    """
    levels, rest = [], np.asarray(images, np.float32)
    while min(rest.shape[1:3]) >= 2 * SMALLEST - 1:
        coarse = _blurred(rest)[:, ::2, ::2]
        spread = np.zeros_like(rest)
        spread[:, ::2, ::2] = 4.0 * coarse
        levels.append(rest - _blurred(spread))
        rest = coarse
    return [*levels, rest]


def _blurred(images: np.ndarray) -> np.ndarray:
    from scipy.ndimage import convolve1d

    rows = convolve1d(images, _BLUR, axis=1, mode="mirror")
    blurred: np.ndarray = convolve1d(rows, _BLUR, axis=2, mode="mirror")
    return blurred


def sliced_wasserstein(
    real: np.ndarray,
    images: np.ndarray,
    rng: np.random.Generator,
    patches: int = 64,
    directions: int = 256,
) -> list[float]:
    """How far the patches of two sets of images are apart, for every level of their pyramids.

    7 x 7 patches are taken at random places of every level, divided by the standard deviation of
    the real ones in each channel, projected on random directions, and sorted: the mean distance
    between the sorted projections is the Wasserstein-1 distance, averaged over directions.

    Args:
      real: float [N, H, W, C] in [0, 1].
      images: the same shape.
      rng: the source of places and directions.
      patches: of each image on each level.
      directions: number of projections.

    Returns:
      A distance per level from fine to coarse, in standard deviations of the real patches' values;
      0 for equal distributions, up to the noise of a finite number, which is not nothing (0.02 on
      average for 1,024 images of CIFAR-10): compare with that of another set of real images.

    >>> x = np.random.default_rng(0).random((8, 16, 16, 1))
    >>> sliced_wasserstein(x, x + 1.0, np.random.default_rng(1))[-1] > 1.0
    True

    Source: Karras et al. 2018 (Progressive Growing of GANs), section 5; there each set is divided
    by its own standard deviation, and its mean taken off, which hides errors of contrast and
    brightness.
    """
    if real.shape != images.shape:
        raise ValueError(f"sets of one shape are compared, got {real.shape} and {images.shape}")
    distances = []
    for level, other in zip(laplacian_pyramid(real), laplacian_pyramid(images), strict=True):
        channels = level.shape[-1]
        std = level.std(axis=(0, 1, 2)) + np.finfo(np.float32).tiny
        aim = rng.standard_normal((_PATCH * _PATCH * channels, directions), np.float32)
        aim /= np.linalg.norm(aim, axis=0)
        ends = [np.sort(_patches(x / std, patches, rng) @ aim, axis=0) for x in (level, other)]
        distances.append(float(np.abs(ends[0] - ends[1]).mean()))
    return distances


def _patches(level: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many patches of each image, at random places: float32 [N count, 49 C]."""
    windows = np.lib.stride_tricks.sliding_window_view(level, (_PATCH, _PATCH), (1, 2))
    number, height, width = windows.shape[:3]
    image = np.repeat(np.arange(number), count)
    top = rng.integers(height, size=len(image))
    left = rng.integers(width, size=len(image))
    taken: np.ndarray = windows[image, top, left].reshape(len(image), -1)
    return taken


def power_spectrum(images: np.ndarray) -> np.ndarray:
    """Mean power by spatial frequency: float64 [S // 2], at 1, 2, ... cycles per image.

    Of the mean over channels, less its own mean and under a Hann window in both directions;
    averaged over the ring of half a cycle to either side, and over images, in decibels.

    Args:
      images: float [N, S, S, C] in [0, 1].

    >>> x = np.sin(2 * np.pi * 4 * np.arange(32) / 32) * np.ones((1, 32, 1)) + 0.5
    >>> int(power_spectrum(x[..., None]).argmax()) + 1  # cycles per image
    4
    """
    grey = images.mean(axis=-1, dtype=np.float64)
    size = grey.shape[1]
    window = np.hanning(size + 2)[1:-1]
    centred = (grey - grey.mean(axis=(1, 2), keepdims=True)) * np.outer(window, window)
    power = (np.abs(np.fft.fft2(centred)) ** 2).mean(axis=0)
    cycles = np.fft.fftfreq(size, 1 / size)
    ring = np.round(np.hypot(cycles[:, None], cycles[None])).astype(int)
    total = np.bincount(ring.ravel(), power.ravel())
    mean = (total / np.bincount(ring.ravel()))[1 : size // 2 + 1]
    # Far below a single grey level in a single pixel: an image without contrast has no -inf.
    return 10.0 * np.log10(mean + 1e-12)


def nearest(images: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of other images by mean squared difference of the pixels.

    Args:
      images: float [N, H, W, C].
      among: float [M, H, W, C].

    Returns:
      int [N], which of ``among``; float32 [N], the root mean squared difference.

    >>> others = np.array([1.0, 0.0, 2.0])[:, None, None, None]
    >>> which, distance = nearest(np.zeros((1, 1, 1, 1)), others)
    >>> int(which[0]), float(distance[0])
    (1, 0.0)
    """
    x = images.reshape(len(images), -1).astype(np.float32)
    y = among.reshape(len(among), -1).astype(np.float32)
    squared = (x * x).sum(1)[:, None] - 2.0 * x @ y.T + (y * y).sum(1)
    which = squared.argmin(axis=1)
    return which, np.sqrt(np.square(x - y[which]).mean(axis=1))
