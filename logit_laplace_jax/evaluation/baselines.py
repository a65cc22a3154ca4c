"""What a reconstruction is measured against: three codecs that need no training by gradient.

They give a reader of a PSNR its scale: the constant colour of each crop (no detail at all), the
picture pooled to the token grid (a real-valued colour at every token, so no token budget at all),
and k-means vector quantisation of the same patches with as many codes (the classical codec at
exactly the model's budget). k-means has a code length too, with a logit-Laplace around each centre.
"""

import dataclasses
import io
import math
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logit_laplace_jax import pixel_map, pixel_masses

Images = np.ndarray
"""uint8 [N, H, W, C]."""


def constant_colour(images: Images) -> np.ndarray:
    """Every image as its mean colour: float [N, H, W, C] in [0, 1].

    >>> constant_colour(np.array([[[[0], [255]]]], np.uint8)).ravel().tolist()
    [0.5, 0.5]
    """
    x = images / 255.0
    return np.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape)


def pooled(images: Images, factor: int) -> np.ndarray:
    """Mean of every factor x factor patch, blown up again: float [N, H, W, C] in [0, 1].

    >>> pooled(np.array([[[[0], [255]], [[0], [255]]]], np.uint8), 2).ravel().tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    patches, shape = _patches(images, factor)
    per_pixel = patches.reshape(len(patches), factor * factor, -1)
    flat = np.broadcast_to(per_pixel.mean(axis=1, keepdims=True), per_pixel.shape)
    return _assemble(flat.reshape(patches.shape), shape, factor)


@dataclasses.dataclass(frozen=True)
class Quantiser:
    """k-means on patches, as a codec with a code length: :func:`fit_quantiser` makes it.

    Attributes:
      codebook: float32 [V, f * f * C], the centres, in [0, 1].
      log_scales: float32 [V], ln b of a logit-Laplace around the centre of each code.
      factor: side f of a patch.
    """

    codebook: np.ndarray
    log_scales: np.ndarray
    factor: int

    def reconstruct(self, images: Images) -> np.ndarray:
        """Each patch as its nearest centre: uint8 [N, H, W, C] to float [N, H, W, C] in [0, 1]."""
        patches, shape = _patches(images, self.factor)
        return _assemble(self.codebook[self._nearest(patches)], shape, self.factor)

    def bits_per_dim(self, images: Images) -> np.ndarray:
        """Exact bits per value of each image, float64 [N]: log2 V per patch, then the pixels."""
        patches, shape = _patches(images, self.factor)
        nearest = self._nearest(patches)
        nats = _nats(patches, self.codebook[nearest], self.log_scales[nearest])
        total = nats.reshape(shape[0], -1).sum(1) / math.prod(shape[1:])
        codes = math.log(len(self.codebook)) / patches.shape[1]
        return (total + codes) / math.log(2.0)

    def _nearest(self, patches: np.ndarray) -> np.ndarray:
        from scipy.cluster.vq import vq

        nearest: np.ndarray = vq(patches.astype(np.float32), self.codebook)[0]
        return nearest


_LOG_SCALES = np.arange(-6.0, 1.01, 0.125)
"""Scales to choose from: the best of them is within 0.003 bits per value of the best of all."""


def fit_quantiser(
    images: Images, factor: int, codes: int, seed: int, sample: int = 30_000
) -> Quantiser:
    """Learns centres by k-means (SciPy), and for each the scale under which its patches are short.

    Args:
      images: uint8 [M, H, W, C], for training.
      factor: patch size, the model's downsampling.
      codes: size of the vocabulary.
      seed: of the starting points.
      sample: at most this many patches.

    Raises:
      ValueError: there are fewer patches than codes.
    """
    from scipy.cluster.vq import kmeans2

    rng = np.random.default_rng(seed)
    patches, _ = _patches(images, factor)
    patches = patches[rng.permutation(len(patches))[:sample]].astype(np.float32)
    if len(patches) < codes:
        raise ValueError(f"{len(patches)} training patches cannot give {codes} codes")
    with warnings.catch_warnings():
        # An empty cluster is a code that stays unused: part of the method, not a fault.
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        codebook, _ = kmeans2(patches, codes, minit="points", iter=20, seed=rng)
    quantiser = Quantiser(np.clip(codebook, 0.0, 1.0), np.zeros(codes, np.float32), factor)
    nearest = quantiser._nearest(patches)
    centres = quantiser.codebook[nearest]
    curves = np.zeros((codes, len(_LOG_SCALES)))
    for column, log_scale in enumerate(_LOG_SCALES):
        nats = _nats(patches, centres, np.full(len(patches), log_scale, np.float32))
        # One patch like the average of all stands in where a code has few.
        curves[:, column] = np.bincount(nearest, nats, codes) + nats.mean()
    log_scales = _LOG_SCALES[curves.argmin(1)].astype(np.float32)
    return dataclasses.replace(quantiser, log_scales=log_scales)


@jax.jit
def _sums(pixels: jax.Array, centres: jax.Array, log_scales: jax.Array) -> jax.Array:
    x = pixel_map.map_pixels(centres)
    loc = jnp.log(x) - jnp.log1p(-x)
    return -pixel_masses.pixel_log_prob(pixels, loc, log_scales[:, None]).sum(1)


def _nats(patches: np.ndarray, centres: np.ndarray, log_scales: np.ndarray) -> np.ndarray:
    """Nats of each patch, float64 [N]: logit-Laplace masses around its centre."""
    pixels = np.rint(patches * 255.0).astype(np.uint8)
    return np.asarray(_sums(pixels, centres.astype(np.float32), log_scales), np.float64)


def _patches(images: Images, f: int) -> tuple[np.ndarray, tuple[int, ...]]:
    n, height, width, c = images.shape
    grid = (images / 255.0).reshape(n, height // f, f, width // f, f, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, f * f * c), images.shape


def _assemble(patches: np.ndarray, shape: tuple[int, ...], f: int) -> np.ndarray:
    n, height, width, c = shape
    grid = patches.reshape(n, height // f, width // f, f, f, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def jpeg(image: np.ndarray, bits_per_pixel: float) -> tuple[np.ndarray, float]:
    """An image through JPEG, at the best quality whose file is small enough.

    Args:
      image: uint8 [H, W, C], C 1 or 3.
      bits_per_pixel: of the file at most, header included; where the poorest quality takes more,
        that one is given.

    Returns:
      The decoded image, uint8 [H, W, C], and the bits per pixel that its file takes.

    Example:
      >>> decoded, rate = jpeg(np.full((64, 64, 3), 7, np.uint8), 2.0)
      >>> decoded.shape, rate <= 2.0
      ((64, 64, 3), True)
    """
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    height, width = image.shape[:2]

    def encoded(quality: int) -> io.BytesIO:
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=quality, optimize=True)
        return file

    low, high = 1, 95  # Pillow's range; sizes rise with quality
    while low < high:
        middle = (low + high + 1) // 2
        if 8.0 * encoded(middle).tell() / (height * width) <= bits_per_pixel:
            low = middle
        else:
            high = middle - 1
    file = encoded(low)
    rate = 8.0 * file.tell() / (height * width)
    decoded = np.asarray(Image.open(file)).reshape(image.shape)
    return decoded, rate


def lossless(images: Iterable[Images]) -> dict[str, float]:
    """Bits per value of images as files of their own, headers included: PNG and lossless WebP.

    Args:
      images: uint8 [H, W, C] each, C 1 or 3.

    Returns:
      ``png`` and, where Pillow has it, ``webp``: over all images together.

    Example:
      >>> sorted(lossless([np.zeros((8, 8, 3), np.uint8)]))
      ['png', 'webp']
    """
    from PIL import Image, features

    options: dict[str, dict[str, Any]] = {"png": {"optimize": True}}
    if features.check("webp"):
        options["webp"] = {"lossless": True, "quality": 100, "method": 6}
    sizes, values = dict.fromkeys(options, 0), 0
    for pixels in images:
        values += pixels.size
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        for name, chosen in options.items():
            file = io.BytesIO()
            image.save(file, format=name, **chosen)
            sizes[name] += file.tell()
    return {name: 8.0 * size / values for name, size in sizes.items()}
