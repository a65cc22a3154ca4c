"""Mean, variance and entropy of the logit-Laplace distribution by quadrature, to 40 digits.

Written from the definitions: Y ~ Laplace(loc, b), x = sigmoid(Y), so that with loc >= 0 (the other
sign by the symmetry x -> 1-x)

    1 - mean = E sigmoid(-Y),    variance = E (sigmoid(-Y) - (1 - mean))^2,
    entropy  = 1 + ln 2b + E ln(x (1-x)) = 1 + ln 2b - loc - b exp(-loc/b) - 2 E ln(1 + exp(-|Y|)).

Nothing cancels but in the entropy, whose error is absolute. `closed_form` has a second form.
Run as a script, this file writes `moments.json` (in three minutes): the vectors of the tests.
"""

import functools
import itertools
import json
import math
from pathlib import Path

import numpy as np
from oracle import MP, exact

VECTORS = Path(__file__).with_name("moments.json")
ORDER = 40
# Panels whose largest weight, beside that at Y = loc, is below exp(-FAR) are left out.
FAR = 150


@functools.cache
def _legendre():
    """Gauss-Legendre nodes and weights on [-1, 1]: numpy's nodes, polished by Newton's method."""
    rule = []
    for guess in np.polynomial.legendre.leggauss(ORDER)[0]:
        node = MP.mpf(float(guess))
        for _ in range(3):  # 1e-16 -> 1e-32 -> 1e-64
            before, value = MP.mpf(1), node
            for k in range(2, ORDER + 1):
                before, value = value, ((2 * k - 1) * node * value - (k - 1) * before) / k
            slope = ORDER * (node * value - before) / (node * node - 1)
            node -= value / slope
        rule.append((node, 2 / ((1 - node * node) * slope * slope)))
    return rule


def _panels(loc, b):
    """Break points of the line for loc >= 0, 0 and loc among them.

    A panel is at most 8 b wide, so that exp(-|y - loc| / b) is smooth on it, and at most as wide
    as twice 1 or its distance from 0, so that the poles of sigmoid at +-i pi stay outside its
    Bernstein ellipse of parameter 4: 4^-80 = 1e-48.
    """

    def walk(start, end):  # from start, which is the end nearer to 0, to end
        direction, y, out = MP.sign(end - start), start, [start]
        while (end - y) * direction > 0:
            y += direction * min(8 * b, max(MP.mpf(2), abs(y)), abs(end - y))
            out.append(y)
        return list(itertools.pairwise(out))

    def matters(y):  # the weight, times the growth of sigmoid(-Y)^2 towards 0, the fastest
        return -abs(y - loc) / b + 2 * max(loc - max(y, MP.mpf(0)), MP.mpf(0)) > -FAR

    # Left of loc the weight falls only where b < 1/2; there it stays within FAR / (1/b - 2).
    inner = max(MP.mpf(0), loc - FAR / (1 / b - 2)) if 2 * b < 1 else MP.mpf(0)
    right = walk(inner, loc) + walk(loc, loc + FAR * b)
    left = walk(MP.mpf(0), -(FAR + 2 * loc) * b) if matters(MP.mpf(0)) else []
    return [p for p in left + right if matters(p[0]) or matters(p[1])]


def moments(loc, log_scale):
    """(mean, 1 - mean, variance, entropy), for MP numbers loc and log_scale."""
    if loc < 0:
        mean, rest, variance, entropy = moments(-loc, log_scale)
        return rest, mean, variance, entropy
    b = MP.exp(log_scale)
    points = []  # of (weight, sigmoid(-y), ln(1 + exp(-|y|)))
    for start, end in _panels(loc, b):
        middle, half = (start + end) / 2, abs(end - start) / 2
        for node, weight in _legendre():
            y = middle + half * node
            small = MP.exp(-abs(y))
            sigmoid = (small if y > 0 else 1) / (1 + small)
            density = half * weight * MP.exp(-abs(y - loc) / b) / (2 * b)
            points.append((density, sigmoid, MP.log1p(small)))
    # About the median: with b = 1e-35 the weights keep 24 digits, and the mean is off by as much.
    median = MP.exp(-loc) / (1 + MP.exp(-loc))
    shift = MP.fsum(w * (s - median) for w, s, _ in points)
    rest = median + shift
    variance = MP.fsum(w * (s - median) ** 2 for w, s, _ in points) - shift**2
    kink = MP.fsum(w * v for w, _, v in points)
    entropy = 1 + MP.ln2 + log_scale - loc - b * MP.exp(-loc / b) - 2 * kink
    return 1 - rest, rest, variance, entropy


