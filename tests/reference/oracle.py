"""Sixty-digit reference for the logit-Laplace density, read from the very bits of its inputs.

Written from the definitions alone: X ~ Laplace(loc, b = exp(log_scale)), x = sigmoid(X), hence

    log f(x) = -|logit x - loc| / b - log_scale - ln 2 - ln x - ln(1 - x).

Inputs are numpy float32 or float64 scalars. They are decoded as integers, because a processor that
flushes subnormal numbers to zero would change them in any floating-point conversion.
"""

import functools
import math

import mpmath
import numpy as np

MP = mpmath.mp.clone()
MP.dps = 60

# Unit round-off (half the distance from 1 to the next number) of each working precision.
UNIT = {np.dtype("float32"): 2.0**-24, np.dtype("float64"): 2.0**-53}
LAYOUT = {np.dtype("float32"): (np.uint32, 8, 23), np.dtype("float64"): (np.uint64, 11, 52)}


def decode(values):
    """Integers (m, e) with values = m * 2**e exactly, for finite values, as int64 arrays."""
    values = np.asarray(values)
    unsigned, exponent_bits, fraction_bits = LAYOUT[values.dtype]
    bits = values.view(unsigned)
    fraction = (bits & unsigned(2**fraction_bits - 1)).astype(np.int64)
    biased = ((bits >> unsigned(fraction_bits)) & unsigned(2**exponent_bits - 1)).astype(np.int64)
    if np.any(biased == 2**exponent_bits - 1):
        raise ValueError("infinite or NaN")
    negative = bits >> unsigned(exponent_bits + fraction_bits)
    mantissa = np.where(biased > 0, fraction + 2**fraction_bits, fraction)
    exponent = np.maximum(biased, 1) - (2 ** (exponent_bits - 1) - 1) - fraction_bits
    return np.where(negative, -mantissa, mantissa), exponent


def exact(value):
    """The number that a finite float32 or float64 scalar stands for, exactly."""
    mantissa, exponent = decode(value)
    return MP.ldexp(MP.mpf(int(mantissa)), int(exponent))


def widen(values):
    """float32 to float64, exactly, subnormal numbers included."""
    return np.ldexp(*(part.astype(t) for part, t in zip(decode(values), (float, int), strict=True)))


def float32_from_bits(bits):
    """The float32 numbers of given bit patterns."""
    return np.asarray(bits, np.uint32).view(np.float32)


@functools.cache
def _of_x(bits, dtype):
    x = exact(np.asarray(bits, LAYOUT[np.dtype(dtype)][0]).view(dtype))
    ln_x, ln_1mx = MP.log(x), MP.log1p(-x)
    return x, ln_x, ln_1mx, MP.mpf(0) if 2 * x == 1 else ln_x - ln_1mx


@functools.cache
def _inverse_scale(log_scale):
    return MP.exp(-log_scale)


def logit(x):
    """Logit of a scalar x in (0, 1)."""
    x = np.asarray(x)
    return _of_x(int(x.view(LAYOUT[x.dtype][0])), x.dtype.name)[3]


def log_prob(x, loc, log_scale):
    """Return four pairs, for the value and its partials in x, loc and log_scale.

    Each pair is (true values, sum of the sizes of the terms). The truth is a list: where loc is so
    near to logit x that the permitted error in logit x, 8u |logit x|, can turn the sign of their
    difference, or that this difference is subnormal (processors may flush it to zero), the partials
    of |logit x - loc| may be those of either side or of the corner.
    """
    x = np.asarray(x)
    unit, tiny = UNIT[x.dtype], float(np.finfo(x.dtype).tiny)
    x, ln_x, ln_1mx, t = _of_x(int(x.view(LAYOUT[x.dtype][0])), x.dtype.name)
    loc, log_scale = exact(loc), exact(log_scale)
    inv_b = _inverse_scale(log_scale)
    gap, jacobian = abs(t - loc), 1 / (x * (1 - x))
    signs = [int(MP.sign(t - loc))]
    if 0 < gap <= max(8 * unit * abs(t), tiny):
        signs = [-1, 0, 1]
    value = -gap * inv_b - log_scale - MP.ln2 - ln_x - ln_1mx
    steep = abs(t) * inv_b + gap * inv_b
    return (
        ([value], steep + abs(log_scale) + abs(ln_x) + abs(ln_1mx) + 1),
        (
            [-s * inv_b * jacobian - 1 / x + 1 / (1 - x) for s in signs],
            inv_b * jacobian + 1 / x + 1 / (1 - x),
        ),
        ([s * inv_b for s in signs], inv_b),
        ([gap * inv_b - 1], steep + 1),
    )


