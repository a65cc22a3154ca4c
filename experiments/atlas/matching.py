"""Families of densities, and their members with a given mean and variance.

Normal, Laplace and logistic live on the whole line; fitted to values in (0, 1) they leak mass to
both sides of it. Beta and logit-normal live on (0, 1). A variance v is possible on (0, 1) with mean
m where 0 < v < m (1 - m), and then both have a member with exactly these moments.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy import stats
from jax.scipy.special import gammaln

_NODES = np.linspace(-10.0, 10.0, 2001)
_WEIGHTS = np.exp(-0.5 * _NODES**2) * (_NODES[1] - _NODES[0]) / np.sqrt(2.0 * np.pi)
_NEWTON_STEPS = 40


@dataclasses.dataclass(frozen=True)
class Family:
    """A family with two parameters.

    Attributes:
      label: its name.
      names: what its two parameters are called.
      bounded: whether it lives on (0, 1).
      match: (mean, variance) to the two parameters.
      pdf: density at x, per unit of x, from (x, parameter, parameter).
      cdf: probability of values up to x.
    """

    label: str
    names: tuple[str, str]
    bounded: bool
    match: Callable[[Any, Any], tuple[Array, Array]]
    pdf: Callable[..., Array]
    cdf: Callable[..., Array]


def _on_the_line(label: str, scale: str, law: Any, share: float) -> Family:
    """A location-scale family, with the square of its scale as a share of its variance."""

    def match(mean: Any, variance: Any) -> tuple[Array, Array]:
        return mean, jnp.sqrt(share * variance)

    return Family(label, ("mean", scale), False, match, law.pdf, law.cdf)


def _beta(mean: Any, variance: Any) -> tuple[Array, Array]:
    """Closed form: the sum of both parameters is m (1 - m) / v - 1."""
    total = mean * (1.0 - mean) / variance - 1.0
    return mean * total, (1.0 - mean) * total


def _beta_pdf(x: Any, a: Any, b: Any) -> Array:
    # jax.scipy.stats.beta.pdf is off by 3e-7 at α = 12.4, β = 1.98 in float64, through its betaln.
    normaliser = gammaln(a) + gammaln(b) - gammaln(a + b)
    return jnp.exp((a - 1.0) * jnp.log(x) + (b - 1.0) * jnp.log1p(-x) - normaliser)


def logit_normal_moments(loc: Any, scale: Any) -> tuple[Array, Array, Array]:
    """Mean, variance and E[x (1 - x)] of x = sigmoid(loc + scale z), z standard normal.

    By the trapezoidal rule: the integrand is analytic, so the error falls exponentially with the
    spacing, here below 1e-10 up to a scale of 40.
    """
    x = jax.nn.sigmoid(loc + scale * _NODES)
    mean = jnp.sum(_WEIGHTS * x)
    return (
        mean,
        jnp.sum(_WEIGHTS * (x - mean) ** 2),
        jnp.sum(_WEIGHTS * x * jax.nn.sigmoid(-loc - scale * _NODES)),
    )


def _logit_normal(mean: Any, variance: Any) -> tuple[Array, Array]:
    """Newton's method in variables in which the equations are almost linear.

    The unknowns are a and ln s, with loc = a sqrt(1 + π s²/8), because the mean is then close to
    sigmoid(a). The equations compare logit of the mean, and ln(variance / E[x (1 - x)]).
    """
    target = jnp.stack(
        [
            jnp.log(mean) - jnp.log1p(-mean),
            jnp.log(variance) - jnp.log(mean * (1.0 - mean) - variance),
        ]
    )

    def parameters(unknowns: Array) -> tuple[Array, Array]:
        scale = jnp.exp(unknowns[1])
        return unknowns[0] * jnp.sqrt(1.0 + jnp.pi * scale**2 / 8.0), scale

    def residual(unknowns: Array) -> Array:
        m, v, within = logit_normal_moments(*parameters(unknowns))
        return jnp.stack([jnp.log(m) - jnp.log1p(-m), jnp.log(v) - jnp.log(within)]) - target

    def step(_: int, unknowns: Array) -> Array:
        move = jnp.linalg.solve(jax.jacfwd(residual)(unknowns), residual(unknowns))
        return unknowns - jnp.clip(move, -1.0, 1.0)

    slope = mean * (1.0 - mean)
    start = jnp.stack([target[0], 0.5 * jnp.log(variance) - jnp.log(slope)])
    return parameters(lax.fori_loop(0, _NEWTON_STEPS, step, start))


def _logit_normal_pdf(x: Any, loc: Any, scale: Any) -> Array:
    logit = jnp.log(x) - jnp.log1p(-x)
    return stats.norm.pdf(logit, loc, scale) / (x * (1.0 - x))


def _logit_normal_cdf(x: Any, loc: Any, scale: Any) -> Array:
    return stats.norm.cdf(jnp.log(x) - jnp.log1p(-x), loc, scale)


FAMILIES = {
    "normal": _on_the_line("normal", "σ", stats.norm, 1.0),
    "laplace": _on_the_line("Laplace", "b", stats.laplace, 0.5),
    "logistic": _on_the_line("logistic", "s", stats.logistic, 3.0 / jnp.pi**2),
    "beta": Family("beta", ("α", "β"), True, _beta, _beta_pdf, stats.beta.cdf),
    "logit_normal": Family(
        "logit-normal", ("m", "s"), True, _logit_normal, _logit_normal_pdf, _logit_normal_cdf
    ),
}


def leaked(family: Family, first: Any, second: Any) -> Array:
    """The mass outside (0, 1)."""
    # All three are symmetric about their mean, so the upper tail is the lower one mirrored, and
    # keeps its relative accuracy.
    return family.cdf(0.0, first, second) + family.cdf(0.0, 1.0 - first, second)