def closed_form(loc, log_scale, digits=130):
    """The same from Gauss's hypergeometric function, a = 1/b not an integer; loc >= 0.

    The two halves of the mean, Y > loc and Y < loc, are
    R = 2F1(1, a; a+1; -exp(-loc)) / 2 and L = a / (2a+2) exp(loc) 2F1(1, a+1; a+2; -exp(loc)).
    The Laplace density p obeys p - b^2 p'' = delta and dp/dloc = (right - left) / b, whence
    D = dmean/dloc = a (R - L), E x(1-x) = D, and E ln x(1-x) = ln x(1-x) at loc, minus 2 b^2 D.
    """
    with MP.workdps(digits):
        b = MP.exp(log_scale)
        a = 1 / b
        right = MP.hyp2f1(1, a, a + 1, -MP.exp(-loc)) / 2
        left = a / (2 * a + 2) * MP.exp(loc) * MP.hyp2f1(1, a + 1, a + 2, -MP.exp(loc))
        mean, slope = right + left, a * (right - left)
        at_loc = -loc - 2 * MP.log1p(MP.exp(-loc))
        entropy = 1 + MP.ln2 + log_scale + at_loc - 2 * b * b * slope
        return mean, 1 - mean, (1 - mean) * mean - slope, entropy


def derivatives(loc, log_scale):
    """For mean, variance and entropy: [d/dloc, d/dlog_scale, d2/dloc2, d2/dloc ds, d2/ds2].

    Central differences of 40 digits: their error is step^2 = 1e-20 and 1e-40 / step^2 = 1e-20.
    """
    step = MP.mpf(10) ** -10

    @functools.cache
    def at(i, j):
        mean, rest, variance, entropy = moments(loc + i * step, log_scale + j * step)
        return (mean if loc < 0 else -rest), variance, entropy

    def combine(*terms):
        return [MP.fsum(c * at(i, j)[k] for c, i, j in terms) for k in range(3)]

    half = MP.mpf(1) / 2
    first = [combine((half, 1, 0), (-half, -1, 0)), combine((half, 0, 1), (-half, 0, -1))]
    loc2 = combine((1, 1, 0), (1, -1, 0), (-2, 0, 0))
    scale2 = combine((1, 0, 1), (1, 0, -1), (-2, 0, 0))
    quarter = half / 2
    mixed = combine((quarter, 1, 1), (quarter, -1, -1), (-quarter, 1, -1), (-quarter, -1, 1))
    rows = [[v / step for v in r] for r in first]
    rows += [[v / step**2 for v in r] for r in (loc2, mixed, scale2)]
    return [[row[k] for row in rows] for k in range(3)]


# --- the grid -----------------------------------------------------------------------------------

LOCS = [0.0, 2.0**-30, 1e-3, 0.5, 1, 2, 3, 5, 7.3, 12, 20]
LOG_SCALES = [-7, -6.3, -5, -4.1, -3, -2.5, -2, -1.5, -0.9, -0.4, -0.05, 0.3, 0.7, 1, 1.6, 2.2, 3]
POLES = [
    -math.log(k) for k in (1, 2, 3, 4, 7)
]  # 1/b an integer: terms of closed forms are infinite
FAR_ROWS = [
    *[(60, s) for s in (-10, -7, -1, 0, 1, 3, 10)],
    *[(m, s) for m in (0, 3, 20) for s in (-80, -30, -10, 5, 8, 10, 30, 80)],
    *[(300, s) for s in (-10, -1, 0, 3, 5, 10, 80)],
    *[(10000.0, s) for s in (-80, -5, 7, 9, 12, 80)],
]


def grid():
    """Pairs of float64 with loc >= 0; those of float32 numbers serve both precisions."""
    rows = [(m, s) for m in LOCS for s in LOG_SCALES] + FAR_ROWS
    rows = [(float(np.float32(m)), float(np.float32(s))) for m, s in rows]
    for pole in POLES:
        single, double = np.float32(pole), np.float64(pole)
        beside = [single, np.nextafter(single, single - 1), np.nextafter(single, single + 1)]
        beside += [single + np.float32(3e-6), single - np.float32(2e-4), single + np.float32(3e-3)]
        beside += [double, np.nextafter(double, -9), np.nextafter(double, 9)]
        beside += [double + 1e-12, double - 1e-9, double + 3e-7]
        rows += [(m, float(s)) for m in (0.0, 0.5, 2.0, 3.0, 20.0) for s in beside]
    return list(dict.fromkeys(rows))


def derivative_grid():
    """A few of the rows, inside the range of the contract."""
    inside = [r for r in grid() if r[0] <= 20 and -7 <= r[1] <= 3]
    return [(0.0, -1.0), (0.0, 0.0), *inside[4::13]]


def numbers(text):
    """Float64 from hexadecimal."""
    return tuple(float.fromhex(v) for v in text)


def _write():
    def digits(values):
        return [MP.nstr(v, 20) for v in values]

    out = {"values": [], "derivatives": []}
    for row in grid():
        values = moments(*(exact(np.float64(v)) for v in row))
        out["values"].append([*(v.hex() for v in row), *digits(values)])
    for row in derivative_grid():
        values = derivatives(*(exact(np.float64(v)) for v in row))
        out["derivatives"].append([*(v.hex() for v in row), *map(digits, values)])
    lines = [
        f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]"
        for name, rows in out.items()
    ]
    VECTORS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    _write()
