r"""The logit-Laplace distribution: its density and what follows from it.

If X ~ Laplace(μ, b) then x = sigmoid(X) has the logit-Laplace density (Ramesh et al. 2021,
"Zero-Shot Text-to-Image Generation", arXiv:2102.12092, appendix A.3, equation 2)

    f(x | μ, b) = exp(-|logit x - μ| / b) / (2 b x (1 - x)),    0 < x < 1.

Throughout: ``x`` lies in (0, 1), ``loc`` is μ (any real, in logit space), ``log_scale`` is ln b.
Every function is pure and elementwise, broadcasts its arguments, computes in float32 (float64 if
an argument is float64 and x64 is on) and returns that type, so 16-bit inputs give float32.
Logarithms are natural: densities are in nats.

Three choices make the results exact to rounding and total:

* logit x is ``log1p((1 - 2m) / m)`` with m = min(x, 1 - x), and carries the sign of x - 1/2.
  The usual ln x - ln(1 - x) cancels near x = 1/2; this form has a small *relative* error there,
  which is what a sharp scale b multiplies.
* Subnormal x is read through its bits, because CPUs and accelerators under XLA flush subnormal
  operands to zero: ``x > 0`` is False for them, and their logarithm is wrong.
* Derivatives are written by hand (``jax.custom_jvp``, which transposes to the VJP), so that value
  and gradients come from one pass and never from 0 · inf. A derivative whose true value
  overflows saturates at the largest finite number.
"""

import dataclasses
import operator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.experimental import checkify
from jax.typing import ArrayLike

_LN2 = float(np.log(2.0))


# --- Arguments: types, shapes, ranges ----------------------------------------------------------


def working_arrays(**named: ArrayLike) -> list[Array]:
    """Casts the named arguments to the working type: float64 if one of them is, else float32.

    Casts are explicit, so that callers may forbid implicit promotion
    (``jax_numpy_dtype_promotion='strict'``).

    Raises:
      TypeError: an argument is boolean, complex or not numeric.

    >>> [a.dtype.name for a in working_arrays(x=jnp.float16(0.5), loc=0)]
    ['float32', 'float32']
    """
    arrays = {name: jnp.asarray(value) for name, value in named.items()}
    for name, array in arrays.items():
        if not (
            jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
        ):
            raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    strong = [a.dtype for a in arrays.values() if not a.weak_type]
    floats = [d for d in strong if jnp.issubdtype(d, jnp.floating)]
    default = jnp.float32 if floats else jnp.result_type(float)
    dtype = jnp.float64 if jnp.dtype("float64") in floats else default
    return [lax.convert_element_type(a, dtype) for a in arrays.values()]


def broadcast(**named: ArrayLike) -> list[Array]:
    """The named arguments in the working type, broadcast against each other.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> [a.shape for a in broadcast(x=jnp.zeros((2, 1)), loc=jnp.zeros(3))]
    [(2, 3), (2, 3)]
    """
    arrays = working_arrays(**named)
    try:
        shape = jnp.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError:
        shapes = ", ".join(f"{name} {a.shape}" for name, a in zip(named, arrays, strict=True))
        raise ValueError(f"shapes do not broadcast: {shapes}") from None
    return [jnp.broadcast_to(a, shape) for a in arrays]


def _reject_integers(name: str, value: ArrayLike) -> None:
    """Integer arrays as ``x`` are raw pixels passed by mistake; a Python 0 or 1 is an edge."""
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.integer) and not array.weak_type:
        raise TypeError(
            f"{name} must be floating point in (0, 1), got dtype {array.dtype}; "
            "map 8-bit pixels with map_pixels, or use logit_laplace_pixel_loss"
        )


def debug_parameters(loc: Array, log_scale: Array) -> None:
    """Range checks that run only in a caller functionalised by ``checkify.checkify``.

    >>> def f(m):
    ...     debug_parameters(m, m)
    >>> error, _ = checkify.checkify(f)(jnp.array(jnp.nan))
    >>> "loc must be finite" in error.get()
    True
    """
    checkify.debug_check(jnp.all(jnp.isfinite(loc)), "loc must be finite")
    checkify.debug_check(jnp.all(jnp.isfinite(log_scale)), "log_scale must be finite")


# --- Elementary functions on (0, 1), exact for subnormal arguments too --------------------------


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.int32 if x.dtype == jnp.float32 else jnp.int64)


