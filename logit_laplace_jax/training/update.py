"""The update, whatever is trained: gradients of an objective, AdamW, the parameters' average."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from logit_laplace_jax.training import loss_scaling
from logit_laplace_jax.training.state import TrainState, make_optimizer

Metrics = dict[str, Array]
Batch = dict[str, Array]


class Objective(NamedTuple):
    """What an update minimises.

    Attributes:
      inputs: names of the batch's arrays that the loss reads; others, float32 [B], become metrics.
      loss: ``loss(params, state, batch, key, indices, axis_name, shared)`` gives the mean loss of
        these examples and scalar metrics. ``indices`` are their places in the global batch. Of the
        state it reads anything but ``params``.
      shared: None, or ``shared(params, state, parts, key, indices, axis_name)``: what every part of
        an accumulated batch needs to know of the whole one, which comes dealt in parts
        [parts, B, ...]. A loss of a batch in one piece is given None.
    """

    inputs: tuple[str, ...]
    loss: Callable[..., tuple[Array, Metrics]]
    shared: Callable[..., Any] | None = None


def global_indices(local_batch: int, axis_name: str | None) -> Array:
    """Places of this device's examples in the global batch: int32 [local_batch].

    Noise is drawn by these, so that it does not depend on how the batch is spread over devices.
    """
    indices = jnp.arange(local_batch, dtype=jnp.int32)
    return indices if axis_name is None else indices + lax.axis_index(axis_name) * local_batch


def gradients(
    objective: Objective,
    state: TrainState,
    batch: Batch,
    key: Array,
    axis_name: str | None,
    shards: int,
    gather: Callable[[Any], Any],
) -> tuple[Array, Metrics, Any]:
    """Objective, metrics and gradients of this device's part of a batch, in one piece or in parts.

    Args:
      objective: what is minimised.
      state: the state.
      batch: the objective's inputs, [B, ...] each.
      key: random key of this step.
      axis_name: the mapped axis that the batch is spread over, or None.
      shards: equal runs of rows that lie on one device each; more than 1 under a mesh.
      gather: makes every device hold all of the parameters while they are used.

    Returns:
      Means over the examples. With a loss scale the gradients are still multiplied by it.
    """
    config = state.config
    factor = jnp.float32(1.0) if state.loss_scale is None else state.loss_scale.factor
    state = state.replace(frozen=gather(state.frozen))

    def scaled(params: Any, *args: Any) -> tuple[Array, tuple[Array, Metrics]]:
        params = gather(params)
        if (
            part := _frozen_part(config)
        ) is not None:  # and so nothing is computed for its gradient
            params = {**params, part: lax.stop_gradient(params[part])}
        loss, metrics = objective.loss(params, state, *args)
        return loss * factor, (loss, metrics)

    def part(batch: Batch, indices: Array, shared: Any) -> tuple[Array, Metrics, Any]:
        (_, (loss, metrics)), grads = jax.value_and_grad(scaled, has_aux=True)(
            state.params, batch, key, indices, axis_name, shared
        )
        return loss, metrics, grads

    rows = len(batch[objective.inputs[0]])
    indices = global_indices(rows, axis_name)
    parts = config.accumulate
    if parts == 1:
        return part(batch, indices, None)

    def deal(rows: Array) -> Array:
        # Every device computes some of its own rows in every part: nothing moves between devices.
        rows = rows.reshape(shards, parts, -1, *rows.shape[1:]).swapaxes(0, 1)
        return rows.reshape(parts, -1, *rows.shape[3:])

    dealt = jax.tree.map(deal, (batch, indices))
    shared = None
    if objective.shared is not None:
        shared = objective.shared(gather(state.params), state, dealt[0], key, dealt[1], axis_name)

    def add(total: Any, rows: tuple[Batch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, part(*rows, shared)), None

    first = jax.tree.map(lambda leaf: leaf[0], dealt)
    shapes = jax.eval_shape(part, *first, shared)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = lax.scan(add, zeros, dealt)
    loss, metrics, grads = jax.tree.map(lambda leaf: leaf / parts, total)
    return loss, metrics, grads


def _frozen_part(config: Any) -> str | None:
    """The part of the parameters that is not trained; only a dVAE has such parts."""
    part = getattr(config, "freeze", "none")
    return None if part == "none" else part


def update(
    objective: Objective,
    state: TrainState,
    batch: Batch,
    key: Array,
    axis_name: str | None = None,
    shards: int = 1,
    gather: Callable[[Any], Any] = lambda params: params,
) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      objective: what is minimised.
      state: the state; meant to be donated.
      batch: this device's part of the global batch; computed in ``state.config.accumulate`` parts.
      key: the run's key, the same at every step and on every device; the step is folded in.
      axis_name: the mapped axis over whose devices gradients and metrics are averaged
        (``lax.pmean``); None on one device, or where the compiler sees the whole batch.
      shards: where the compiler sees the whole batch, the devices that it lies on.
      gather: where the state is spread over the devices, makes all of them hold all parameters
        while they are used.

    Returns:
      The next state and the metrics of this update, scalars that are equal on all devices:
      ``loss``, the objective's own, ``learning_rate``, ``grad_norm``; with a loss scale also
      ``loss_scale`` (that of this update), ``skipped`` (1 if the gradients were not finite: then
      only the step and the loss scale change) and ``skipped_steps`` (since the start).
    """
    config, optimizer = state.config, make_optimizer(state.config)
    inputs = {name: rows for name, rows in batch.items() if name in objective.inputs}
    key = jax.random.fold_in(key, state.step)
    loss, metrics, grads = gradients(objective, state, inputs, key, axis_name, shards, gather)
    metrics |= {name: rows.mean() for name, rows in batch.items() if name not in inputs}
    if axis_name is not None:
        grads, loss, metrics = lax.pmean((grads, loss, metrics), axis_name)
    if state.loss_scale is not None:
        factor = state.loss_scale.factor
        grads = jax.tree.map(lambda g: g / factor, grads)
    rate = config.learning_rate(state.step)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    if (part := _frozen_part(config)) is not None:  # no gradient, but weight decay would move it
        updates = {**updates, part: jax.tree.map(jnp.zeros_like, updates[part])}
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
