"""Sixty-digit log masses of the likelihoods, from their definitions: P(bin) = F(upper) - F(lower).

On the line a value k has the bin [(2k-256)/255, (2k-254)/255] of y = 2k/255 - 1; in logit space
the bin [k-1/2, k+1/2]/255 goes through logit((1-2e)v + e). The first and last bins are unbounded,
or end at -1 and 1 where the family lives on that interval.
"""

from oracle import MP, exact

ONE = MP.mpf(1)


def line_ends(k, closed=False):
    """Ends of the bin on the line; None for an infinite one."""
    outer = (-ONE, ONE) if closed else (None, None)
    return (
        outer[0] if k == 0 else MP.mpf(2 * k - 256) / 255,
        outer[1] if k == 255 else MP.mpf(2 * k - 254) / 255,
    )


def logit_ends(k, eps):
    """Ends of the bin in logit space; eps is the float64 that the library is given."""
    ends = []
    for y in line_ends(k):
        x = None if y is None else (1 - 2 * MP.mpf(eps)) * (y + 1) / 2 + MP.mpf(eps)
        ends.append(None if x is None else MP.log(x / (1 - x)))
    return tuple(ends)


# Upper tails of the standard shapes, for a of either sign.
TAILS = {
    "laplace": lambda a: MP.exp(-a) / 2 if a > 0 else 1 - MP.exp(a) / 2,
    "normal": lambda a: MP.erfc(a / MP.sqrt(2)) / 2,
    "logistic": lambda a: 1 / (1 + MP.exp(a)) if a < 0 else MP.exp(-a) / (1 + MP.exp(-a)),
}


def mass(shape, ends, loc, scale):
    """P(lower < loc + scale Z < upper), both tails taken where they are small."""
    tail = TAILS[shape]
    z0, z1 = (None if end is None else (end - loc) / scale for end in ends)
    if z0 is None:
        return ONE if z1 is None else tail(-z1)
    if z1 is None:
        return tail(z0)
    if z0 >= 0:
        return tail(z0) - tail(z1)
    if z1 <= 0:
        return tail(-z1) - tail(-z0)
    return 1 - tail(-z0) - tail(z1)


def log_mass(family, k, loc, log_scale, eps=None):
    """Log mass of k in a family with location and scale, both mpf."""
    scale = MP.exp(log_scale)
    shape = family.removeprefix("logit_").removeprefix("truncated_")
    if family.startswith("truncated_"):
        part = mass(shape, line_ends(k, closed=True), loc, scale)
        return MP.log(part / mass(shape, (-ONE, ONE), loc, scale))
    ends = logit_ends(k, eps) if family.startswith("logit_") else line_ends(k)
    return MP.log(mass(shape, ends, loc, scale))


def log_mass_interval(family, k, loc, log_scale, eps=None, roundings=8):
    """(low, true, high): what relative errors of ``roundings`` u of the distances and of b allow.

    The distances are those of the bin's ends (or those of the support, where it is truncated) from
    the location; their error is that of the location. To these come as many roundings of
    the value itself; where the family is renormalised, of the terms it is the difference of: ln b,
    and the logarithm of the distance from the support. In logit
    space the ends have a rounding of their own. Numbers below the smallest normal one may be 0.
    """
    loc, log_scale = exact(loc), exact(log_scale)
    unit = roundings * MP.mpf(2) ** -24
    true = log_mass(family, k, loc, log_scale, eps)
    closed = family.startswith("truncated_")
    ends = logit_ends(k, eps) if family.startswith("logit_") else line_ends(k, closed)
    distance = max(abs(end - loc) for end in ends if end is not None)
    if family.startswith("logit_"):
        distance += max(abs(end) for end in ends if end is not None)
    values = [true]
    for shift in (-unit * distance, unit * distance):
        values.append(log_mass(family, k, loc + shift, log_scale, eps))
    for shift in (-unit, unit):
        values.append(log_mass(family, k, loc, log_scale + shift, eps))
    slack = unit * abs(true) + MP.mpf(2) ** -126
    if closed:
        slack += unit * (1 + abs(log_scale) + MP.log1p(abs(loc)))
    return min(values) - slack, true, max(values) + slack


def continuous_bernoulli(k, eta):
    """(log mass, the sizes of the terms a float computation sums)."""
    eta = exact(eta)
    low, high = ((end + 1) / 2 for end in line_ends(k, closed=True))
    if eta == 0:
        return MP.log(high - low), MP.mpf(1)
    if eta > 0:  # mirrored, so that no exponential overflows
        low, high, eta = 1 - high, 1 - low, -eta
    value = eta * low + MP.log(MP.expm1(eta * (high - low)) / MP.expm1(eta))
    return value, 1 + abs(value)


def logistic_mixture(k, logits, means, log_scales):
    """(log mass, the sizes of the terms) of independent channels; sequences over components."""
    logits, means, log_scales = (
        [exact(v) for v in values] for values in (logits, means, log_scales)
    )
    total = sum(MP.exp(v) for v in logits)
    parts = [
        MP.exp(w) / total * mass("logistic", line_ends(k), m, MP.exp(s))
        for w, m, s in zip(logits, means, log_scales, strict=True)
    ]
    value = MP.log(sum(parts))
    # Each part's own logarithm, and its derivative in the standardised distance.
    terms = sum(
        p * (1 + abs(MP.log(p)) + (1 + abs(m)) * MP.exp(-s))
        for p, m, s in zip(parts, means, log_scales, strict=True)
    )
    return value, abs(value) + max(abs(v) for v in logits) + terms / sum(parts)


def excess(got, low, true, high):
    """Error as a multiple of the permitted one on its side; above 1 is a failure."""
    got = exact(got)
    permitted = (high - true) if got > true else (true - low)
    return 0.0 if got == true else float(abs(got - true) / permitted)