def _inside(x: Array) -> Array:
    """0 < x < 1, decided on the bits: IEEE comparisons flush subnormal x to 0."""
    bits = _bits(x)
    return (bits > 0) & (bits < _bits(jnp.ones((), x.dtype)))


def _subnormal(x: Array) -> tuple[Array, Array, int]:
    """For x >= 0: (is x subnormal or 0, its significand k as a normal float, e) with x = k 2**e."""
    info = jnp.finfo(x.dtype)
    bits = _bits(x)
    return (
        bits < _bits(jnp.asarray(info.tiny, x.dtype)),
        bits.astype(x.dtype),
        info.minexp - info.nmant,
    )


def _log(x: Array) -> Array:
    """Natural logarithm of x > 0."""
    small, significand, exponent = _subnormal(x)
    y = jnp.where(small, significand, x)
    return jnp.log(y) + jnp.where(small, exponent * _LN2, 0.0).astype(x.dtype)


def _divide(c: Array, x: Array) -> Array:
    """c/x for x > 0; ±inf only where the quotient overflows."""
    small, significand, exponent = _subnormal(x)
    quotient = c / jnp.where(small, significand, x)
    # 2**-exponent overflows, so it is applied in halves; each is chosen element by element, or the
    # compiler would multiply the two constants into that infinity.
    half = exponent // 2
    quotient = quotient * jnp.where(small, 2.0**-half, 1.0).astype(x.dtype)
    return quotient * jnp.where(small, 2.0 ** (half - exponent), 1.0).astype(x.dtype)


def _saturate(y: Array) -> Array:
    """Replaces ±inf by the largest finite numbers; NaN stays."""
    largest = jnp.finfo(y.dtype).max
    return jnp.clip(y, -largest, largest)


@jax.custom_jvp
def _logit(x: Array) -> Array:
    """ln(x / (1 - x)) for 0 < x < 1, with small relative error also near 1/2."""
    # 1 - x is exact where it is the smaller one (x >= 1/2), and 1 - 2m where it cancels.
    upper = x > 0.5
    m = jnp.where(upper, 1.0 - x, x)
    small, _, _ = _subnormal(m)
    magnitude = jnp.where(small, -_log(m), jnp.log1p((1.0 - 2.0 * m) / m))
    return jnp.where(upper, magnitude, -magnitude)


@_logit.defjvp
def _logit_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return _logit(x), _saturate(_divide(jnp.ones_like(x), x) + 1.0 / (1.0 - x)) * dx


def _log_jacobian(x: Array) -> Array:
    """ln(x (1 - x)), the log of dx / d(logit x)."""
    small, _, _ = _subnormal(x)
    return jnp.where(small, _log(x), jnp.log(jnp.where(small, 1.0, x * (1.0 - x))))


# --- The Laplace part, in logit space -----------------------------------------------------------


def _standardise(t: Array, loc: Array, log_scale: Array) -> tuple[Array, Array]:
    """(|t - μ| / b, sign(t - μ) / b), both 0 at a tie, however small b is."""
    d = t - loc
    inv_scale = jnp.exp(-log_scale)
    tie = d == 0
    return (
        jnp.where(tie, 0.0, jnp.abs(d) * inv_scale),
        jnp.where(tie, 0.0, jnp.sign(d) * inv_scale),
    )


def laplace_nll(t: Array, loc: Array, log_scale: Array) -> Array:
    """|t - μ|/b + ln b + ln 2: the Laplace negative log density in logit space, in nats.

    An infinite ``log_scale`` (b = 0 or ∞) counts as the largest finite one.

    >>> laplace_nll(jnp.array(1.0), jnp.array(1.0), jnp.array(0.0))
    Array(0.6931472, dtype=float32)
    """
    distance, _ = _standardise(t, loc, log_scale)
    return distance + _saturate(log_scale) + _LN2


def laplace_nll_partials(t: Array, loc: Array, log_scale: Array) -> tuple[Array, Array]:
    """Derivatives of :func:`laplace_nll` in loc and log_scale: -sign(t - μ)/b and 1 - |t - μ|/b.

    >>> laplace_nll_partials(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0))
    (Array(-1., dtype=float32), Array(0., dtype=float32))
    """
    distance, slope = _standardise(t, loc, log_scale)
    return _saturate(-slope), _saturate(1.0 - distance)


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


