"""What the adapters need of draws beyond :func:`logit_laplace_jax.sample`.

A draw is x = sigmoid(μ + b z) with z a standard Laplace variable. Where x rounds, for instance next
to 1, log_prob(x) is the density of the rounded x; from z follows the density of the draw itself,
with the gradients of an x that is not rounded.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

import logit_laplace_jax as ll
from logit_laplace_jax.distribution import broadcast, laplace_nll
from logit_laplace_jax.distribution.quantiles import shift


def interior(x: Array) -> Array:
    """x, moved to the nearest normal float inside (0, 1) like the draws; NaN stays.

    >>> interior(jnp.array([0.5, 1.0, jnp.nan]))
    Array([0.5       , 0.99999994,        nan], dtype=float32)
    """
    info = jnp.finfo(x.dtype)
    # lax.clamp, not jnp.clip: NaN stays.
    return lax.clamp(jnp.asarray(info.tiny, x.dtype), x, jnp.asarray(1.0 - info.epsneg, x.dtype))


def sample_with_noise(
    key: Array, loc: Array, log_scale: Array, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """The draws of :func:`logit_laplace_jax.sample`, and the z of each, both of ``shape``.

    >>> x, z = sample_with_noise(jax.random.key(0), 2.0, 0.0, (3,))
    >>> bool(jnp.allclose(x, jax.nn.sigmoid(2.0 + z)))
    True
    """
    x = ll.sample(key, loc, log_scale, shape)
    return x, jax.random.laplace(key, shape, x.dtype)


@jax.jit
def log_prob_of_noise(z: Array, loc: Array, log_scale: Array) -> Array:
    """Log density in nats at x = sigmoid(μ + b z), exact also where that x rounds.

    Args:
      z: standard Laplace noise, broadcastable with ``loc`` and ``log_scale``.
      loc: μ.
      log_scale: ln b.

    Returns:
      -|z| - ln 2b - ln x(1 - x), of the broadcast shape, differentiable in both parameters.

    >>> log_prob_of_noise(jnp.array(0.0), 0.0, 0.0)
    Array(0.6931472, dtype=float32)
    """
    z, loc, log_scale = broadcast(z=z, loc=loc, log_scale=log_scale)
    t = jnp.abs(shift(loc, z, log_scale))
    zero = jnp.zeros_like(z)
    # The standard Laplace density, less ln b; then -ln x(1 - x), from t = |logit x|.
    return t + 2.0 * jnp.log1p(jnp.exp(-t)) - laplace_nll(z, zero, zero) - log_scale


@partial(jax.jit, static_argnames=("shape",))
def sample_and_log_prob(
    key: Array, loc: Array, log_scale: Array, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """Draws and the log density of each, both of ``shape``.

    >>> [a.shape for a in sample_and_log_prob(jax.random.key(0), 2.0, 0.0, (3,))]
    [(3,), (3,)]
    """
    x, z = sample_with_noise(key, loc, log_scale, shape)
    return x, log_prob_of_noise(z, loc, log_scale)
