"""Per-image measures of a reconstruction. Images are [..., H, W, C] in [0, 1].

SSIM is computed here and not by ``dm_pix.ssim``, which the tests keep as a second oracle: MS-SSIM
needs the contrast-structure term by itself; dm_pix takes its variances as E[a²] − E[a]² of the raw
values, which costs 5e-5 of SSIM on bright flat pictures in float32 (here 1e-7, since the values
are centred first; 7e-6 where flat white meets flat black); and its convolution is five to eight
times slower on CPU.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_SMALLEST_MSE = 1e-10
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, finest first (Wang, Simoncelli and Bovik 2003, section 3.2)."""


def mean_squared_error(a: Array, b: Array) -> Array:
    """Mean squared difference of each image: [B, H, W, C] twice to float32 [B].

    >>> mean_squared_error(jnp.zeros((2, 4, 4, 3)), jnp.full((2, 4, 4, 3), 0.5)).tolist()
    [0.25, 0.25]
    """
    chex.assert_equal_shape([a, b])
    return jnp.mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)), axis=(-3, -2, -1))


def mean_absolute_error(a: Array, b: Array) -> Array:
    """Mean absolute difference of each image in grey levels, 0 to 255: [..., H, W, C] to [...].

    >>> mean_absolute_error(jnp.zeros((2, 4, 4, 3)), jnp.full((2, 4, 4, 3), 0.5)).tolist()
    [127.5, 127.5]
    """
    a, b = _images(a, b)
    return 255.0 * jnp.mean(jnp.abs(a - b), axis=(-3, -2, -1))


def psnr(mse: Array) -> Array:
    """Peak signal-to-noise ratio in decibels for a peak of 1: -10 log10 mse.

    An image reproduced to better than 1e-10 counts as 100 dB, so that a mean stays finite.

    >>> [round(float(value), 3) for value in psnr(jnp.array([0.01, 0.0]))]
    [20.0, 100.0]
    """
    return -10.0 * jnp.log10(jnp.maximum(mse, _SMALLEST_MSE))


def masked_mean(values: Array, mask: Array) -> tuple[Array, Array]:
    """The two halves of a mean over chosen pixels of each image: its sum and its count.

    They stay apart so that sums of many batches can be divided once, and because an image may
    have no such pixel. What is masked out may be anything, NaN too.

    Args:
      values: float [B, H, W, C].
      mask: bool [B, H, W], true where all C values count.

    Returns:
      The sum, float32 [B], and the number of values (not pixels), int32 [B].

    >>> total, count = masked_mean(jnp.full((1, 1, 2, 3), 0.5), jnp.array([[[True, False]]]))
    >>> total.tolist(), count.tolist()
    ([1.5], [3])
    """
    chex.assert_rank(values, 4)
    chex.assert_shape(mask, values.shape[:-1])
    chex.assert_type(mask, bool)
    chosen = jnp.where(mask[..., None], values.astype(jnp.float32), 0.0)
    pixels = jnp.sum(mask, axis=(-2, -1), dtype=jnp.int32)
    return jnp.sum(chosen, axis=(-3, -2, -1)), pixels * values.shape[-1]


def ssim_window(height: int, width: int) -> int:
    """Side of SSIM's window: 11, or the largest odd number that fits into a smaller image.

    >>> ssim_window(32, 32), ssim_window(8, 32)
    (11, 7)
    """
    side = min(_WINDOW, height, width)
    return side - 1 + side % 2


@jax.jit
def ssim(a: Array, b: Array) -> Array:
    """Structural similarity of each pair of images, in [-1, 1]; 1 for equal ones.

    The mean over pixels and channels of

        (2 μ_a μ_b + C₁) (2 σ_ab + C₂) / ((μ_a² + μ_b² + C₁) (σ_a² + σ_b² + C₂)),

    C₁ = 0.01², C₂ = 0.03², where means and population (co)variances are taken in an 11 x 11
    Gaussian window of σ = 1.5, and only windows inside of the image count (Wang, Bovik, Sheikh
    and Simoncelli 2004, section III.B). The original is defined on grey; colour channels count
    equally here, as in scikit-image and TensorFlow.

    An image with a side below 11 is measured with the same Gaussian cut to a smaller window
    (:func:`ssim_window`); such values compare only with others of the same image size.

    Args:
      a: float [..., H, W, C] in [0, 1].
      b: of the same shape. The measure is symmetric.

    Returns:
      float32 [...].

    >>> image = jnp.linspace(0.0, 1.0, 256).reshape(1, 16, 16, 1)
    >>> print([f"{float(ssim(image, other)[0]):.4f}" for other in (image, 0.5 * image)])
    ['1.0000', '0.6521']
    """
    a, b = _images(a, b)
    luminance, structure = _similarity(a, b, ssim_window(*a.shape[-3:-1]))
    return jnp.mean(luminance * structure, axis=(-3, -2, -1))


