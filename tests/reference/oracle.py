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


# --- triples (low, true, high): the true value and the interval that a result must lie in -------


def excess_of_interval(got, low, true, high):
    """Error of the scalar `got` in units of the permitted one on its side; above 1 is a failure.

    Results below the smallest normal number may be flushed to zero, and those beyond the largest
    finite one are infinity, or that largest number.
    """
    got = np.asarray(got)
    limits = np.finfo(got.dtype)
    tiny, largest = exact(limits.tiny), exact(limits.max)
    if np.isnan(got):
        return math.inf
    if abs(true) == MP.inf:
        return 0.0 if got == float(true) else math.inf
    if np.isinf(got):
        reached = high if got > 0 else -low
        return 0.0 if reached >= largest else math.inf
    error = exact(got) - true
    if (true > largest and exact(got) == largest) or (true < -largest and exact(got) == -largest):
        return 0.0
    return float(abs(error) / ((high - true if error > 0 else true - low) + tiny))


def relative(true, permitted):
    """The triple of a permitted relative error."""
    slack = abs(true) * permitted
    return true - slack, true, true + slack


def _log_cdf(z):
    return z - MP.ln2 if z < 0 else MP.log1p(-MP.exp(-z) / 2)


TAILS = {
    "cdf": lambda z: MP.exp(z) / 2 if z < 0 else 1 - MP.exp(-z) / 2,
    "log_cdf": _log_cdf,
    "survival": lambda z: MP.exp(-z) / 2 if z > 0 else 1 - MP.exp(z) / 2,
    "log_survival": lambda z: _log_cdf(-z),
}


def _around(f, z, slack, factor):
    """Triple of a monotone f where z errs by `slack` and the result by `factor`, relatively."""
    ends = [f(z + side) * (1 + way) for side in (-slack, slack) for way in (-factor, factor)]
    return min(ends), f(z), max(ends)


def tail(name, x, loc, log_scale, roundings=32):
    """Triple of cdf, log_cdf, survival or log_survival at x in (0, 1).

    "Relative error at most 32u (1 + condition)" is read thus: z = (logit x - loc) / b may err by
    32u (|logit x| / b + |z|), as if logit x were an input, and the result by 32u more. To first
    order that is the condition of the value with respect to logit x and to z. Up to a factor of 2
    it is nowhere looser than the condition with respect to (x, loc, log_scale) themselves, and
    near x = 1/2 and x = 1 it is much tighter.
    """
    x = np.asarray(x)
    inv_b, permitted = _inverse_scale(exact(log_scale)), roundings * UNIT[x.dtype]
    t = logit(x)
    z = (t - exact(loc)) * inv_b
    return _around(TAILS[name], z, permitted * (abs(t) * inv_b + abs(z)), permitted)


def tail_float64(name, x, loc, log_scale, roundings=32):
    """`tail` for whole float32 arrays in double precision."""
    x, loc, log_scale = (widen(np.asarray(a, np.float32)) for a in (x, loc, log_scale))
    near_half = np.abs(x - 0.5) < 0.25
    ratio = np.where(near_half, 2 * x - 1, 0) / np.where(near_half, 1 - x, 1)
    t = np.where(near_half, np.log1p(ratio), np.log(x) - np.log1p(-x))
    inv_b, permitted = np.exp(-log_scale), roundings * 2.0**-24
    z = (t - loc) * inv_b
    slack = permitted * (np.abs(t) * inv_b + np.abs(z))

    def f(z):
        z = -z if "survival" in name else z
        small = np.exp(-np.abs(z)) / 2
        if "log" in name:
            return np.where(z < 0, z - np.log(2.0), np.log1p(-small))
        return np.where(z < 0, small, 1 - small)

    ends = [f(z + side) * (1 + way) for side in (-slack, slack) for way in (-permitted, permitted)]
    return np.min(ends, 0), f(z), np.max(ends, 0)


def excess_of_interval_float64(got, low, true, high):
    """`excess_of_interval` for a float32 array."""
    got, limits = np.asarray(got), np.finfo(np.float32)
    finite = np.isfinite(got)
    wide = np.where(finite, widen(np.where(finite, got, np.float32(0))), got)
    with np.errstate(invalid="ignore"):
        error = wide - true
        ratio = np.abs(error) / (np.where(error > 0, high - true, true - low) + limits.tiny)
    reached = np.where(got > 0, high, -low) >= limits.max
    ratio = np.where(np.abs(wide) >= limits.max, np.where(reached, 0.0, np.inf), ratio)
    return np.where(np.isnan(got), np.inf, ratio)


