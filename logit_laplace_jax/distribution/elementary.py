"""Elementary functions of x in (0, 1), exact to rounding for subnormal x too.

CPUs and accelerators under XLA flush subnormal operands to zero: ``x > 0`` is False for them, and
their logarithm is wrong. They are read through their bits.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

LN2 = float(np.log(2.0))


def bits(x: Array) -> Array:
    """The bit pattern of x as a signed integer of the same width."""
    return lax.bitcast_convert_type(x, jnp.int32 if x.dtype == jnp.float32 else jnp.int64)


def inside(x: Array) -> Array:
    """0 < x < 1, decided on the bits: IEEE comparisons flush subnormal x to 0."""
    pattern = bits(x)
    return (pattern > 0) & (pattern < bits(jnp.ones((), x.dtype)))


def subnormal(x: Array) -> tuple[Array, Array, int]:
    """For x >= 0: (is x subnormal or 0, its significand k as a normal float, e) with x = k 2**e."""
    info = jnp.finfo(x.dtype)
    pattern = bits(x)
    return (
        pattern < bits(jnp.asarray(info.tiny, x.dtype)),
        pattern.astype(x.dtype),
        info.minexp - info.nmant,
    )


def log(x: Array) -> Array:
    """Natural logarithm of x > 0."""
    small, significand, exponent = subnormal(x)
    y = jnp.where(small, significand, x)
    return jnp.log(y) + jnp.where(small, exponent * LN2, 0.0).astype(x.dtype)


def divide(c: Array, x: Array) -> Array:
    """c/x for x > 0; ±inf only where the quotient overflows."""
    small, significand, exponent = subnormal(x)
    quotient = c / jnp.where(small, significand, x)
    # 2**-exponent overflows, so it is applied in halves; each is chosen element by element, or the
    # compiler would multiply the two constants into that infinity.
    half = exponent // 2
    quotient = quotient * jnp.where(small, 2.0**-half, 1.0).astype(x.dtype)
    return quotient * jnp.where(small, 2.0 ** (half - exponent), 1.0).astype(x.dtype)


def saturate(y: Array) -> Array:
    """Replaces ±inf by the largest finite numbers; NaN stays."""
    largest = jnp.finfo(y.dtype).max
    # Not by clip: a minimum that hands NaN on takes three instructions where a choice takes two.
    return jnp.where(y > largest, largest, jnp.where(y < -largest, -largest, y))


def exp(y: Array) -> Array:
    """exp(y), at most the largest finite number, with derivative 0 there."""
    # Found before the exponential: a cap after it would make 0 · inf of the derivative.
    info = jnp.finfo(y.dtype)
    overflows = y > np.log(info.max) - 1e-4
    return jnp.where(overflows, info.max, jnp.exp(jnp.where(overflows, 0.0, y)))


@jax.custom_jvp
def scaled(d: Array, log_scale: Array) -> Array:
    """d exp(-log_scale), 0 at d = 0 whatever the scale; value and derivatives stay finite."""
    root = jnp.exp(-0.5 * log_scale)  # its square may overflow where the product does not
    return jnp.where((d == 0) & ~jnp.isnan(log_scale), 0.0, saturate(d * root * root))


@scaled.defjvp
def _scaled_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    d, log_scale = primals
    value = scaled(d, log_scale)
    # A quarter of the largest number, so that the two terms' sum is finite.
    limit = 0.25 * jnp.finfo(d.dtype).max
    by_d, by_log_scale = jnp.minimum(jnp.exp(-log_scale), limit), jnp.clip(value, -limit, limit)
    return value, by_d * tangents[0] - by_log_scale * tangents[1]


def twice_atanh(s: Array) -> Array:
    """2 atanh(s) = ln((1 + s)/(1 - s)) for |s| <= 1/3, with small relative error."""
    # The first term left out is below 2**-26 (float32) or 2**-58 of the sum.
    terms = 7 if s.dtype == jnp.float32 else 17
    w = s * s
    series = jnp.full_like(s, 2.0 / (2 * terms - 1))
    for k in reversed(range(terms - 1)):
        series = series * w + 2.0 / (2 * k + 1)
    return series * s


@jax.custom_jvp
def logit(x: Array) -> Array:
    """ln(x / (1 - x)) for 0 < x < 1, with small relative error also near 1/2."""
    # Near 1/2 the logarithm of a rounded quotient would keep no relative accuracy, and 2x - 1 is
    # exact.
    s = 2.0 * x - 1.0
    small, significand, exponent = subnormal(x)
    quotient = jnp.where(small, significand, x) / (1.0 - x)
    far = jnp.log(quotient) + jnp.where(small, exponent * LN2, 0.0).astype(x.dtype)
    return jnp.where(jnp.abs(s) < 1.0 / 3.0, twice_atanh(s), far)


@logit.defjvp
def _logit_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return logit(x), saturate(divide(jnp.ones_like(x), x) + 1.0 / (1.0 - x)) * dx


def log_jacobian_at(x: Array, t: Array) -> Array:
    """ln(x (1 - x)) given t = logit x, in cheap operations; not to be differentiated.

    It is ln m + ln(1 - m) = 2 ln(1 - m) - |t|, with m the smaller one of x and 1 - x.
    """
    m = jnp.where(x > 0.5, 1.0 - x, x)
    return -2.0 * twice_atanh(m / (2.0 - m)) - jnp.abs(t)


def log_jacobian(x: Array) -> Array:
    """ln(x (1 - x)), the log of dx / d(logit x)."""
    small, _, _ = subnormal(x)
    return jnp.where(small, log(x), jnp.log(jnp.where(small, 1.0, x * (1.0 - x))))


# --- Differences of exponentials, without cancellation ------------------------------------------


def log1m_half_exp(d: Array) -> Array:
    """ln(1 - exp(-d)/2) for d >= 0.

    By log1p of a positive argument: of a negative one it is inaccurate on some platforms.
    """
    tail = jnp.exp(-d)
    return -jnp.log1p(tail / (2.0 - tail))


def log1m_exp(d: Array, log_d: Array) -> Array:
    """ln(1 - exp(-d)) for d > 0, given ln d too, which stays finite where d underflows."""
    small = d < 0.01
    # ln(d - d²/2 + d³/6 - ...) = ln d - d/2 + d²/24 - d⁴/2880; the next term is below 2**-60.
    near = jnp.where(small, d, 0.0)  # of a large d the powers would overflow
    series = log_d - near * (0.5 - near * (1 / 24 - near * near / 2880))
    return jnp.where(small, series, jnp.log(-jnp.expm1(-jnp.where(small, 1.0, d))))


def exp_excess(y: Array) -> Array:
    """exp(y) - 1 - y, which is >= 0, with small relative error also near y = 0."""
    near = jnp.abs(y) < 0.5
    z = jnp.where(near, y, 0.0)
    series = jnp.ones_like(y)  # 2 (exp(z) - 1 - z)/z² = 1 + z/3 (1 + z/4 (1 + ...)), to 2**-56
    for k in range(16, 2, -1):
        series = 1.0 + series * z / k
    return jnp.where(near, 0.5 * z * z * series, jnp.expm1(y) - y)


def exp_quotient(y: Array) -> Array:
    """(exp(y) - 1)/y, 1 at y = 0, with small relative error in value and derivative."""
    near = jnp.abs(y) < 0.5
    z = jnp.where(near, y, 0.0)
    series = jnp.ones_like(y)  # 1 + z/2 (1 + z/3 (1 + ...)), to 2**-56
    for k in range(16, 1, -1):
        series = 1.0 + series * z / k
    far = jnp.where(near, 1.0, y)
    return jnp.where(near, series, jnp.expm1(far) / far)


def sinhc(y: Array) -> Array:
    """sinh(y)/y for |y| <= 1/2."""
    w, series = y * y, jnp.ones_like(y)
    for k in range(7, 0, -1):
        series = 1.0 + series * w / (2 * k * (2 * k + 1))
    return series


# --- Derivative rules ---------------------------------------------------------------------------


def weighted_tangents(partials: list[Any], tangents: tuple[Any, ...], like: Array) -> Array:
    """Sum of partial · tangent over the arguments that are differentiated.

    ``partials`` are functions without arguments, called only where needed.

    >>> ones = jnp.ones(2)
    >>> weighted_tangents([lambda: 2 * ones, lambda: 3 * ones], (ones, ones), ones)
    Array([5., 5.], dtype=float32)
    """
    total = jnp.zeros_like(like)
    for derivative, tangent in zip(partials, tangents, strict=True):
        if not isinstance(tangent, SymbolicZero):
            total = total + derivative() * tangent
    return total


GPUS = ("cuda", "rocm")
ACCELERATORS = (*GPUS, "tpu")


def apart(platforms: tuple[str, ...], number: int, *arrays: Array) -> tuple[Array, ...]:
    """The same values, which the compilers of some platforms do not know to be the same.

    What a derivative shares with its value, or with another derivative, XLA may compute once, write
    to memory and read again, for twice the ideal traffic and more. Computed from arguments of its
    own each fuses into its end, and the ends into one kernel that reads the arguments once: more
    arithmetic, where memory is what takes the time.

    Args:
      platforms: those for which it is so.
      number: 1, 2, ...; copies of one number are known to be the same.
      *arrays: floating point.
    """

    def alike(*arrays: Array) -> tuple[Array, ...]:
        return arrays

    def hidden(*arrays: Array) -> tuple[Array, ...]:
        return tuple(jnp.where(x != x, (1 + number) * x, x) for x in arrays)  # NaN both ways

    copies: tuple[Array, ...] = lax.platform_dependent(
        *arrays, default=alike, **dict.fromkeys(platforms, hidden)
    )
    return copies


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def one_pass(
    function: Callable[..., Array], platforms: tuple[str, ...], *arguments: Array
) -> Array:
    """``function(*arguments)``, elementwise, with its partial derivatives beside the value.

    Reverse mode through many operations becomes several passes over the arrays; a tangent that is
    linear in the arguments', with coefficients from forward derivatives, each :func:`apart` on the
    given platforms, becomes one.

    >>> jax.grad(lambda v: one_pass(lambda a: a * a, ACCELERATORS, v))(3.0)
    Array(6., dtype=float32, weak_type=True)
    """
    return function(*arguments)


def _one_pass_jvp(
    function: Callable[..., Array],
    platforms: tuple[str, ...],
    primals: tuple[Array, ...],
    tangents: tuple[Any, ...],
) -> tuple[Array, Array]:
    def derivative(i: int) -> Array:
        own = apart(platforms, 1 + i, *primals)

        def of_one(v: Array) -> Array:
            return function(*own[:i], v, *own[i + 1 :])

        found: Array = jax.jvp(of_one, (own[i],), (jnp.ones_like(own[i]),))[1]
        return found

    value = one_pass(function, platforms, *primals)
    partials = [partial(derivative, i) for i in range(len(primals))]
    return value, weighted_tangents(partials, tangents, value)


one_pass.defjvp(_one_pass_jvp, symbolic_zeros=True)
