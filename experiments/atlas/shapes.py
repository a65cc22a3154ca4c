"""Density and cdf over a grid of (μ, b)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.special import expit

import logit_laplace_jax as ll
from atlas import Settings, grids, style


def draw(settings: Settings) -> tuple[Figure, dict[str, Any]]:
    """One column per μ: density above (log axis), cdf below; one line per b."""
    locs, scales = np.array(settings.locs), np.array(settings.scales)
    medians = expit(locs)
    x = grids.unit_interval(settings.points, medians)

    def density(b, loc, x):
        return jnp.exp(ll.log_prob(x, loc, jnp.log(b)))

    def cdf(b, loc, x):
        return ll.cdf(x, loc, jnp.log(b))

    def near_ends(b, loc):
        return ll.cdf(0.01, loc, jnp.log(b)) + ll.survival(0.99, loc, jnp.log(b))

    densities, cdfs = grids.over(density, scales, locs, x), grids.over(cdf, scales, locs, x)
    figure, axes = style.panels(2, len(locs), 4.2, sharex=True, sharey="row")
    for j, loc in enumerate(locs):
        for i, (b, line) in enumerate(zip(scales, style.ordered(len(scales)), strict=True)):
            axes[0, j].plot(x, densities[i, j], label=f"b = {b:g}", **line)
            axes[1, j].plot(x, cdfs[i, j], **line)
        for panel in axes[:, j]:
            style.mark(panel, medians[j])
        axes[0, j].set_title(f"μ = {style.number(loc)}, median {medians[j]:.3f}")
        axes[1, j].set_xlabel("x")
        style.unit_axis(axes[1, j])
    axes[1, 0].set_ylim(-0.02, 1.02)
    style.decades(axes[0, 0], 1e-2, float(densities.max()))
    axes[0, 0].set_ylabel("density, per unit of x")
    axes[1, 0].set_ylabel("cdf, P(X ≤ x)")
    style.legend(figure, axes[0, 0], len(scales))

    at_median = grids.over(lambda b, loc: density(b, loc, jax.nn.sigmoid(loc)), scales, locs)
    ends = grids.over(near_ends, scales, locs)
    columns = {"density at the median": at_median, "mass within 0.01 of an end": ends}
    return figure, grids.table(columns, b=scales, loc=locs)
