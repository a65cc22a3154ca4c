"""Evaluation of a state on held-out images: one row an image from the devices, means on the host.

Every number belongs to an image and not to a batch: the relaxation's noise is drawn by a checksum
of the image's pixels, and sums over images are exact (``math.fsum``). So batch size, order and
number of devices change nothing beyond the rounding of float32 inside an image.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from logit_laplace_jax import pixel_map
from logit_laplace_jax.evaluation import codebook, metrics
from logit_laplace_jax.likelihoods import Likelihood
from logit_laplace_jax.models import bottleneck
from logit_laplace_jax.models.dvae import DVAE
from logit_laplace_jax.training import optimal_scale
from logit_laplace_jax.training.config import Config, TrainConfig
from logit_laplace_jax.training.devices import Layout
from logit_laplace_jax.training.state import TrainState
from logit_laplace_jax.training.step import check_batch, forward

Rows = dict[str, Array]
"""Arrays [B] or [B, n], one row per image."""

Size = tuple[int, int]
"""Height and width of an image, without padding."""


class Passes(NamedTuple):
    """What an image becomes on the two ways through the model; the padding is cut off.

    Attributes:
      pixels: uint8 [B, h, w, C], the image.
      tokens: int32 [B, h', w'], the hard codes.
      logits: float32 [B, h', w', V].
      hard, relaxed: likelihood and statistics given the hard codes and the relaxed ones.
    """

    pixels: Array
    tokens: Array
    logits: Array
    hard: tuple[Likelihood, Array]
    relaxed: tuple[Likelihood, Array]


def both_passes(
    state: TrainState, batch: dict[str, Array], key: Array, size: Size | None
) -> Passes:
    """Runs the relaxed and the hard pass, with the averaged parameters.

    Args:
      state: only ``ema_params``, ``step`` (for τ) and ``config`` are read.
      batch: ``{"pixels": uint8 [B, H, W, C], "id": int32 [B]}``; with an optimal scale also
        ``"log_scales"``: float32 [B, 2], ln b given the hard and the relaxed codes.
      key: random key of the relaxation's noise.
      size: what of an image counts, from the top left; None: all.
    """
    config, pixels = state.config, batch["pixels"]
    check_batch(pixels, config)
    temperature = config.temperature(state.step)
    out = forward(state.ema_params, pixels, temperature, key, config, batch["id"])
    tokens = bottleneck.hard_codes(out.logits)
    height, width = size or pixels.shape[1:3]
    likelihood = config.likelihood.build()

    def settled(stats: Array, column: int) -> tuple[Likelihood, Array]:
        stats = stats[:, :height, :width]
        if "log_scales" not in batch:
            return likelihood, stats
        return optimal_scale.at_log_scale(likelihood, stats, batch["log_scales"][:, column])

    return Passes(
        pixels[:, :height, :width],
        tokens,
        out.logits,
        settled(stats_of(state.ema_params, tokens, config), 0),
        settled(out.stats, 1),
    )


def basic_rows(p: Passes) -> Rows:
    """Sums over an image's values (``nll_*``, ``mass_*`` in nats, ``floor``) and tokens (``kl``).

    Also ``values`` and ``tokens``, how many there are, and ``psnr`` and ``psnr_relaxed`` (decibels)
    of the likelihood's own point estimate.
    """
    original = p.pixels.astype(jnp.float32) / 255.0
    rows: Rows = {}
    for suffix, (likelihood, stats) in (("hard", p.hard), ("relaxed", p.relaxed)):
        rows[f"nll_{suffix}"] = _total(likelihood.loss(p.pixels, stats))
        rows[f"mass_{suffix}"] = -_total(likelihood.log_mass(p.pixels, stats))
        error = metrics.mean_squared_error(likelihood.reconstruct(stats), original)
        rows["psnr" if suffix == "hard" else "psnr_relaxed"] = metrics.psnr(error)
    likelihood, stats = p.hard
    count = jnp.ones(len(p.pixels), jnp.float32)
    return rows | {
        "kl": _total(bottleneck.kl_to_uniform(p.logits)),
        "floor": _total(likelihood.at_floor(stats).astype(jnp.float32)),
        "values": count * math.prod(p.pixels.shape[1:]),
        "tokens": count * math.prod(p.tokens.shape[1:]),
    }


def eval_step(
    state: TrainState,
    batch: dict[str, Array],
    key: Array,
    axis_name: str | None = None,
    size: Size | None = None,
) -> tuple[Rows, dict[str, Array]]:
    """The measures that training watches.

    Args:
      state: the state.
      batch: as in :func:`both_passes`, with ``"mask"`` float32 [B]: 0 on rows that only fill up.
      key: random key, the same for all batches.
      axis_name: the mapped axis that the batch is spread over, or None.
      size: what of an image counts; None: all.

    Returns:
      :func:`basic_rows` and ``mask`` of the global batch, and ``code_counts`` int32 [vocab_size],
      summed.
    """
    passes = both_passes(state, batch, key, size)
    counts = codebook.code_counts(passes.tokens, batch["mask"], state.config.model.vocab_size)
    rows = basic_rows(passes) | {"mask": batch["mask"]}
    return gathered(rows, {"code_counts": counts}, axis_name)


def scale_step(
    state: TrainState,
    batch: dict[str, Array],
    key: Array,
    axis_name: str | None = None,
    size: Size | None = None,
) -> tuple[Rows, dict[str, Array]]:
    """The moments that an optimal scale is the mean of: ``hard``, ``relaxed``, with ``values``."""
    p = both_passes(state, batch, key, size)
    rows = {
        name: cast(Any, likelihood).optimal_scale_moment(p.pixels, stats)
        for name, (likelihood, stats) in (("hard", p.hard), ("relaxed", p.relaxed))
    }
    rows["values"] = jnp.full(len(p.pixels), math.prod(p.pixels.shape[1:]), jnp.float32)
    rows["mask"] = batch["mask"]
    return gathered(rows, {}, axis_name)


def gathered(
    rows: Rows, sums: dict[str, Array], axis_name: str | None
) -> tuple[Rows, dict[str, Array]]:
    """The rows of all devices, and the sums over them."""
    if axis_name is None:
        return rows, sums
    return lax.all_gather(rows, axis_name, tiled=True), lax.psum(sums, axis_name)


class Evaluator:
    """Evaluates states of one configuration; compiled once a kind of step and image size.

    Args:
      layout: the layout of the states.
      config: the run's configuration.
      step: :func:`eval_step`, or one that returns more of the same kind.
      summarise: makes the result of all rows, all sums and the configuration.
    """

    def __init__(
        self,
        layout: Layout,
        config: Config,
        step: Callable[..., Any] = eval_step,
        summarise: Callable[..., dict[str, Any]] | None = None,
    ):
        self._summarise: Callable[..., dict[str, Any]] = summarise or summary
        self._layout = layout
        self._config = config
        self._likelihood = config.likelihood.build() if isinstance(config, TrainConfig) else None
        self._step = step
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, state: Any, batches: Iterable[dict[str, Any]], key: Array) -> dict[str, Any]:
        """Means over all images of ``batches``.

        Args:
          state: the replicated state.
          batches: masked batches with ``id`` (and ``size``, if images are padded); iterated twice
            where the scale is the evaluated images' own optimum.
          key: key of the noise.

        Returns:
          What ``summarise`` makes of it, :func:`summary` by default; and ``optimal_scale``, b given
          the hard codes, where the scale is the images' own optimum.

        Raises:
          ValueError: there is no image.
        """
        log_scales = None
        likelihood = self._likelihood
        if likelihood is not None and optimal_scale.is_optimal(likelihood):
            rows, _ = self._collect(scale_step, state, batches, key, None)
            values = math.fsum(rows["values"])
            means = [
                math.fsum(rows[name] * rows["values"]) / values for name in ("hard", "relaxed")
            ]
            log_scales = np.asarray(
                optimal_scale.log_scale_of(likelihood, jnp.asarray(means)), np.float32
            )
        rows, sums = self._collect(self._step, state, batches, key, log_scales)
        result = self._summarise(rows, sums, self._config)
        if log_scales is not None:
            result["optimal_scale"] = float(np.exp(log_scales[0]))
        return result

    def _collect(
        self,
        step: Callable[..., Any],
        state: Any,
        batches: Iterable[dict[str, Any]],
        key: Array,
        log_scales: np.ndarray | None,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        parts: list[dict[str, np.ndarray]] = []
        sums: dict[str, Any] = {}
        for batch in batches:
            arrays = {k: v for k, v in batch.items() if isinstance(v, np.ndarray)}
            if log_scales is not None:
                arrays["log_scales"] = np.tile(log_scales, (len(arrays["mask"]), 1))
            compiled = self._compile(step, batch.get("size"))
            output = compiled(state, self._layout.shard(arrays), key)
            rows, more = jax.device_get(self._layout.first(output))
            kept = rows.pop("mask") > 0  # of all processes' rows
            parts.append({k: v[kept].astype(np.float64) for k, v in rows.items()})
            for name, value in more.items():
                sums[name] = sums.get(name, 0) + value.astype(np.float64)
        if not any(len(part["values"]) for part in parts):
            raise ValueError("nothing to evaluate: the held-out split has no usable image")
        joined = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
        return joined, sums

    def _compile(self, step: Callable[..., Any], size: Size | None) -> Callable[..., Any]:
        if (step, size) not in self._compiled:
            sized = step if size is None else partial(step, size=size)
            self._compiled[step, size] = self._layout.compile(sized)
        return self._compiled[step, size]


def summary(
    rows: dict[str, np.ndarray], sums: dict[str, np.ndarray], config: TrainConfig
) -> dict[str, Any]:
    """What the rows and sums of all images amount to.

    Args:
      rows: float64 [N] each, as of :func:`basic_rows`.
      sums: ``code_counts``.
      config: the run's configuration.

    Returns:
      ``nll_hard``, ``nll_relaxed``: nats per value of the likelihood's own density.
      ``bpd_hard_pixels``: exact bits per value of the 8-bit pixels given the hard codes;
      ``bpd_hard_codes``: log2 V bits per token, spread over the values; ``bpd_hard``: their sum,
      the length of a code that sends the tokens and then the pixels. ``bpd_relaxed_pixels``,
      ``bpd_relaxed_codes`` (the KL) and ``bpd_relaxed``: the same under the relaxation, as it is
      trained; ``bpd_gap`` = bpd_relaxed_pixels - bpd_hard_pixels.
      ``kl``: nats per token. ``elbo_relaxed``, ``elbo_hard``: minus nll and code cost, nats per
      value.
      ``psnr``, ``psnr_relaxed``: mean decibels. ``floor_share``, ``code_usage``: shares.
      ``code_perplexity``. ``images``: how many.
    """
    values, tokens = math.fsum(rows["values"]), math.fsum(rows["tokens"])

    def a_value(name: str) -> float:
        return math.fsum(rows[name]) / values

    tokens_per_value, bits = tokens / values, 1.0 / math.log(2.0)
    kl = math.fsum(rows["kl"]) / tokens
    code_cost = {"hard": math.log(config.model.vocab_size), "relaxed": kl}
    result: dict[str, Any] = {"kl": kl, "floor_share": a_value("floor")}
    for name, cost in code_cost.items():
        nll = a_value(f"nll_{name}")
        result[f"nll_{name}"] = nll
        result[f"elbo_{name}"] = -(nll + tokens_per_value * cost)
        result[f"bpd_{name}_pixels"] = bits * a_value(f"mass_{name}")
        result[f"bpd_{name}_codes"] = bits * tokens_per_value * cost
        result[f"bpd_{name}"] = result[f"bpd_{name}_pixels"] + result[f"bpd_{name}_codes"]
    result["bpd_gap"] = result["bpd_relaxed_pixels"] - result["bpd_hard_pixels"]
    images = len(rows["values"])
    for name in ("psnr", "psnr_relaxed"):
        result[name] = math.fsum(rows[name]) / images
    counts = sums["code_counts"]
    return result | {
        "code_usage": codebook.usage(counts),
        "code_perplexity": codebook.perplexity(counts),
        "images": float(images),
    }


def _total(values: Array) -> Array:
    """Sum over all but the first axis."""
    return values.sum(axis=tuple(range(1, values.ndim)))


def tokens_of(params: Any, pixels: Array, config: TrainConfig) -> Array:
    """The hard codes of images: uint8 [B, H, W, C] to int32 [B, h, w]."""
    x = pixel_map.map_pixels(pixels, config.likelihood.eps)
    logits = cast(Array, DVAE(config.model).apply({"params": params}, x, method="encode"))
    return bottleneck.hard_codes(logits)


def stats_of(params: Any, tokens: Array, config: TrainConfig) -> Array:
    """The decoder's statistics given hard codes: int [B, h, w] to [B, H, W, C · num_stats]."""
    stats = DVAE(config.model).apply({"params": params}, tokens, method="decode_tokens")
    return cast(Array, stats)


@partial(jax.jit, static_argnames=("config",))
def _reconstruct(params: Any, pixels: Array, config: TrainConfig) -> Array:
    stats = stats_of(params, tokens_of(params, pixels, config), config)
    return config.likelihood.build().reconstruct(stats)


def reconstruct(state: TrainState, pixels: ArrayLike) -> Array:
    """Images through the hard codes, with the averaged parameters.

    Args:
      state: one copy of a state.
      pixels: uint8 [B, H, W, C], any size that the model can halve often enough.

    Returns:
      float32 [B, H, W, C] in [0, 1].
    """
    pixels = jnp.asarray(pixels)
    check_batch(pixels, state.config)
    return _reconstruct(state.ema_params, pixels, state.config)
