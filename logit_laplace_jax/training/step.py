"""A dVAE's objective and update: pure functions of state, batch and key.

The objective is the negative ELBO with the paper's normalisation (Ramesh et al. 2021, A.2):

    (Σ over values of the NLL + β Σ over positions of the KL) / (H W C),   mean over images,

so the mean KL a position ends with weight β / (f² C), f the downsampling: β/192 for the paper's
f = 8, whatever the resolution.
"""

from collections.abc import Callable
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from logit_laplace_jax import pixel_map
from logit_laplace_jax.checks import check
from logit_laplace_jax.models import bottleneck
from logit_laplace_jax.models.dvae import DVAE, DVAEOutput
from logit_laplace_jax.training import optimal_scale
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.state import TrainState
from logit_laplace_jax.training.update import Batch, Metrics, Objective, update


def check_batch(pixels: Array, config: TrainConfig) -> None:
    """Asserts uint8 [B, H, W, C] with the configuration's channels (chex, at trace time).

    Raises:
      AssertionError: dtype or shape differ.
    """
    chex.assert_type(pixels, jnp.uint8)
    chex.assert_shape(pixels, (None, None, None, config.model.channels))


def forward(
    params: Any, pixels: Array, temperature: Array, key: Array, config: TrainConfig, indices: Array
) -> DVAEOutput:
    """The relaxed pass of a batch: uint8 pixels [B, H, W, C] to logits, codes, statistics."""
    grid = config.model.token_grid(pixels.shape[1], pixels.shape[2])
    noise = bottleneck.gumbel_noise(key, indices, (*grid, config.model.vocab_size))
    output = DVAE(config.model).apply(
        {"params": params},
        pixel_map.map_pixels(pixels, config.likelihood.eps),
        temperature=temperature,
        noise=noise,
    )
    return cast(DVAEOutput, output)


def reconstruction_loss(
    pixels: Array,
    stats: Array,
    key: Array,
    config: TrainConfig,
    indices: Array,
    axis_name: str | None,
    log_scale: Array | None = None,
) -> tuple[Array, Array]:
    """The mean negative log likelihood of a batch, and the share of values at the scale's floor.

    Args:
      pixels: uint8 [B, H, W, C].
      stats: the decoder's statistics.
      key: random key of this step; dequantisation draws from its own branch of it.
      config: objective, likelihood and options.
      indices: int32 [B], the examples' places in the global batch.
      axis_name: the mapped axis that an optimal scale is taken over, or None.
      log_scale: ln of the optimal scale, where it is that of more examples than these.

    Returns:
      Two float32 scalars: nats per value of the density (or mass), and a share in [0, 1].
    """
    likelihood = config.likelihood.build()
    if optimal_scale.is_optimal(likelihood):
        if log_scale is None:
            moment = optimal_scale.batch_moment(likelihood, pixels, stats, axis_name)
            log_scale = optimal_scale.log_scale_of(likelihood, moment)
        likelihood, stats = optimal_scale.at_log_scale(likelihood, stats, log_scale)
    if config.likelihood.objective == "mass":
        losses = -likelihood.log_mass(pixels, stats)
    elif config.likelihood.dequantize:
        branch = jax.random.fold_in(key, np.uint32(2**32 - 1))  # no example has that index

        def draw(index: Array) -> Array:
            own = jax.random.fold_in(branch, index)
            return jax.random.uniform(own, pixels.shape[1:], jnp.float32, -0.5, 0.5)

        losses = likelihood.loss(pixels, stats, jax.vmap(draw)(indices))
    else:
        losses = likelihood.loss(pixels, stats)
    return losses.mean(), likelihood.at_floor(stats).mean(dtype=jnp.float32)


def elbo_loss(
    params: Any,
    pixels: Array,
    key: Array,
    step: Array,
    config: TrainConfig,
    indices: Array,
    axis_name: str | None = None,
    log_scale: Array | None = None,
) -> tuple[Array, Metrics]:
    """The mean objective of a batch, in nats per value.

    Args:
      params: the DVAE's parameters.
      pixels: uint8 [B, H, W, C].
      key: random key of this step's Gumbel noise.
      step: int32 scalar, updates done so far; decides β and τ.
      config: the run's resolved configuration.
      indices: int32 [B], the examples' places in the global batch.
      axis_name: the mapped axis that the batch is spread over, or None.
      log_scale: ln of the optimal scale, where it is that of more examples than these.

    Returns:
      The scalar objective, and scalars: ``nll`` (nats per value: of the density, or of
      the mass with that objective), ``kl`` (nats per token), ``floor_share`` (share of values
      whose ln b is at its floor), ``beta``, ``temperature``.
    """
    check_batch(pixels, config)
    _, height, width, channels = pixels.shape
    beta, temperature = config.beta(step), config.temperature(step)
    out = forward(params, pixels, temperature, key, config, indices)
    # Sums over an image, then the mean over images: the same number on any number of devices.
    nll, floor_share = reconstruction_loss(
        pixels, out.stats, key, config, indices, axis_name, log_scale
    )
    kl = bottleneck.kl_to_uniform(out.logits).mean()
    tokens_per_value = out.logits.shape[1] * out.logits.shape[2] / (height * width * channels)
    loss = nll + beta * tokens_per_value * kl
    check(lambda: jnp.isfinite(loss), "the loss is not finite")
    return loss, {
        "nll": nll,
        "kl": kl,
        "floor_share": floor_share,
        "beta": beta,
        "temperature": temperature,
    }


def _loss(
    params: Any,
    state: TrainState,
    batch: Batch,
    key: Array,
    indices: Array,
    axis_name: str | None,
    log_scale: Array | None,
) -> tuple[Array, Metrics]:
    config, pixels = cast(TrainConfig, state.config), batch["pixels"]
    return elbo_loss(params, pixels, key, state.step, config, indices, axis_name, log_scale)


def _shared_log_scale(
    params: Any,
    state: TrainState,
    parts: Batch,
    key: Array,
    indices: Array,
    axis_name: str | None,
) -> Array | None:
    """ln of the whole batch's optimal scale, by a pass of its own; None for other scales."""
    config = cast(TrainConfig, state.config)
    likelihood = config.likelihood.build()
    if not optimal_scale.is_optimal(likelihood):
        return None

    def moment(rows: tuple[Array, Array]) -> Array:
        pixels, places = rows
        out = forward(params, pixels, config.temperature(state.step), key, config, places)
        return optimal_scale.batch_moment(likelihood, pixels, out.stats, axis_name)

    moments = lax.map(moment, (parts["pixels"], indices))
    return optimal_scale.log_scale_of(likelihood, moments.mean())


ELBO = Objective(("pixels",), _loss, _shared_log_scale)
"""The negative ELBO; its metrics are those of :func:`elbo_loss`."""


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    axis_name: str | None = None,
    shards: int = 1,
    gather: Callable[[Any], Any] = lambda params: params,
) -> tuple[TrainState, Metrics]:
    """One update of a dVAE by :data:`ELBO` and ``{"pixels": uint8 [B, H, W, C]}``; see `update`."""
    return update(ELBO, state, batch, key, axis_name, shards, gather)
