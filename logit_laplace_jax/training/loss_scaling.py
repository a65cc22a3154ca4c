"""Dynamic loss scaling for float16 (Micikevicius et al. 2018, "Mixed Precision Training").

Gradients below 6e-8 vanish in float16 and those above 65,504 overflow. The loss is multiplied by a
factor before the backward pass and the gradients are divided by it afterwards, in float32. An
update with a gradient that is not finite is skipped and halves the factor; a long enough row of
good ones doubles it. All factors are powers of two, so that they round nothing. The paper trained
in float16 with global loss scaling (Ramesh et al. 2021, appendix A.2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

LARGEST = 2.0**24
SMALLEST = 1.0


class LossScale(NamedTuple):
    """The state of the factor.

    Attributes:
      factor: float32 scalar, a power of two in [SMALLEST, LARGEST].
      good: int32 scalar, updates without overflow since the factor last changed.
      skipped: int32 scalar, updates skipped since the start.
    """

    factor: Array
    good: Array
    skipped: Array


def initial(factor: float) -> LossScale:
    """The state at the start.

    >>> float(initial(1024.0).factor)
    1024.0
    """
    # Three buffers: the step donates its input, and one buffer cannot be donated twice.
    return LossScale(jnp.float32(factor), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def all_finite(tree: object) -> Array:
    """Whether every number of a tree is finite: bool scalar."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def adjusted(scale: LossScale, finite: Array, growth_every: int) -> LossScale:
    """The state after an update.

    Args:
      scale: the state before.
      finite: bool scalar, whether the update's gradients were finite.
      growth_every: updates without overflow after which the factor doubles.

    >>> scale = adjusted(initial(1024.0), jnp.array(False), growth_every=2)
    >>> float(scale.factor), int(scale.skipped)
    (512.0, 1)
    >>> for _ in range(2):
    ...     scale = adjusted(scale, jnp.array(True), growth_every=2)
    >>> float(scale.factor)
    1024.0
    """
    good = jnp.where(finite, scale.good + 1, 0)
    grows = good >= growth_every
    factor = jnp.where(finite, jnp.where(grows, scale.factor * 2, scale.factor), scale.factor / 2)
    return LossScale(
        jnp.clip(factor, SMALLEST, LARGEST),
        jnp.where(grows, 0, good),
        scale.skipped + jnp.where(finite, 0, 1),
    )
