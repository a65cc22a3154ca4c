"""A prior's objective, update and evaluation: pure functions of state, batch and key.

The objective is the mean negative log probability of an image's tokens, in nats per token. The
tokens are the hard codes that the frozen dVAE gives the images of the batch, or gave them before.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import chex
import jax.numpy as jnp
import numpy as np
from jax import Array

from logit_laplace_jax.checks import check
from logit_laplace_jax.models.prior import Prior
from logit_laplace_jax.training.config import PriorTrainConfig
from logit_laplace_jax.training.evaluation import Rows, gathered, tokens_of
from logit_laplace_jax.training.state import TrainState
from logit_laplace_jax.training.update import Batch, Metrics, Objective, update


def token_rows(frozen: Any, pixels: Array, config: PriorTrainConfig) -> Array:
    """The tokens of images: uint8 [B, S, S, C] to int32 [B, height width] in raster order."""
    chex.assert_type(pixels, jnp.uint8)
    size = config.image_size
    chex.assert_shape(pixels, (None, size, size, config.model.channels))
    return tokens_of(frozen, pixels, config.dvae).reshape(len(pixels), -1)


def log_prob(params: Any, tokens: Array, batch: Batch, config: PriorTrainConfig) -> Array:
    """ln p(token | earlier tokens, label): float32 [B, height width]."""
    labels = batch["labels"] if config.classes else None
    scores = Prior(config.prior).apply({"params": params}, tokens, labels, method="log_prob")
    return cast(Array, scores)


def _loss(
    params: Any,
    state: TrainState,
    batch: Batch,
    key: Array,
    indices: Array,
    axis_name: str | None,
    shared: None,
) -> tuple[Array, Metrics]:
    config = cast(PriorTrainConfig, state.config)
    tokens = batch.get("tokens")
    if tokens is None:
        tokens = token_rows(state.frozen, batch["pixels"], config)
    loss = -log_prob(params, tokens, batch, config).mean()
    check(lambda: jnp.isfinite(loss), "the loss is not finite")
    return loss, {}


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    axis_name: str | None = None,
    shards: int = 1,
    gather: Callable[[Any], Any] = lambda params: params,
) -> tuple[TrainState, Metrics]:
    """One update of a prior by its tokens' negative log probability; see `update`.

    The batch is ``{"pixels": uint8 [B, H, W, C]}``, or ``{"tokens": int32 [B, height width]}`` made
    before; of a conditional prior with ``"labels"`` int32 [B].
    """
    given = "tokens" if "tokens" in batch else "pixels"
    objective = Objective((given, "labels"), _loss)
    return update(objective, state, batch, key, axis_name, shards, gather)


def eval_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    axis_name: str | None = None,
) -> tuple[Rows, dict[str, Array]]:
    """Scores held-out images, with the averaged parameters.

    Args:
      state: only ``ema_params``, ``frozen`` and ``config`` are read.
      batch: as for training, with ``"mask"`` float32 [B].
      key: unused: nothing is drawn.
      axis_name: the mapped axis that the batch is spread over, or None.

    Returns:
      ``nats`` [B, height width], those of each token; ``values`` [B], pixel values per image;
      ``mask``. And no sums.
    """
    config = cast(PriorTrainConfig, state.config)
    pixels = batch["pixels"]
    tokens = token_rows(state.frozen, pixels, config)
    values = jnp.full(len(pixels), math.prod(pixels.shape[1:]), jnp.float32)
    nats = -log_prob(state.ema_params, tokens, batch, config)
    return gathered({"nats": nats, "values": values, "mask": batch["mask"]}, {}, axis_name)


def summary(
    rows: dict[str, np.ndarray], sums: dict[str, np.ndarray], config: PriorTrainConfig
) -> dict[str, Any]:
    """What the rows of all images amount to, summed in float64.

    Returns:
      ``bits_per_token``; ``bpd_prior_codes``: the same in bits per pixel value, to be set beside
      ``bpd_uniform_codes``, the price of log2 V bits per token; ``token_perplexity``; ``images``.
    """
    nats = math.fsum(rows["nats"].ravel())
    tokens, values = rows["nats"].size, math.fsum(rows["values"])
    return {
        "bits_per_token": nats / tokens / math.log(2.0),
        "bpd_prior_codes": nats / values / math.log(2.0),
        "bpd_uniform_codes": tokens / values * math.log2(config.prior.vocab_size),
        "token_perplexity": math.exp(min(nats / tokens, 700.0)),
        "images": float(len(rows["values"])),
    }
