"""What a reconstruction is measured against: three codecs that need no training by gradient.

They give a reader of a PSNR its scale: the constant colour of each crop (no detail at all), the
picture pooled to the token grid (a real-valued colour at every token, so no token budget at all),
and k-means vector quantisation of the same patches with as many codes (the classical codec at
exactly the model's budget).
"""

import math
import warnings
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from logit_laplace_jax import pixel_map
from logit_laplace_jax.pixel_masses import pixel_log_prob

Images = np.ndarray
"""uint8 [N, H, W, C]."""


_LEAST_SCALE = 0.01
"""Smallest b of a code: about half of a grey level, where a code's training patches are equal."""


class Quantised(NamedTuple):
    """Images through a codebook.

    Attributes:
      images: float [N, H, W, C] in [0, 1].
      bits_per_dim: length of a code that sends the codes at log2 K bits each and then the 8-bit
        values by logit-Laplace distributions about the reconstruction, with one scale b for each
        code: the best one for the training patches.
    """

    images: np.ndarray
    bits_per_dim: float


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


def vector_quantised(
    images: Images, train_images: Images, factor: int, codes: int, seed: int, sample: int = 30_000
) -> Quantised:
    """k-means (SciPy) on training patches; each patch becomes its nearest code.

    Args:
      images: uint8 [N, H, W, C], sides multiples of ``factor``.
      train_images: uint8 [M, H', W', C], where the codes are learnt.
      factor: patch size, the model's downsampling.
      codes: size of the vocabulary.
      seed: of the starting points.
      sample: at most this many training patches.

    Returns:
      The images as coded, and the length of the code.

    Raises:
      ValueError: there are fewer training patches than codes.
    """
    from scipy.cluster.vq import kmeans2, vq

    rng = np.random.default_rng(seed)
    train, _ = _patches(train_images, factor)
    train = train[rng.permutation(len(train))[:sample]].astype(np.float32)
    if len(train) < codes:
        raise ValueError(f"{len(train)} training patches cannot give {codes} codes")
    with warnings.catch_warnings():
        # An empty cluster is a code that stays unused: part of the method, not a fault.
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        codebook, _ = kmeans2(train, codes, minit="points", iter=20, seed=rng)
    codebook = np.clip(codebook, 0.0, 1.0)
    # Maximum likelihood for each code: b is the mean distance in logit space.
    at, _ = vq(train, codebook)
    distance = np.abs(_logit(train) - _logit(codebook)[at]).mean(axis=1)
    counts = np.bincount(at, minlength=codes)
    sums = np.bincount(at, weights=distance, minlength=codes)
    scales = np.where(counts > 0, sums / np.maximum(counts, 1), distance.mean())
    patches, shape = _patches(images, factor)
    nearest, _ = vq(patches.astype(np.float32), codebook)
    log_scale = np.log(np.maximum(scales, _LEAST_SCALE))[nearest]
    levels = jnp.asarray(np.rint(patches * 255.0).astype(np.uint8))
    nats = -pixel_log_prob(levels, jnp.asarray(_logit(codebook)[nearest]), log_scale[:, None])
    bits = float(nats.mean()) / math.log(2.0) + math.log2(codes) / patches.shape[1]
    return Quantised(_assemble(codebook[nearest], shape, factor), bits)


def _logit(values: np.ndarray) -> np.ndarray:
    x = np.asarray(pixel_map.map_pixels(jnp.asarray(values, jnp.float32)), np.float64)
    return np.log(x) - np.log1p(-x)


def _patches(images: Images, f: int) -> tuple[np.ndarray, tuple[int, ...]]:
    n, height, width, c = images.shape
    grid = (images / 255.0).reshape(n, height // f, f, width // f, f, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, f * f * c), images.shape


def _assemble(patches: np.ndarray, shape: tuple[int, ...], f: int) -> np.ndarray:
    n, height, width, c = shape
    grid = patches.reshape(n, height // f, width // f, f, f, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(shape)