# --- Density ------------------------------------------------------------------------------------


@jax.custom_jvp
def _log_prob(x: Array, loc: Array, log_scale: Array) -> Array:
    inside = _inside(x)
    safe = jnp.where(inside | jnp.isnan(x), x, 0.5)
    value = -(laplace_nll(_logit(safe), loc, log_scale) + _log_jacobian(safe))
    # The second condition keeps the NaN of a NaN parameter.
    return jnp.where(inside | jnp.isnan(value), value, -jnp.inf)


def _log_prob_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Any, Any, Any]
) -> tuple[Array, Array]:
    x, loc, log_scale = primals
    inside = _inside(x)
    safe = jnp.where(inside | jnp.isnan(x), x, 0.5)
    t = _logit(safe)

    def masked(y: Array) -> Array:
        return jnp.where(inside | jnp.isnan(x), y, 0.0)

    def by_x() -> Array:
        _, slope = _standardise(t, loc, log_scale)
        # Partial fractions of -slope/(x(1-x)) - 1/x + 1/(1-x): no inf - inf, and exact for b = 1.
        partial_x = -_divide(slope + 1.0, safe) - (slope - 1.0) / (1.0 - safe)
        return masked(_saturate(partial_x))

    def by_loc() -> Array:
        return masked(-laplace_nll_partials(t, loc, log_scale)[0])

    def by_log_scale() -> Array:
        return masked(-laplace_nll_partials(t, loc, log_scale)[1])

    value = _log_prob(x, loc, log_scale)
    return value, weighted_tangents([by_x, by_loc, by_log_scale], tangents, value)


_log_prob.defjvp(_log_prob_jvp, symbolic_zeros=True)


@jax.jit
def log_prob(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    r"""Log density of x, in nats: -\|logit x - μ\|/b - ln b - ln 2 - ln x - ln(1-x).

    It is the density of ``x`` itself. For pixels mapped by :func:`map_pixels` add ln(1 - 2ε) a
    value for the density of raw pixels in [0, 1], and -ln 255 more for one per 8-bit level.
    A positive log density is normal: it has no upper bound as b → 0.

    Args:
      x: values in (0, 1), floating point, any shape.
      loc: μ, any real, broadcastable with ``x``.
      log_scale: ln b, broadcastable with ``x``.

    Returns:
      The elementwise log density, of the broadcast shape; -inf, with gradients 0, where x <= 0 or
      x >= 1; NaN where an argument is NaN. The gradient in ``loc`` is 0 at logit x = μ. The
      rounding error is at most 8u (|t|/b + |t-μ|/b + |ln b| + |ln x| + |ln(1-x)| + 1), with t the
      logit of x and u = 2**-24 in float32.

    Raises:
      TypeError: ``x`` is an integer array (pixels that were not mapped).
      ValueError: the shapes do not broadcast.

    >>> log_prob(jnp.array([0.0, 0.5, 0.9]), 0.0, 0.0)
    Array([       -inf,  0.6931472 , -0.48242...], dtype=float32)
    """
    _reject_integers("x", x)
    x, loc, log_scale = broadcast(x=x, loc=loc, log_scale=log_scale)
    checkify.debug_check(jnp.all((x > 0) & (x < 1)), "x must lie in (0, 1)")
    debug_parameters(loc, log_scale)
    return _log_prob(x, loc, log_scale)


# --- Distribution function, quantiles, samples --------------------------------------------------


@jax.custom_jvp
def _cdf(x: Array, loc: Array, log_scale: Array) -> Array:
    inside = _inside(x)
    safe = jnp.where(inside, x, 0.5)
    distance, slope = _standardise(_logit(safe), loc, log_scale)
    tail = 0.5 * jnp.exp(-distance)
    value = jnp.where(slope > 0, 1.0 - tail, tail)
    beyond = jnp.where(x >= 1, 1.0, jnp.where(jnp.isnan(x), jnp.nan, 0.0))
    return jnp.where(inside | jnp.isnan(value), value, beyond)


def _cdf_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Any, Any, Any]
) -> tuple[Array, Array]:
    x, loc, log_scale = primals
    inside = _inside(x)
    safe = jnp.where(inside | jnp.isnan(x), x, 0.5)
    distance, slope = _standardise(_logit(safe), loc, log_scale)

    def masked(y: Array) -> Array:
        return jnp.where(inside | jnp.isnan(x), _saturate(y), 0.0)

    def by_x() -> Array:
        return masked(jnp.exp(_log_prob(x, loc, log_scale)))

    def by_loc() -> Array:
        return masked(-0.5 * jnp.exp(-distance - log_scale))

    def by_log_scale() -> Array:
        # distance · exp(-distance) with distance = inf is 0, not NaN.
        bounded = jnp.where(jnp.isinf(distance), 0.0, distance)
        return masked(-0.5 * jnp.sign(slope) * bounded * jnp.exp(-distance))

    value = _cdf(x, loc, log_scale)
    return value, weighted_tangents([by_x, by_loc, by_log_scale], tangents, value)