def ms_ssim_scales(height: int, width: int) -> int:
    """How many scales MS-SSIM uses: five where the smaller side exceeds 160 px, at least one.

    As many as keep both sides at the window's 11 px, each scale having half the pixels a side
    (rounded up) of the one before.

    >>> [ms_ssim_scales(side, side) for side in (8, 32, 64, 160, 161, 256)]
    [1, 2, 3, 4, 5, 5]
    """
    scales, side = 1, min(height, width)
    while scales < len(MS_SSIM_WEIGHTS) and -(-side // 2) >= _WINDOW:
        scales, side = scales + 1, -(-side // 2)
    return scales


@jax.jit
def ms_ssim(a: Array, b: Array) -> Array:
    """Multi-scale structural similarity of each pair of images, in [0, 1]; 1 for equal ones.

    The product over the scales of the mean contrast-structure term, on the coarsest scale of the
    mean SSIM, each to the power of :data:`MS_SSIM_WEIGHTS`, a channel; then the mean of the
    channels (Wang, Simoncelli and Bovik 2003, equation 7). Between scales, 2 x 2 pixels become
    their mean; an odd side repeats its last row or column, as in the authors' code.

    A negative mean has no real power. It counts as 0, as in TensorFlow and pytorch-msssim, so that
    one scale with reversed structure makes the whole 0.

    Images too small for five scales use the finest M = :func:`ms_ssim_scales` of them, the weights
    divided by their sum. Such values compare only at the same M; at M = 1 this is :func:`ssim`
    with each channel's negative mean counted as 0.

    Args:
      a: float [..., H, W, C] in [0, 1].
      b: of the same shape. The measure is symmetric.

    Returns:
      float32 [...].

    >>> image = jnp.linspace(0.0, 1.0, 1024).reshape(1, 32, 32, 1)
    >>> print([f"{float(ms_ssim(image, other)[0]):.4f}" for other in (image, 0.5 * image)])
    ['1.0000', '0.6760']
    """
    a, b = _images(a, b)
    height, width = a.shape[-3:-1]
    window, scales = ssim_window(height, width), ms_ssim_scales(height, width)
    weights = MS_SSIM_WEIGHTS[:scales]
    # The five sum to 1.0001 as published, and stay so: other implementations keep them too.
    norm = 1.0 if scales == len(MS_SSIM_WEIGHTS) else sum(weights)
    product = jnp.ones((*a.shape[:-3], a.shape[-1]), jnp.float32)
    for scale, weight in enumerate(weights, 1):
        luminance, structure = _similarity(a, b, window)
        term = structure if scale < scales else luminance * structure
        product *= jnp.maximum(jnp.mean(term, axis=(-3, -2)), 0.0) ** (weight / norm)
        a, b = _halve(a), _halve(b)
    return jnp.mean(product, axis=-1)


def _images(a: Array, b: Array) -> tuple[Array, Array]:
    chex.assert_equal_shape([a, b])
    chex.assert_type([a, b], float)
    if a.ndim < 3:
        raise AssertionError(f"images must be [..., H, W, C], not of shape {a.shape}")
    return a.astype(jnp.float32), b.astype(jnp.float32)


def _similarity(a: Array, b: Array, window: int) -> tuple[Array, Array]:
    """Luminance and contrast-structure terms of each window: [..., H', W', C] each."""
    centre_a = jnp.mean(a, axis=(-3, -2), keepdims=True)
    centre_b = jnp.mean(b, axis=(-3, -2), keepdims=True)
    # A shift leaves (co)variances alone and takes their cancellation in float32 away.
    a, b = a - centre_a, b - centre_b
    local_a, local_b = _blur(a, window), _blur(b, window)
    variances = _blur(a * a + b * b, window) - local_a * local_a - local_b * local_b
    covariance = _blur(a * b, window) - local_a * local_b
    mean_a, mean_b = local_a + centre_a, local_b + centre_b
    luminance = (2.0 * mean_a * mean_b + _C1) / (mean_a * mean_a + mean_b * mean_b + _C1)
    return luminance, (2.0 * covariance + _C2) / (variances + _C2)


def _blur(x: Array, window: int) -> Array:
    """Gaussian mean in each window x window inside of [..., H, W, C]."""
    # Two banded matrices: on CPU twice as fast as sums of shifted copies at 256 px.
    rows, columns = (_band(side, window) for side in x.shape[-3:-1])
    exact = lax.Precision.HIGHEST  # TPUs and TF32 would round the pixels to 8 or 11 bits.
    return jnp.einsum("...hwc,hi,wj->...ijc", x, rows, columns, precision=exact)


def _band(side: int, window: int) -> Array:
    """[side, side - window + 1], each column a normalised Gaussian one row further down."""
    offset = np.arange(side)[:, None] - np.arange(side - window + 1)
    weights = np.exp(-0.5 * ((offset - window // 2) / _SIGMA) ** 2)
    weights = np.where((offset >= 0) & (offset < window), weights, 0.0)
    return jnp.asarray(weights / weights.sum(axis=0), jnp.float32)


def _halve(x: Array) -> Array:
    height, width = x.shape[-3:-1]
    padding = [(0, 0)] * (x.ndim - 3) + [(0, height % 2), (0, width % 2), (0, 0)]
    x = jnp.pad(x, padding, mode="edge")
    shape = (*x.shape[:-3], x.shape[-3] // 2, 2, x.shape[-2] // 2, 2, x.shape[-1])
    return jnp.mean(x.reshape(shape), axis=(-4, -2))