def excess(got, truths, terms):
    """Error of the scalar `got` as a multiple of the permitted 8u * terms; above 1 is a failure.

    Where the true value does not fit the precision of `got`, and only there, infinity is right, and
    so is the largest finite number.
    """
    got = np.asarray(got)
    unit, largest = UNIT[got.dtype], exact(np.finfo(got.dtype).max)
    if np.isnan(got):
        return math.inf
    best = math.inf
    for true in truths:
        overflows = abs(true) * (1 + 8 * unit) > largest
        if np.isinf(got) or (overflows and abs(exact(got)) == largest):
            ratio = 0.0 if overflows and MP.sign(true) == np.sign(got) else math.inf
        else:
            ratio = float(abs(exact(got) - true) / (8 * unit * terms))
        best = min(best, ratio)
    return best


def log_prob_float64(x, loc, log_scale):
    """`log_prob` for whole float32 arrays in double precision: 2**29 times finer than the bound.

    Returns four pairs (array of true values on a leading axis of candidates, terms).
    """
    x, loc, log_scale = (widen(np.asarray(a, np.float32)) for a in (x, loc, log_scale))
    ln_x, ln_1mx = np.log(x), np.log1p(-x)
    near_half = np.abs(x - 0.5) < 0.25
    ratio = np.where(near_half, 2 * x - 1, 0) / np.where(near_half, 1 - x, 1)
    t = np.where(near_half, np.log1p(ratio), ln_x - ln_1mx)
    inv_b, gap, jacobian = np.exp(-log_scale), np.abs(t - loc), 1 / (x * (1 - x))
    turns = (gap > 0) & (gap <= np.maximum(8 * 2.0**-24 * np.abs(t), 2.0**-126))
    sign = np.sign(t - loc)
    signs = np.stack([sign, np.where(turns, 0, sign), np.where(turns, -sign, sign)])
    steep = np.abs(t) * inv_b + gap * inv_b
    value = -gap * inv_b - log_scale - np.log(2.0) - ln_x - ln_1mx
    return (
        (value[None], steep + np.abs(log_scale) + np.abs(ln_x) + np.abs(ln_1mx) + 1),
        (
            -signs * inv_b * jacobian - (1 - 2 * x) * jacobian,
            inv_b * jacobian + 1 / x + 1 / (1 - x),
        ),
        (signs * inv_b, inv_b),
        ((gap * inv_b - 1)[None], steep + 1),
    )


def excess_float64(got, truths, terms):
    """`excess` for a float32 array against `log_prob_float64`."""
    got, unit, largest = np.asarray(got), 2.0**-24, float(np.finfo(np.float32).max)
    wide = np.where(np.isfinite(got), widen(np.where(np.isfinite(got), got, np.float32(0))), got)
    overflows = np.abs(truths) * (1 + 8 * unit) > largest
    with np.errstate(invalid="ignore"):
        ratio = np.abs(wide - truths) / (8 * unit * terms)
    right = overflows & (np.sign(truths) == np.sign(got))
    ratio = np.where(np.isinf(got), np.inf, ratio)
    ratio = np.where(right & (np.abs(wide) >= largest), 0.0, ratio)
    return np.where(np.isnan(got), np.inf, ratio.min(0))


def cdf(x, loc, log_scale, roundings):
    """The interval of F(z), z = (logit x - loc) / b, that errors in z of so many roundings give.

    The errors are roundings * u * (|logit x| / b + |z|), the condition of ln F, and as many
    relative roundings of F itself. (Not to first order: with a sharp b the whole interval from 0
    to 1 can lie within the rounding of logit x.)
    """
    x = np.asarray(x)
    t, loc, inv_b = logit(x), exact(loc), _inverse_scale(exact(log_scale))
    z = (t - loc) * inv_b
    relative = roundings * UNIT[x.dtype]
    slack = relative * (abs(t) * inv_b + abs(z))
    low, high = (MP.exp(v) / 2 if v < 0 else 1 - MP.exp(-v) / 2 for v in (z - slack, z + slack))
    return low * (1 - relative), high * (1 + relative)


def quantile(p, loc, log_scale):
    """Return (x, condition): x = sigmoid(loc + b g), condition = |loc| + b |g|, 0 < p < 1."""
    p, loc = exact(p), exact(loc)
    g = MP.log(2 * p) if 2 * p < 1 else -MP.log(2 * (1 - p))
    step = g / _inverse_scale(exact(log_scale))
    y = loc + step
    value = 1 / (1 + MP.exp(-y)) if y > 0 else MP.exp(y) / (1 + MP.exp(y))
    return value, abs(loc) + abs(step)