def _sigmoid(y):
    small = MP.exp(-abs(y))
    return (1 if y > 0 else small) / (1 + small)


def _quantile(step, loc, unit, roundings=32):
    """Triple of sigmoid(loc + step): roundings * u in each of loc and step, and in the result."""
    true = _sigmoid(loc + step)
    return relative(true, roundings * unit * (1 + (1 - true) * (abs(loc) + abs(step))))


def isf(q, loc, log_scale):
    """Triple of the inverse of survival, 0 < q < 1."""
    unit, q, b = UNIT[np.asarray(q).dtype], exact(q), MP.exp(exact(log_scale))
    g = MP.log(2 * q) if 2 * q < 1 else -MP.log(2 * (1 - q))
    return _quantile(-b * g, exact(loc), unit)


def central_interval(mass, loc, log_scale):
    """Triples of both ends, sigmoid(loc -+ b g) with g = -ln(1 - mass), 0 <= mass < 1."""
    unit, b = UNIT[np.asarray(mass).dtype], MP.exp(exact(log_scale))
    step = -b * MP.log1p(-exact(mass))
    return _quantile(-step, exact(loc), unit), _quantile(step, exact(loc), unit)


def mode(loc, log_scale):
    """Triple of sigmoid(loc): one exp, one sum, one quotient, below 4 roundings each."""
    assert log_scale < 0
    return relative(_sigmoid(exact(loc)), 16 * UNIT[np.asarray(loc).dtype])


def score(x, loc, log_scale):
    """Pairs for `excess`: the partials of log_prob in loc and in log_scale."""
    return log_prob(x, loc, log_scale)[2:]


def fisher_information(loc, log_scale):
    """Triples of 1 / b^2, by an exponential and a square, and of 1."""
    true = MP.exp(-2 * exact(log_scale))
    return relative(true, 16 * UNIT[np.asarray(log_scale).dtype]), (MP.mpf(1),) * 3


def _exp_minus_two_terms(v):
    """exp(v) - 1 - v to 40 digits."""
    return v * v / 2 * (1 + v / 3) if abs(v) < MP.mpf("1e-20") else MP.expm1(v) - v


def kl_divergence(loc_p, log_scale_p, loc_q, log_scale_q, roundings=16):
    """Triple of KL(p || q) = (e^r - 1 - r) + e^r (d + e^-d - 1), with r = ln(b_p / b_q) and
    d = |loc_p - loc_q| / b_p; two terms, neither of them negative.

    Permitted: 16u (1 + condition) with respect to r and d. These are differences of numbers that
    are given exactly, which floating-point subtraction rounds but once, however near they are.
    But a subnormal loc_p - loc_q may be flushed to zero, as in `log_prob`, and so may each of the
    two.
    """
    dtype = np.asarray(loc_p).dtype
    unit = UNIT[dtype]
    r = exact(log_scale_p) - exact(log_scale_q)
    d = abs(exact(loc_p) - exact(loc_q)) * MP.exp(-exact(log_scale_p))
    ratio, bend = MP.exp(r), _exp_minus_two_terms(-d)
    true = _exp_minus_two_terms(r) + ratio * bend
    if true == 0:
        return (MP.mpf(0),) * 3
    in_r, in_d = abs(r * (MP.expm1(r) + ratio * bend)), abs(d * ratio * MP.expm1(-d))
    low, _, high = relative(true, roundings * unit * (1 + (in_r + in_d) / true))
    tiny = float(np.finfo(dtype).tiny)
    flushed = sum(abs(exact(v)) for v in (loc_p, loc_q) if abs(float(v)) < tiny)
    slope = ratio * abs(MP.expm1(-d)) * MP.exp(-exact(log_scale_p))
    low, high = low - slope * flushed, high + slope * flushed
    if abs(exact(loc_p) - exact(loc_q)) <= tiny:
        low = min(low, _exp_minus_two_terms(r) * (1 - roundings * unit))
    return low, true, high


