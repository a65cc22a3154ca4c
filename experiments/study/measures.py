"""What a study measures of a run beyond evaluate.py: for its hypotheses, image by image."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy import stats as scipy_stats

from logit_laplace_jax.runs import directory, evaluation
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.evaluation import Evaluator, Rows, both_passes
from logit_laplace_jax.training.state import TrainState

_ON_THE_LINE = {
    "normal": scipy_stats.norm,
    "laplace": scipy_stats.laplace,
    "logistic": scipy_stats.logistic,
}
"""Families in y = 2v - 1 whose density does not end where the pixels do."""

_WINDOW = 5
"""Side of the neighbourhood whose range a reconstruction should not leave."""

IMAGE_MEASURES = ("bits", "psnr", "bits_edges", "bits_flat", "mae_edges", "mae_flat", "overshoot")
"""What is kept of every image: bits per value in all, dB, and so on (see :func:`measure_run`)."""


def study_step(
    state: TrainState, batch: dict[str, Array], key: Array, axis_name: str | None = None
) -> tuple[Rows, dict[str, Array]]:
    """:func:`evaluation.measure_step` with what the hypotheses ask for besides.

    Returns:
      Rows and sums, and: rows ``mass_black``, ``mass_white`` (nats of the values 0 and 255) with
      ``values_black``, ``values_white``; ``outside``, the sum over values of the probability that
      the density gives to what no pixel can be; ``overshoot``, grey levels by which the median
      leaves the original's range in 5 x 5 pixels, summed; ``location``, the largest |μ| in logit
      units. The sum ``error_counts`` int32 [256]: values by absolute error in grey levels.
    """
    rows, sums = evaluation.measure_step(state, batch, key, axis_name)
    p = both_passes(state, batch, key, None)
    likelihood, stats = p.hard
    nats = -likelihood.log_mass(p.pixels, stats)
    each = (1, 2, 3)
    for name, level in (("black", 0), ("white", 255)):
        at = p.pixels == level
        rows[f"mass_{name}"] = jnp.where(at, nats, 0.0).sum(each)
        rows[f"values_{name}"] = at.sum(each).astype(jnp.float32)
    rows["outside"] = _outside(likelihood, stats).sum(each)
    rows["location"] = _largest_location(likelihood, stats)
    median = 255.0 * likelihood.mean_and_median(stats)[1]
    original = p.pixels.astype(jnp.float32)
    window = (1, _WINDOW, _WINDOW, 1)
    highest = lax.reduce_window(original, -jnp.inf, lax.max, window, (1,) * 4, "SAME")
    lowest = lax.reduce_window(original, jnp.inf, lax.min, window, (1,) * 4, "SAME")
    beyond = jnp.maximum(jnp.maximum(median - highest, lowest - median), 0.0)
    rows["overshoot"] = beyond.sum(each)
    error = jnp.abs(jnp.round(median) - original).astype(jnp.int32)
    error = jnp.where(batch["mask"][:, None, None, None] > 0, error, 256)
    sums["error_counts"] = jnp.zeros(256, jnp.int32).at[error.ravel()].add(1, mode="drop")
    return rows, sums


def _outside(likelihood: Any, stats: Array) -> Array:
    family = _ON_THE_LINE.get(likelihood.name)
    if family is None:
        return jnp.zeros_like(likelihood.reconstruct(stats))
    loc, log_scale = likelihood.parameters(stats)
    end = 1.0 + 1.0 / 255.0
    scale = jnp.exp(log_scale)
    outside: Array = family.cdf((-end - loc) / scale) + family.cdf((loc - end) / scale)  # symmetric
    return outside


def _largest_location(likelihood: Any, stats: Array) -> Array:
    if not likelihood.name.startswith("logit_"):
        return jnp.full(len(stats), jnp.nan)
    return jnp.abs(likelihood.location(stats)).max((1, 2, 3))


def summarise(
    rows: dict[str, np.ndarray], sums: dict[str, np.ndarray], config: TrainConfig
) -> dict[str, Any]:
    """:func:`evaluation.measures`, the study's own, and ``images``: lists, a number per image."""
    result = evaluation.measures(rows, sums, config)
    total = math.fsum(rows["values"])
    for name in ("black", "white"):
        count = math.fsum(rows[f"values_{name}"])
        result[f"share_{name}"] = count / total
        if count:
            result[f"bpd_{name}"] = math.fsum(rows[f"mass_{name}"]) / count / math.log(2.0)
    result["outside"] = math.fsum(rows["outside"]) / total
    result["overshoot"] = math.fsum(rows["overshoot"]) / total
    if not np.isnan(rows["location"]).any():
        result["location_mean"] = float(rows["location"].mean())
        result["location_max"] = float(rows["location"].max())
    errors = np.cumsum(sums["error_counts"]) / sums["error_counts"].sum()
    result["error_p999"] = int(np.searchsorted(errors, 0.999))
    bits = rows["values"] * math.log(2.0)
    codes = math.log(config.model.vocab_size) * rows["tokens"]
    columns = {
        "bits": (rows["mass_hard"] + codes) / bits,
        "psnr": rows["psnr_median"],
        "overshoot": rows["overshoot"] / rows["values"],
    }
    with np.errstate(invalid="ignore"):  # an image may have no edge, or nothing else
        for part in ("edges", "flat"):
            count = rows[f"values_{part}"]
            columns[f"bits_{part}"] = rows[f"mass_{part}"] / count / math.log(2.0)
            columns[f"mae_{part}"] = rows[f"absolute_{part}"] / count
    kept = {
        name: [None if math.isnan(v) else float(f"{v:.4g}") for v in columns[name]]
        for name in IMAGE_MEASURES
    }
    return result | {"per_image": kept}


def measure_run(folder: str, images: Any, batch_size: int) -> dict[str, Any]:
    """All measures of a finished run on a data set's held-out images.

    Args:
      folder: the run directory.
      images: a :class:`study.data.Images`.
      batch_size: images at a time.

    Returns:
      :func:`summarise`, with ``group`` in ``per_image``: equal numbers for images of one picture.
    """
    state = directory.load(folder)
    layout = devices.choose("single", batch_size)
    evaluator = Evaluator(layout, state.config, study_step, summarise)
    key = directory.keys(state.config)[2]
    batches = _Batches(images, batch_size)
    result: dict[str, Any] = evaluator(layout.replicate(state), batches, key)
    groups = np.arange(len(images.held_out)) if images.groups is None else images.groups
    numbered = np.unique(groups, return_inverse=True)[1]
    result["per_image"]["group"] = [int(n) for n in numbered]
    return result


class _Batches:
    """Iterable as often as the evaluator likes."""

    def __init__(self, images: Any, size: int):
        self._images, self._size = images, size

    def __iter__(self) -> Any:
        return self._images.batches(self._size)
