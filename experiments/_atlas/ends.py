"""Where b ≥ 1 piles the density up at 0 and 1."""

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from _atlas import grids, style
from _atlas.record import Record
from _atlas.settings import Settings

LOC = 1.0
SCALES = (0.5, 1.0, 1.5, 3.0)


def peak_limit(loc: np.ndarray) -> np.ndarray:
    """The b below which sigmoid(μ) is a local maximum of the density: coth(abs(μ) / 2).

    With t = logit x, d ln f / dt is 1/b - 1 + 2x left of the median and -1/b - 1 + 2x right of it.
    The density rises to sigmoid(μ) and falls from it where 1/b > abs(2 sigmoid(μ) - 1), and the
    right side is tanh(abs(μ) / 2). At μ = 0 that is every b.
    """
    with np.errstate(divide="ignore"):
        return 1.0 / np.tanh(np.abs(np.asarray(loc, float)) / 2.0)


def compute(settings: Settings) -> Record:
    """Densities across (0, 1) and close to 0, their slopes there, and the limits of the peak."""
    scales = np.array(SCALES)
    x = grids.unit_interval(settings.points, grids.sigmoid(LOC))
    small = np.geomspace(1e-6, 0.5, settings.points)
    loc = np.linspace(-3.0, 3.0, 4 * (settings.points // 4) + 1)

    def density(b, x):
        return jnp.exp(ll.log_prob(x, LOC, jnp.log(b)))

    def mass(b, loc):
        return ll.cdf(0.01, loc, jnp.log(b)) + ll.survival(0.99, loc, jnp.log(b))

    near = grids.over(density, scales, small)
    slope = (np.log(near[:, 1]) - np.log(near[:, 0])) / (np.log(small[1]) - np.log(small[0]))
    limits = peak_limit(loc)
    limits[np.isinf(limits)] = np.nan
    ends = grids.over(mass, scales, np.array([0.0, LOC]))
    return Record(
        axes={"b": scales, "x": x, "x_small": small, "loc": loc},
        arrays={
            "density": (("b", "x"), grids.over(density, scales, x)),
            "density_near_0": (("b", "x_small"), near),
            "peak_limit": (("loc",), limits),
        },
        numbers={
            "loc": LOC,
            "log-log slope of the density at x = 1e-6": {
                grids.tag(b=b): float(s) for b, s in zip(SCALES, slope, strict=True)
            },
            "1/b - 1": {grids.tag(b=b): 1.0 / b - 1.0 for b in SCALES},
            "b below which sigmoid(loc) is a local maximum": {
                grids.tag(loc=m): float(peak_limit(np.array(m))) for m in (0.5, 1.0, 2.0, 4.0)
            },
            "mass within 0.01 of an end": {
                grids.tag(loc=m, b=b): float(ends[i, j])
                for i, b in enumerate(SCALES)
                for j, m in enumerate((0.0, LOC))
            },
        },
    )


def draw(record: Record) -> Figure:
    """Densities; the same near 0 on log axes; which shape at which (μ, b)."""
    figure, axes = style.panels(1, 3, 2.9)
    first, second, third = axes[0]
    lines = style.ordered(len(record["b"]))
    for i, (b, line) in enumerate(zip(record["b"], lines, strict=True)):
        first.plot(record["x"], record["density"][i], label=f"b = {b:g}", **line)
        second.loglog(record["x_small"], record["density_near_0"][i], **line)
    first.set_ylim(0, 5.5)
    style.unit_axis(first)
    first.set_xlabel("x")
    first.set_ylabel("density, per unit of x")
    loc = record.numbers["loc"]
    second.set_xlabel("x")
    second.set_xlim(record["x_small"][0], record["x_small"][-1])
    low, high = 0.3, 20.0
    mu, limit = record["loc"], np.where(np.isnan(record["peak_limit"]), 1e9, record["peak_limit"])
    third.set_yscale("log")
    third.fill_between(mu, low, 1.0, color=style.SKY, alpha=0.35, linewidth=0)
    third.fill_between(mu, 1.0, np.minimum(limit, high), color="0.9", linewidth=0)
    third.fill_between(
        mu, np.minimum(limit, high), high, color=style.ORANGE, alpha=0.45, linewidth=0
    )
    third.plot(mu, limit, color=style.BLACK, linewidth=1.0)
    third.axhline(1.0, color=style.BLACK, linewidth=1.0, linestyle=style.DASHES[1])
    third.text(0, 0.55, "one peak,\nat sigmoid(μ)", ha="center", va="center")
    third.text(0, 1.55, "two ends\nand a peak", ha="center", va="center", fontsize=7)
    for side in (-1, 1):
        third.text(1.9 * side, 4.5, "two ends", ha="center", va="center")
    third.text(2.9, 0.95, "b = 1", ha="right", va="top", fontsize=7)
    third.annotate(
        "b = coth(|μ|/2)",
        xy=(-0.35, float(peak_limit(np.array(0.35)))),
        xytext=(-2.85, 14.0),
        va="center",
        fontsize=7,
        arrowprops={"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
    )
    third.set_xlim(mu[0], mu[-1])
    third.set_ylim(low, high)
    third.set_xlabel("μ, logit units")
    third.set_ylabel("b, logit units")
    style.legend(figure, first, len(lines))
    name = f"μ = {style.number(loc)}"
    style.title(axes, name, f"{name}, close to 0", "shape of the density")
    return figure