@functools.cache
def pixel_edges(pixel, eps):
    """Logits of both edges of a pixel's bin; -inf and inf for the outer ones."""
    eps = exact(np.float64(eps))

    def edge(twice):
        x = (1 - 2 * eps) * twice / 510 + eps
        return MP.log(x / (1 - x)) if twice != 255 else MP.mpf(0)

    return (
        edge(2 * pixel - 1) if pixel > 0 else -MP.inf,
        edge(2 * pixel + 1) if pixel < 255 else MP.inf,
    )


def _log_mass(low, high, loc, inv_b):
    """ln of the Laplace mass between two edges."""
    low, high = ((v - loc) * inv_b if abs(v) < MP.inf else v for v in (low, high))
    if low > -high:  # the bin's larger part is right of loc: reflect
        low, high = -high, -low
    if low == -MP.inf:
        return _log_cdf(high)
    if high <= 0:
        return high - MP.ln2 + MP.log(-MP.expm1(low - high))
    outside = (MP.exp(-high) + MP.exp(low)) / 2
    if 2 * outside < 1:
        return MP.log1p(-outside)
    return MP.log(-(MP.expm1(-high) + MP.expm1(low)) / 2)


def pixel_log_prob(pixel, loc, log_scale, eps=0.1, roundings=32):
    """Triple of the log mass of an 8-bit value.

    "Relative error at most 32u (1 + condition), over loc and log_scale" is read as: loc and
    log_scale may each be moved by a relative 32u (so not at all where they are 0) and the value by
    as much again; which to first order is that. The mass rises and then falls in either of them,
    so that its extremes lie at the ends of these ranges, or where loc is the middle of the bin.
    """
    unit = UNIT[np.asarray(loc).dtype]
    low, high = pixel_edges(int(pixel), eps)
    loc, log_scale, moved = exact(loc), exact(log_scale), roundings * unit
    locs = [loc * (1 - moved), loc * (1 + moved)]
    if 0 < pixel < 255:
        locs.append(min(max((low + high) / 2, min(locs)), max(locs)))
    scales = [MP.exp(-log_scale * (1 + way)) for way in (-moved, moved)]
    values = [_log_mass(low, high, m, inv_b) for m in locs for inv_b in scales]
    true = _log_mass(low, high, loc, MP.exp(-log_scale))
    return min([*values, true]) * (1 + moved), true, max([*values, true]) * (1 - moved)


def pixel_levels(pixel, loc, log_scale, eps=0.1):
    """Triples of the cdf at both edges of a pixel's bin, with the bound of `tail`."""
    unit = UNIT[np.asarray(loc).dtype]
    inv_b, permitted = MP.exp(-exact(log_scale)), 32 * unit
    out = []
    for t, end in zip(pixel_edges(int(pixel), eps), (0, 1), strict=True):
        if abs(t) == MP.inf:
            out.append((MP.mpf(end),) * 3)
        else:
            z = (t - exact(loc)) * inv_b
            slack = permitted * (abs(t) * inv_b + abs(z))
            out.append(_around(TAILS["cdf"], z, slack, permitted))
    return out


def pixel_pit(pixel, loc, log_scale, eps=0.1):
    """Triple of the middle of the levels at both edges, with 8 roundings of its own."""
    low, high = pixel_levels(pixel, loc, log_scale, eps)
    slack = 8 * UNIT[np.asarray(loc).dtype]
    return tuple(
        (a + b) / 2 * (1 + way * slack) for a, b, way in zip(low, high, (-1, 0, 1), strict=True)
    )


def fit(x):
    """Triples of (loc, log_scale) for a vector x: median and ln of the mean absolute deviation.

    Permitted: 32u of |loc|; and 32u of the logits, which the mean deviation may be small beside,
    with 32u of log_scale itself.
    """
    unit, t = UNIT[np.asarray(x).dtype], sorted(logit(v) for v in np.asarray(x))
    n = len(t)
    middle = (t[(n - 1) // 2] + t[n // 2]) / 2
    spread = MP.fsum(abs(v - middle) for v in t) / n
    mean_size = MP.fsum(abs(v) for v in t) / n + abs(middle)
    terms = (abs(t[(n - 1) // 2]) + abs(t[n // 2])) / 2
    if spread == 0:
        return relative(middle, 32 * unit), (-MP.inf,) * 3
    value = MP.log(spread)
    slack = 32 * unit * (1 + mean_size / spread + abs(value))
    low, high = middle - 32 * unit * terms, middle + 32 * unit * terms
    return (low, middle, high), (value - slack, value, value + slack)