_cdf.defjvp(_cdf_jvp, symbolic_zeros=True)


@jax.jit
def cdf(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """Cumulative distribution function P(X <= x).

    With z = (logit x - μ)/b it is exp(z)/2 for z <= 0 and 1 - exp(-z)/2 above.

    Args:
      x: floating point, any real; the function is 0 for x <= 0 and 1 for x >= 1.
      loc: μ, broadcastable with ``x``.
      log_scale: ln b, broadcastable with ``x``.

    Returns:
      Probabilities in [0, 1], of the broadcast shape; NaN where an argument is NaN. Its gradient
      in ``x`` is the density.

    Raises:
      TypeError: ``x`` is an integer array.
      ValueError: the shapes do not broadcast.

    >>> cdf(jnp.array([-1.0, 0.5, 2.0]), 0.0, 0.0)
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    _reject_integers("x", x)
    x, loc, log_scale = broadcast(x=x, loc=loc, log_scale=log_scale)
    debug_parameters(loc, log_scale)
    return _cdf(x, loc, log_scale)


@jax.jit
def quantile(p: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """The x with cdf(x) = p: sigmoid(μ + b z), z = ln 2p for p <= 1/2 and -ln 2(1-p) above.

    Args:
      p: probabilities, any shape.
      loc: μ, broadcastable with ``p``.
      log_scale: ln b, broadcastable with ``p``.

    Returns:
      Values in [0, 1], of the broadcast shape: 0 at p = 0, 1 at p = 1, NaN for p outside [0, 1].
      (A quantile closer to 1 than half a unit of rounding is 1.) Gradients at p = 0 and p = 1
      are 0.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> quantile(jnp.array([0.0, 0.5, 1.0, 1.5]), 0.0, 0.0)
    Array([0. , 0.5, 1. , nan], dtype=float32)
    """
    p, loc, log_scale = broadcast(p=p, loc=loc, log_scale=log_scale)
    debug_parameters(loc, log_scale)
    inside = _inside(p)
    safe = jnp.where(inside, p, 0.5)
    upper = safe > 0.5
    m = jnp.where(upper, 1.0 - safe, safe)  # exact where it is taken
    # ln 2m <= 0. Near m = 1/2, where it cancels, by log1p of a positive number: of a negative one
    # it is inaccurate on some platforms.
    near = m > 0.25
    z = jnp.where(
        near,
        -jnp.log1p((1.0 - 2.0 * m) / jnp.where(near, 2.0 * m, 1.0)),
        # Filled with 1, not 1/4: that would compile to a minimum, which flushes subnormal m to 0.
        _log(jnp.where(near, 1.0, m)) + _LN2,
    )
    value = jax.nn.sigmoid(_shift(loc, jnp.where(upper, -z, z), log_scale))
    # A subnormal p < 0 compares equal to 0, also on its bits where LLVM turns "all bits but the
    # sign are 0" back into that comparison; a range of bits it leaves alone.
    minus_zero = jnp.iinfo(_bits(p).dtype).min
    below = (_bits(p) > minus_zero) & (_bits(p) < 0)
    beyond = jnp.where((p == 0) & ~below, 0.0, jnp.where(p == 1, 1.0, jnp.nan))
    return jnp.where(inside, value, jnp.where(jnp.isnan(value), value, beyond))


def _shift(loc: Array, z: Array, log_scale: Array) -> Array:
    """μ + b z, where b = inf does not turn z = 0 into NaN."""
    scale = _saturate(jnp.exp(log_scale))
    return loc + scale * z


@partial(jax.jit, static_argnames=("shape",))
def _sample(key: Array, loc: Array, log_scale: Array, shape: tuple[int, ...]) -> Array:
    z = jax.random.laplace(key, shape, loc.dtype)
    x = jax.nn.sigmoid(_shift(loc, z, log_scale))
    info = jnp.finfo(loc.dtype)
    # lax.clamp, not jnp.clip: the end points are the open interval's, 1 - 2**-24 in float32.
    return lax.clamp(jnp.asarray(info.tiny, x.dtype), x, jnp.asarray(1.0 - info.epsneg, x.dtype))


def sample(
    key: Array, loc: ArrayLike, log_scale: ArrayLike, shape: int | tuple[int, ...] | None = None
) -> Array:
    """Reparameterised draws: sigmoid(μ + b z) with z a standard Laplace variable.

    Args:
      key: a JAX random key.
      loc: μ, any shape.
      log_scale: ln b, broadcastable with ``loc``.
      shape: the full shape of the result, to which the broadcast of ``loc`` and ``log_scale`` must
        itself broadcast; that broadcast shape by default.

    Returns:
      Draws of that shape inside the open interval (0, 1), differentiable in ``loc`` and
      ``log_scale``. Draws that would round to 0 or 1 are moved to the nearest normal float inside.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> sample(jax.random.key(0), jnp.zeros(3), -1.0, shape=(2, 3)).shape
    (2, 3)
    """
    loc, log_scale = broadcast(loc=loc, log_scale=log_scale)
    debug_parameters(loc, log_scale)
    if shape is None:
        shape = loc.shape
    import chex  # here and not above: it loads test frameworks, a tenth of jax's own import time

    sizes = (shape,) if hasattr(shape, "__index__") else shape
    shape = tuple(operator.index(n) for n in sizes)
    try:
        chex.assert_is_broadcastable(loc.shape, shape)
    except AssertionError:
        raise ValueError(
            f"shape {shape} is not one that the parameters' shape {loc.shape} broadcasts to; "
            "shape is the full shape of the result"
        ) from None
    return _sample(key, jnp.broadcast_to(loc, shape), jnp.broadcast_to(log_scale, shape), shape)


@jax.jit
def median(loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """The median of x, sigmoid(μ); a reconstruction by sigmoid(μ) is this, not the mean.

    Args:
      loc: μ, any shape.
      log_scale: ln b, broadcastable with ``loc``; it does not change the result's value.

    Returns:
      Medians in [0, 1], of the broadcast shape.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> median(0.0, -3.0)
    Array(0.5, dtype=float32)
    """
    loc, log_scale = broadcast(loc=loc, log_scale=log_scale)
    debug_parameters(loc, log_scale)
    return jax.nn.sigmoid(loc)


# --- The same as an object ----------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogitLaplace:
    """A logit-Laplace distribution as a pytree of its two parameters.

    The methods are this module's functions with the parameters filled in. An instance passes
    through ``jit``, ``vmap``, ``scan`` and tree maps like any other pytree.

    Attributes:
      loc: μ, any real, in logit space.
      log_scale: ln b, broadcastable with ``loc``.

    >>> d = LogitLaplace(jnp.array([0.0, 1.0]), -1.0)
    >>> d.batch_shape
    (2,)
    >>> jax.jit(lambda d: d.median())(d)
    Array([0.5      , 0.7310586], dtype=float32)
    """

    loc: ArrayLike
    log_scale: ArrayLike

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The broadcast shape of the parameters."""
        return jnp.broadcast_shapes(jnp.shape(self.loc), jnp.shape(self.log_scale))

    def log_prob(self, x: ArrayLike) -> Array:
        """Log density in nats; see :func:`log_prob`."""
        return log_prob(x, self.loc, self.log_scale)

    def cdf(self, x: ArrayLike) -> Array:
        """P(X <= x); see :func:`cdf`."""
        return cdf(x, self.loc, self.log_scale)

    def quantile(self, p: ArrayLike) -> Array:
        """Inverse of the cdf; see :func:`quantile`."""
        return quantile(p, self.loc, self.log_scale)

    def sample(self, key: Array, shape: tuple[int, ...] | None = None) -> Array:
        """Draws of the given full shape; see :func:`sample`."""
        return sample(key, self.loc, self.log_scale, shape)

    def median(self) -> Array:
        """Median of x; see :func:`median`."""
        return median(self.loc, self.log_scale)
