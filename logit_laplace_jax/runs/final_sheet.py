"""The sheet at the end of a run: held-out photographs, and where the model expects its errors."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from logit_laplace_jax.evaluation import figures, metrics
from logit_laplace_jax.likelihoods import Likelihood
from logit_laplace_jax.models import bottleneck
from logit_laplace_jax.models.dvae import DVAE
from logit_laplace_jax.pixel_map import map_pixels
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.state import TrainState

_PANEL = 3.3
"""Width of a panel, in inches."""
_DPI = 150


class Coded(NamedTuple):
    """One image through the hard codes.

    Attributes:
      name: of the image.
      original: uint8 [H, W, C].
      tokens: int32 [h, w].
      rebuilt: float32 [H, W, C] in [0, 1].
      expected: float32 [H, W, C], the absolute error in grey levels that the predicted
        distribution, and so its scale b, makes one expect.
      psnr: decibels.
      bits_per_dim: exact, of the 8-bit values and of the tokens at log2 V bits each.
    """

    name: str
    original: np.ndarray
    tokens: np.ndarray
    rebuilt: np.ndarray
    expected: np.ndarray
    psnr: float
    bits_per_dim: float


def coded(state: TrainState, name: str, image: np.ndarray) -> Coded:
    """Sends an image, uint8 [H, W, C] of a size that the model can halve, through the hard codes.

    One without predicted scales (``scale`` optimal) gets the best scale for itself.
    """
    tokens, rebuilt, nats, expected = jax.device_get(
        _code(state.ema_params, jnp.asarray(image[None]), state.config)
    )
    token_bits = tokens.size * math.log2(state.config.model.vocab_size)
    error = metrics.mean_squared_error(rebuilt, image[None] / 255.0)
    return Coded(
        name,
        image,
        tokens[0],
        rebuilt[0],
        expected[0],
        float(metrics.psnr(error)[0]),
        (float(nats) / math.log(2.0) + token_bits) / image.size,
    )


@partial(jax.jit, static_argnames="config")
def _code(params: Any, pixels: Array, config: TrainConfig) -> tuple[Array, Array, Array, Array]:
    likelihood = config.likelihood.build()
    x = map_pixels(pixels, config.likelihood.eps)
    logits: Any = DVAE(config.model).apply({"params": params}, x, method="encode")
    tokens = bottleneck.hard_codes(logits)
    stats: Any = DVAE(config.model).apply({"params": params}, tokens, method="decode_tokens")
    rebuilt = likelihood.reconstruct(stats)
    nats = -likelihood.log_mass(pixels, stats).sum()
    # A scale that is the image's own optimum takes the pixels to be known.
    return tokens, rebuilt, nats, _expected_error(likelihood, pixels, stats, rebuilt)


def _expected_error(likelihood: Likelihood, pixels: Array, stats: Array, rebuilt: Array) -> Array:
    """E|v − v̂| in grey levels: the cdf below v̂ and its complement above, summed over the levels."""
    point = 255.0 * rebuilt

    def visit(total: Array, level: Array) -> tuple[Array, None]:
        at = jnp.full_like(pixels, level)
        _, cdf = likelihood.bin_cdf(at, stats)
        return total + jnp.where(level < point, cdf, 1.0 - cdf), None

    levels = jnp.arange(255, dtype=jnp.uint8)
    total, _ = lax.scan(visit, jnp.zeros_like(point), levels)
    return total


def write(path: Path, rows: Sequence[Coded], title: str) -> None:
    """Draws a row for each image: original, reconstruction, expected and actual error.

    Args:
      path: the PNG, which appears complete or not at all.
      rows: the images.
      title: one line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [row.original.shape[0] / row.original.shape[1] for row in rows]
    width, height = 4 * _PANEL + 0.9, sum(_PANEL * h + 0.42 for h in heights) + 0.45
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    figure.suptitle(title, size=11, weight="bold", parse_math=False)
    grid = figure.subplots(len(rows), 4, squeeze=False, height_ratios=heights)
    for axes, row in zip(grid, rows, strict=True):
        actual = np.abs(255.0 * row.rebuilt - row.original).mean(-1)
        expected = row.expected.mean(-1)
        top = max(float(np.quantile(np.stack([actual, expected]), 0.99)), 1.0)
        tall, wide = row.original.shape[:2]
        axes[0].imshow(figures.to_uint8(row.original), interpolation="nearest")
        axes[0].set_title(f"{row.name}, original, {wide} × {tall}", size=9, parse_math=False)
        axes[1].imshow(figures.to_uint8(row.rebuilt), interpolation="nearest")
        axes[1].set_title(
            f"hard codes: PSNR {row.psnr:.2f} dB, {row.bits_per_dim:.2f} bits/dim", size=9
        )
        names = ("error expected, by the predicted scale b", "actual error")
        for place, values, name in zip(axes[2:], (expected, actual), names, strict=True):
            heat = place.imshow(values, "inferno", vmin=0.0, vmax=top, interpolation="nearest")
            place.set_title(f"{name}: mean {values.mean():.1f}", size=9)
        bar = figure.colorbar(heat, ax=axes, shrink=0.9, pad=0.01, aspect=25)
        bar.set_label("absolute error, grey levels (0…255)", size=8)
        bar.ax.tick_params(labelsize=8)
        for place in axes:
            place.set_axis_off()
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png")
    part.replace(path)
