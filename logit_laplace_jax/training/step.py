"""The objective and the update: pure functions of state, batch and key.

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
import optax
from jax import Array, lax

from logit_laplace_jax import pixel_map
from logit_laplace_jax.checks import check
from logit_laplace_jax.models import bottleneck
from logit_laplace_jax.models.dvae import DVAE, DVAEOutput
from logit_laplace_jax.training import loss_scaling, optimal_scale
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.state import TrainState, make_optimizer

Metrics = dict[str, Array]


def check_batch(pixels: Array, config: TrainConfig) -> None:
    """Asserts uint8 [B, H, W, C] with the configuration's channels (chex, at trace time).

    Raises:
      AssertionError: dtype or shape differ.
    """
    chex.assert_type(pixels, jnp.uint8)
    chex.assert_shape(pixels, (None, None, None, config.model.channels))


def global_indices(local_batch: int, axis_name: str | None) -> Array:
    """Places of this device's examples in the global batch: int32 [local_batch].

    Noise is drawn by these, so that it does not depend on how the batch is spread over devices.
    """
    indices = jnp.arange(local_batch, dtype=jnp.int32)
    return indices if axis_name is None else indices + lax.axis_index(axis_name) * local_batch


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


def gradients(
    state: TrainState,
    pixels: Array,
    key: Array,
    axis_name: str | None,
    shards: int,
    gather: Callable[[Any], Any],
) -> tuple[Array, Metrics, Any]:
    """Objective, metrics and gradients of this device's part of a batch, in one piece or in parts.

    Args:
      state: the state.
      pixels: uint8 [B, H, W, C].
      key: random key of this step.
      axis_name: the mapped axis that the batch is spread over, or None.
      shards: equal runs of rows that lie on one device each; more than 1 under a mesh.
      gather: makes every device hold all of the parameters while they are used.

    Returns:
      Means over the examples. With a loss scale the gradients are still multiplied by it.
    """
    config = state.config
    factor = jnp.float32(1.0) if state.loss_scale is None else state.loss_scale.factor

    def objective(params: Any, *args: Any) -> tuple[Array, tuple[Array, Metrics]]:
        params = gather(params)
        if config.freeze != "none":  # and so nothing is computed for its gradient
            params = {**params, config.freeze: lax.stop_gradient(params[config.freeze])}
        loss, metrics = elbo_loss(params, *args)
        return loss * factor, (loss, metrics)

    def part(pixels: Array, indices: Array, log_scale: Array | None) -> tuple[Array, Metrics, Any]:
        (_, (loss, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params, pixels, key, state.step, config, indices, axis_name, log_scale
        )
        return loss, metrics, grads

    indices = global_indices(pixels.shape[0], axis_name)
    parts = config.accumulate
    if parts == 1:
        return part(pixels, indices, None)

    def deal(rows: Array) -> Array:
        # Every device computes some of its own rows in every part: nothing moves between devices.
        rows = rows.reshape(shards, parts, -1, *rows.shape[1:]).swapaxes(0, 1)
        return rows.reshape(parts, -1, *rows.shape[3:])

    dealt = deal(pixels), deal(indices)
    log_scale = None
    likelihood = config.likelihood.build()
    if optimal_scale.is_optimal(likelihood):  # the whole batch's, which takes a pass of its own

        def moment(rows: tuple[Array, Array]) -> Array:
            out = forward(
                gather(state.params), rows[0], config.temperature(state.step), key, config, rows[1]
            )
            return optimal_scale.batch_moment(likelihood, rows[0], out.stats, axis_name)

        log_scale = optimal_scale.log_scale_of(likelihood, lax.map(moment, dealt).mean())

    def add(total: Any, rows: tuple[Array, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, part(*rows, log_scale)), None

    shapes = jax.eval_shape(part, dealt[0][0], dealt[1][0], log_scale)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = lax.scan(add, zeros, dealt)
    loss, metrics, grads = jax.tree.map(lambda leaf: leaf / parts, total)
    return loss, metrics, grads


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    key: Array,
    axis_name: str | None = None,
    shards: int = 1,
    gather: Callable[[Any], Any] = lambda params: params,
) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      state: the state; meant to be donated.
      batch: ``{"pixels": uint8 [B, H, W, C]}``, this device's part of the global batch; computed in
        ``state.config.accumulate`` parts. Other entries, float32 [B], become metrics by their mean.
      key: the run's key, the same at every step and on every device; the step is folded in.
      axis_name: the mapped axis over whose devices gradients and metrics are averaged
        (``lax.pmean``); None on one device, or where the compiler sees the whole batch.
      shards: where the compiler sees the whole batch, the devices that it lies on.
      gather: where the state is spread over the devices, makes all of them hold all parameters
        while they are used.

    Returns:
      The next state and the metrics of this update, scalars that are equal on all devices:
      ``loss``, ``nll``, ``kl``, ``floor_share``, ``beta``, ``temperature``, ``learning_rate``,
      ``grad_norm``; with a loss scale also ``loss_scale`` (that of this update), ``skipped`` (1 if
      the gradients were not finite: then only the step and the loss scale change) and
      ``skipped_steps`` (since the start).
    """
    config, optimizer = state.config, make_optimizer(state.config)
    loss, metrics, grads = gradients(
        state, batch["pixels"], jax.random.fold_in(key, state.step), axis_name, shards, gather
    )
    metrics |= {name: rows.mean() for name, rows in batch.items() if name != "pixels"}
    if axis_name is not None:
        grads, loss, metrics = lax.pmean((grads, loss, metrics), axis_name)
    if state.loss_scale is not None:
        factor = state.loss_scale.factor
        grads = jax.tree.map(lambda g: g / factor, grads)
    rate = config.learning_rate(state.step)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    if config.freeze != "none":  # its gradient is zero, but weight decay would move it
        updates = {**updates, config.freeze: jax.tree.map(jnp.zeros_like, updates[config.freeze])}
    params = optax.apply_updates(state.params, jax.tree.map(lambda u: rate * u, updates))
    decay = config.optimizer.ema_decay
    ema_params = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), state.ema_params, params)
    metrics = {
        "loss": loss,
        **metrics,
        "learning_rate": rate,
        "grad_norm": optax.tree.norm(grads),
    }
    after = state.replace(params=params, ema_params=ema_params, opt_state=opt_state)
    if state.loss_scale is not None:
        finite = loss_scaling.all_finite(grads)
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
        growth = config.optimizer.loss_scale_growth
        after = after.replace(loss_scale=loss_scaling.adjusted(state.loss_scale, finite, growth))
        metrics |= {
            "loss_scale": state.loss_scale.factor,
            "skipped": 1.0 - finite.astype(jnp.float32),
            "skipped_steps": after.loss_scale.skipped.astype(jnp.float32),
        }
    return after.replace(step=state.step + 1), metrics
