"""Where b ≥ 1 piles the density up at 0 and 1."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.special import expit

import logit_laplace_jax as ll
from atlas import Settings, grids, style

LOC = 1.0
SCALES = (0.5, 1.0, 1.5, 3.0)


def peak_limit(loc: Any) -> np.ndarray:
    """The b below which sigmoid(μ) is a local maximum of the density: coth(abs(μ) / 2).

    With t = logit x, d ln f / dt is 1/b - 1 + 2x left of the median and -1/b - 1 + 2x right of it.
    The density rises to sigmoid(μ) and falls from it where 1/b > abs(2 sigmoid(μ) - 1), and the
    right side is tanh(abs(μ) / 2). At μ = 0 that is every b.
    """
    with np.errstate(divide="ignore"):
        return 1.0 / np.tanh(np.abs(np.asarray(loc, float)) / 2.0)


def draw(settings: Settings) -> tuple[Figure, dict[str, Any]]:
    """Densities; the same near 0 on log axes; which shape at which (μ, b)."""
    x = grids.unit_interval(settings.points, expit(LOC))
    small = np.geomspace(1e-6, 0.5, settings.points)

    def density(b, x):
        return jnp.exp(ll.log_prob(x, LOC, jnp.log(b)))

    densities, near = grids.over(density, SCALES, x), grids.over(density, SCALES, small)
    figure, axes = style.panels(1, 3, 2.9)
    first, second, third = axes[0]
    for i, (b, line) in enumerate(zip(SCALES, style.ordered(len(SCALES)), strict=True)):
        first.plot(x, densities[i], label=f"b = {b:g}", **line)
        second.loglog(small, near[i], **line)
    first.set_ylim(0, 5.5)
    style.unit_axis(first)
    first.set(xlabel="x", ylabel="density, per unit of x")
    second.set(xlabel="x", xlim=(small[0], small[-1]))
    _regions(third, np.linspace(-3.0, 3.0, 4 * (settings.points // 4) + 1))
    style.legend(figure, first, len(SCALES))
    name = f"μ = {style.number(LOC)}"
    style.title(axes, name, f"{name}, close to 0", "shape of the density")

    slopes = np.log(near[:, 1] / near[:, 0]) / np.log(small[1] / small[0])
    return figure, {
        "log-log slope of the density at x = 1e-6": {
            grids.tag(b=b): float(s) for b, s in zip(SCALES, slopes, strict=True)
        },
        "b below which sigmoid(loc) is a local maximum": {
            grids.tag(loc=m): float(peak_limit(m)) for m in (0.5, 1.0, 2.0, 4.0)
        },
    }


def _regions(panel: style.Axes, loc: np.ndarray) -> None:
    """Which shape the density has at which (μ, b)."""
    low, high = 0.3, 20.0
    limit = np.minimum(peak_limit(loc), 1e9)  # infinite at μ = 0
    capped = np.minimum(limit, high)
    panel.set_yscale("log")
    panel.fill_between(loc, low, 1.0, color=style.SKY, alpha=0.35, linewidth=0)
    panel.fill_between(loc, 1.0, capped, color="0.9", linewidth=0)
    panel.fill_between(loc, capped, high, color=style.ORANGE, alpha=0.45, linewidth=0)
    panel.plot(loc, limit, color=style.BLACK, linewidth=1.0)
    panel.axhline(1.0, color=style.BLACK, linewidth=1.0, linestyle=style.DASHES[1])
    panel.text(0, 0.55, "one peak,\nat sigmoid(μ)", ha="center", va="center")
    panel.text(0, 1.55, "two ends\nand a peak", ha="center", va="center", fontsize=7)
    for side in (-1, 1):
        panel.text(1.9 * side, 4.5, "two ends", ha="center", va="center")
    panel.text(2.9, 0.95, "b = 1", ha="right", va="top", fontsize=7)
    panel.annotate(
        "b = coth(|μ|/2)",
        xy=(-0.35, float(peak_limit(0.35))),
        xytext=(-2.85, 14.0),
        va="center",
        fontsize=7,
        arrowprops={"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
    )
    panel.set(
        xlim=(loc[0], loc[-1]), ylim=(low, high), xlabel="μ, logit units", ylabel="b, logit units"
    )
