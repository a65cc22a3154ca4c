"""The state of a run: parameters, their average, the optimiser's moments, the step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from logit_laplace_jax.models.dvae import init_params
from logit_laplace_jax.models.prior import init_prior
from logit_laplace_jax.training import loss_scaling
from logit_laplace_jax.training.config import PriorTrainConfig, RunConfig, TrainConfig


class TrainState(flax.struct.PyTreeNode):
    """A pytree; ``config`` is static, so a step needs nothing beside state, batch and key.

    Attributes:
      step: int32 scalar, the number of updates done.
      params: float32 parameter tree of the DVAE, or of the prior.
      ema_params: its exponential moving average, which evaluation uses.
      opt_state: optax's state.
      loss_scale: the loss's factor, with precision float16; else None.
      config: the run's resolved configuration.
      frozen: a prior's dVAE, as its run left it; else None.
    """

    step: Array
    params: Any
    ema_params: Any
    opt_state: Any
    loss_scale: loss_scaling.LossScale | None
    config: Any = flax.struct.field(pytree_node=False)
    frozen: Any = None


def make_optimizer(config: RunConfig) -> optax.GradientTransformation:
    """AdamW for a step size of 1: the step multiplies by its schedule.

    So the schedule follows the run's own count of updates, also where float16 skips one.
    """
    o = config.optimizer
    return optax.adamw(1.0, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay)


def create_state(config: RunConfig, key: Array) -> TrainState:
    """A fresh state; a prior's dVAE is fresh too, and its run's has to be put in.

    Args:
      config: the run's configuration; schedules that last the whole run are resolved here.
      key: random key of the initial parameters.

    >>> from logit_laplace_jax.models.config import DVAEConfig
    >>> tiny = DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4)
    >>> config = TrainConfig(run_dir="", image_size=8, model=tiny)
    >>> int(create_state(config, jax.random.key(0)).step)
    0
    """
    config = config.resolved()
    frozen = None
    if isinstance(config, PriorTrainConfig):
        params = init_prior(config.prior, key)
        frozen = jax.jit(init_params, static_argnums=0)(config.model, key)
    else:
        assert isinstance(config, TrainConfig)
        params = jax.jit(init_params, static_argnums=0)(config.model, key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: the step donates its input, and one buffer cannot be donated twice.
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=make_optimizer(config).init(params),
        loss_scale=(
            loss_scaling.initial(config.optimizer.loss_scale)
            if config.precision == "float16"
            else None
        ),
        frozen=frozen,
        config=config,
    )


def parameter_count(params: Any) -> int:
    """Number of scalars in a parameter tree (arrays or their shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
