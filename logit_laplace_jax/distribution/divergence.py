"""The Kullback-Leibler divergence between two logit-Laplace distributions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from logit_laplace_jax.checks import jit
from logit_laplace_jax.distribution.arguments import broadcast, debug_parameters
from logit_laplace_jax.distribution.elementary import (
    exp_excess,
    exp_quotient,
    saturate,
    weighted_tangents,
)


def _terms(
    loc_p: Array, log_scale_p: Array, loc_q: Array, log_scale_q: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """(d, 1/b_q, ρ, r, r (δ - 1 + exp(-δ))): δ = |d|/b_p, ρ = ln b_p - ln b_q, r = exp(ρ)."""
    d = loc_p - loc_q
    gap = jnp.abs(d)
    inv_q = jnp.exp(-log_scale_q)
    rho = log_scale_p - log_scale_q
    r = jnp.exp(rho)
    delta = jnp.where(gap == 0, 0.0, gap * jnp.exp(-log_scale_p))
    near = delta < 1.0
    by_location = jnp.where(
        near,
        r * exp_excess(-jnp.where(near, delta, 0.0)),
        jnp.where(gap == 0, 0.0, gap * inv_q) + r * jnp.expm1(-delta),
    )
    # r overflows only where b_p/b_q, hence the divergence, does.
    return d, inv_q, rho, r, jnp.where(jnp.isinf(r), jnp.inf, by_location)


@jax.custom_jvp
def _kl(loc_p: Array, log_scale_p: Array, loc_q: Array, log_scale_q: Array) -> Array:
    _, _, rho, _, by_location = _terms(loc_p, log_scale_p, loc_q, log_scale_q)
    return exp_excess(rho) + by_location


def _kl_jvp(
    primals: tuple[Array, Array, Array, Array], tangents: tuple[Any, Any, Any, Any]
) -> tuple[Array, Array]:
    d, inv_q, rho, r, by_location = _terms(*primals)
    gap = jnp.abs(d)
    delta = jnp.where(gap == 0, 0.0, gap * jnp.exp(-primals[1]))
    decay = jnp.exp(-delta)

    def by_loc_p() -> Array:
        # sign(d) (1 - exp(-δ))/b_q; near d = 0 as a smooth function of d, for its curvature there.
        near = delta < 0.5
        inv_p = jnp.exp(-primals[1])
        smooth = jnp.where(near, d, 0.0) * inv_p * exp_quotient(-jnp.where(near, delta, 0.0))
        beyond = jnp.sign(d) * -jnp.expm1(-jnp.where(near, 1.0, delta))
        return saturate(inv_q * jnp.where(near, smooth, beyond))

    def by_log_scale_p() -> Array:
        kept = jnp.where(decay == 0, 0.0, 1.0 + delta) * decay
        overflow = jnp.isinf(r)
        finite = jnp.where(overflow, 1.0, r)
        value = jnp.expm1(jnp.where(overflow, 0.0, rho)) - finite * (1.0 - kept)
        return saturate(jnp.where(overflow, jnp.where(kept > 0, jnp.inf, -1.0), value))

    def by_log_scale_q() -> Array:
        return saturate(-jnp.expm1(rho) - by_location)

    value = exp_excess(rho) + by_location
    partials = [by_loc_p, by_log_scale_p, lambda: -by_loc_p(), by_log_scale_q]
    return value, weighted_tangents(partials, tangents, value)


_kl.defjvp(_kl_jvp, symbolic_zeros=True)


@jit
def kl_divergence(
    loc_p: ArrayLike, log_scale_p: ArrayLike, loc_q: ArrayLike, log_scale_q: ArrayLike
) -> Array:
    """KL(p‖q) of two logit-Laplace distributions, in nats, in closed form.

    The sigmoid is a bijection, so it is that of the Laplace distributions. With r = b_p/b_q and
    δ = |μ_p - μ_q|/b_p,

        KL = (r - 1 - ln r) + r (exp(-δ) - 1 + δ),

    the usual ln(b_q/b_p) + |μ_p - μ_q|/b_q + r exp(-δ) - 1 as a sum of two terms that are never
    negative: nothing cancels where p is close to q. It needs no eps: pixels mapped by the same map
    have the same divergence.

    Args:
      loc_p, log_scale_p: parameters of p, the distribution that the mean is taken over.
      loc_q, log_scale_q: parameters of q; all four broadcast.

    Returns:
      Divergences >= 0 of the broadcast shape, 0 for p = q; inf only where the value overflows.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> kl_divergence(0.0, 0.0, 1.0, 0.0)
    Array(0.36787945, dtype=float32)
    """
    loc_p, log_scale_p, loc_q, log_scale_q = broadcast(
        loc_p=loc_p, log_scale_p=log_scale_p, loc_q=loc_q, log_scale_q=log_scale_q
    )
    debug_parameters(loc_p, log_scale_p)
    debug_parameters(loc_q, log_scale_q)
    return _kl(loc_p, log_scale_p, loc_q, log_scale_q)
