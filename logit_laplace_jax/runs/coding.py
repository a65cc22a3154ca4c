"""Images of any size through the hard codes, window by window, so that memory stays bounded."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from logit_laplace_jax.evaluation import metrics
from logit_laplace_jax.likelihoods import Likelihood
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.evaluation import stats_of, tokens_of
from logit_laplace_jax.training.state import TrainState

_CORE = 768
"""Side of the part of a window that counts, in pixels."""


class Coded(NamedTuple):
    """One image through the hard codes.

    Attributes:
      original: uint8 [H, W, C].
      tokens: int32 [h, w].
      rebuilt: float32 [H, W, C] in [0, 1].
      expected: float32 [H, W], the absolute error in grey levels that the predicted distribution,
        and so its scale b, makes one expect, averaged over the channels; None unless asked for.
      psnr: decibels.
      bits_per_dim: exact, of the 8-bit values and of the tokens at log2 V bits each.
    """

    original: np.ndarray
    tokens: np.ndarray
    rebuilt: np.ndarray
    expected: np.ndarray | None
    psnr: float
    bits_per_dim: float


def code(state: TrainState, image: np.ndarray, *, expected: bool = False) -> Coded:
    """Sends an image through the hard codes.

    A large one is coded in windows that overlap by more than the networks see, so the result is
    that of the whole image. One without predicted scales (``scale`` optimal) gets the best scale
    for each window.

    Args:
      state: one copy of a state.
      image: uint8 [H, W, C], sides multiples of the model's downsampling.
      expected: whether to compute the expected error, which visits 255 levels.
    """
    config = state.config
    height, width = image.shape[:2]
    factor = config.model.downsampling
    config.model.check_size(height, width)
    rows, columns = (_windows(side, config.model) for side in (height, width))
    tokens = np.zeros((height // factor, width // factor), np.int32)
    rebuilt = np.zeros(image.shape, np.float32)
    nats, error = np.zeros((2, height, width), np.float32)
    for row, top in rows:
        for column, left in columns:
            window = image[row, column][None]
            parts = jax.device_get(_code(state.ema_params, window, config, expected))
            y = slice(top.start - row.start, top.stop - row.start)
            x = slice(left.start - column.start, left.stop - column.start)
            small = [slice(s.start // factor, s.stop // factor) for s in (top, left, y, x)]
            tokens[small[0], small[1]] = parts[0][0][small[2], small[3]]
            for whole, part in zip((rebuilt, nats, error), parts[1:], strict=True):
                whole[top, left] = part[0][y, x]
    mean_square = metrics.mean_squared_error(
        jnp.asarray(rebuilt[None]), jnp.asarray(image[None] / 255.0)
    )
    token_bits = tokens.size * math.log2(config.model.vocab_size)
    bits = float(nats.sum(dtype=np.float64)) / math.log(2.0) + token_bits
    return Coded(
        image,
        tokens,
        rebuilt,
        error if expected else None,
        float(metrics.psnr(mean_square)[0]),
        bits / image.size,
    )


def _windows(side: int, model: DVAEConfig) -> list[tuple[slice, slice]]:
    """Windows of one size along a side, each with the part of it that counts.

    Windows lie inside the image, so that the networks' padding is where it is for the whole image.
    """
    # Three 3 x 3 convolutions per block at every resolution, and the first, 7 x 7; of the encoder
    # and of the decoder together.
    reach = 2 * 3 * model.n_blk_per_group * (2**model.group_count - 1) + 3
    halo = -(-reach // model.downsampling) * model.downsampling
    core = -(-_CORE // model.downsampling) * model.downsampling
    size = min(side, core + 2 * halo)
    windows = []
    for start in range(0, side, core):
        first = min(max(start - halo, 0), side - size)
        windows.append((slice(first, first + size), slice(start, min(start + core, side))))
    return windows


@partial(jax.jit, static_argnames=("config", "expected"))
def _code(
    params: Any, pixels: Array, config: TrainConfig, expected: bool
) -> tuple[Array, Array, Array, Array]:
    likelihood = config.likelihood.build()
    tokens = tokens_of(params, pixels, config)
    stats = stats_of(params, tokens, config)
    rebuilt = likelihood.reconstruct(stats)
    nats = -likelihood.log_mass(pixels, stats).sum(-1)
    error = expected_error(likelihood, pixels, stats).mean(-1) if expected else jnp.zeros_like(nats)
    return tokens, rebuilt, nats, error


def expected_error(likelihood: Likelihood, pixels: Array, stats: Array) -> Array:
    """E|v − v̂| in grey levels under the predicted distribution: float32 [..., C].

    The cdf below the reconstruction v̂ and its complement above, summed over the levels.

    Args:
      likelihood: the family.
      pixels: uint8 [..., C]; read only where the scale is the pixels' own optimum.
      stats: [..., C · num_stats].
    """
    point = 255.0 * likelihood.reconstruct(stats)

    def visit(total: Array, level: Array) -> tuple[Array, None]:
        _, cdf = likelihood.bin_cdf(jnp.full(pixels.shape, level), stats)
        return total + jnp.where(level < point, cdf, 1.0 - cdf), None

    total, _ = lax.scan(visit, jnp.zeros_like(point), jnp.arange(255, dtype=jnp.uint8))
    return total
