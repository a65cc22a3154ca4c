"""Evaluation of a state on held-out crops: sums on the devices, means on the host."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from logit_laplace_jax import pixels as pixel_maps
from logit_laplace_jax.evaluation import codebook, metrics
from logit_laplace_jax.models import bottleneck
from logit_laplace_jax.models.dvae import DVAE
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.devices import Layout
from logit_laplace_jax.training.state import TrainState
from logit_laplace_jax.training.step import check_batch, forward, global_indices


def eval_step(
    state: TrainState, batch: dict[str, Array], key: Array, axis_name: str | None = None
) -> dict[str, Array]:
    """Sums over a batch, with the averaged parameters.

    Args:
      state: only ``ema_params``, ``step`` (for τ) and ``config`` are read.
      batch: ``{"pixels": uint8 [B, H, W, C], "mask": float32 [B]}``; images of mask 0 do not count.
      key: random key of the relaxation's noise in this batch.
      axis_name: the mapped axis to sum over, or None.

    Returns:
      Sums over the images of each image's ``nll_relaxed``, ``nll_hard`` (nats a value), ``kl``
      (nats a token), ``psnr_relaxed``, ``psnr`` (decibels), ``floor_share``; ``images``; and
      ``code_counts`` int32 [vocab_size] of the hard codes.
    """
    config, pixels, mask = state.config, batch["pixels"], batch["mask"]
    check_batch(pixels, config)
    likelihood = config.build_likelihood()
    indices = global_indices(pixels.shape[0], axis_name)
    temperature = config.temperature(state.step)
    relaxed = forward(state.ema_params, pixels, temperature, key, config, indices)
    tokens = bottleneck.hard_codes(relaxed.logits)
    hard_stats = _decode(state.ema_params, tokens, config)
    original = pixels.astype(jnp.float32) / 255.0

    def image_psnr(stats: Array) -> Array:
        return metrics.psnr(metrics.mean_squared_error(likelihood.reconstruct(stats), original))

    per_image = {
        "nll_relaxed": likelihood.loss(pixels, relaxed.stats).mean(axis=(1, 2, 3)),
        "nll_hard": likelihood.loss(pixels, hard_stats).mean(axis=(1, 2, 3)),
        "kl": bottleneck.kl_to_uniform(relaxed.logits).mean(axis=(1, 2)),
        "psnr_relaxed": image_psnr(relaxed.stats),
        "psnr": image_psnr(hard_stats),
        "floor_share": likelihood.at_floor(hard_stats).mean(axis=(1, 2, 3), dtype=jnp.float32),
        "images": jnp.ones_like(mask),
    }
    # where, not a product: a padding image may hold anything.
    sums = {name: jnp.where(mask > 0, value, 0.0).sum() for name, value in per_image.items()}
    sums["code_counts"] = codebook.code_counts(tokens, mask, config.model.vocab_size)
    return sums if axis_name is None else lax.psum(sums, axis_name)


def evaluate(
    compiled: Callable[[Any, Any, Array], dict[str, Array]],
    layout: Layout,
    state: Any,
    batches: Iterable[dict[str, np.ndarray]],
    key: Array,
    config: TrainConfig,
) -> dict[str, float]:
    """Means over all images of ``batches``.

    Args:
      compiled: :func:`eval_step` compiled by ``layout``.
      layout: the layout of ``state``.
      state: the replicated state.
      batches: masked batches of equal shape.
      key: the noise's key; the batch's number is folded in.
      config: the run's configuration.

    Returns:
      The means of :func:`eval_step`'s sums; ``elbo_relaxed`` = -(nll_relaxed + KL) and
      ``elbo_hard`` = -(nll_hard + ln vocab_size a token), both in nats a value of the mapped
      pixels' density: the second is a bound whose code length argmax tokens really have;
      ``code_usage`` (share of the vocabulary), ``code_perplexity``; ``images``.

    Raises:
      ValueError: there is no image.
    """
    totals: dict[str, Any] = {}
    for number, batch in enumerate(batches):
        sums = compiled(state, layout.shard(batch), jax.random.fold_in(key, number))
        for name, value in jax.device_get(layout.first(sums)).items():
            totals[name] = totals.get(name, 0) + value.astype(np.float64)
    if not totals or totals["images"] == 0:
        raise ValueError("nothing to evaluate: the held-out split has no usable image")
    counts = totals.pop("code_counts")
    images = float(totals.pop("images"))
    means = {name: float(value / images) for name, value in totals.items()}
    model = config.model
    # f x f pixels of C values share a token.
    tokens_per_value = 1.0 / (model.downsampling**2 * model.channels)
    return {
        **means,
        "elbo_relaxed": -(means["nll_relaxed"] + tokens_per_value * means["kl"]),
        "elbo_hard": -(means["nll_hard"] + tokens_per_value * float(np.log(model.vocab_size))),
        "code_usage": codebook.usage(counts),
        "code_perplexity": codebook.perplexity(counts),
        "images": images,
    }


def _decode(params: Any, tokens: Array, config: TrainConfig) -> Array:
    stats = DVAE(config.model).apply({"params": params}, tokens, method="decode_tokens")
    return cast(Array, stats)


@partial(jax.jit, static_argnames=("config",))
def _reconstruct(params: Any, pixels: Array, config: TrainConfig) -> Array:
    x = pixel_maps.map_pixels(pixels, config.eps)
    logits = cast(Array, DVAE(config.model).apply({"params": params}, x, method="encode"))
    stats = _decode(params, bottleneck.hard_codes(logits), config)
    return config.build_likelihood().reconstruct(stats)


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
