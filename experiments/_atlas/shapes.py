"""Density and cdf over a grid of (μ, b)."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from _atlas import grids, style
from _atlas.record import Record
from _atlas.settings import Settings


def compute(settings: Settings) -> Record:
    """Densities and cdfs [b, μ, x], the height at the median and the mass near the ends."""
    locs, scales = np.array(settings.locs), np.array(settings.scales)
    x = grids.unit_interval(settings.points, grids.sigmoid(locs))

    def density(b, loc, x):
        return jnp.exp(ll.log_prob(x, loc, jnp.log(b)))

    def cdf(b, loc, x):
        return ll.cdf(x, loc, jnp.log(b))

    def near_ends(b, loc):
        return ll.cdf(0.01, loc, jnp.log(b)) + ll.survival(0.99, loc, jnp.log(b))

    medians = grids.sigmoid(locs)
    heights = grids.over(lambda b, loc: density(b, loc, jax.nn.sigmoid(loc)), scales, locs)
    ends = grids.over(near_ends, scales, locs)
    columns = {
        "median": np.broadcast_to(medians, ends.shape),
        "density at the median": heights,
        "mass within 0.01 of an end": ends,
    }
    cube = ("b", "loc", "x")
    return Record(
        axes={"b": scales, "loc": locs, "x": x},
        arrays={
            "density": (cube, grids.over(density, scales, locs, x)),
            "cdf": (cube, grids.over(cdf, scales, locs, x)),
        },
        numbers=grids.table(columns, b=scales, loc=locs),
    )


def draw(record: Record) -> Figure:
    """A column a μ: density above (log axis), cdf below; a line a b."""
    locs, scales, x = record["loc"], record["b"], record["x"]
    figure, axes = style.panels(2, len(locs), 4.2, sharex=True, sharey="row")
    for j, loc in enumerate(locs):
        for i, (b, line) in enumerate(zip(scales, style.ordered(len(scales)), strict=True)):
            axes[0, j].plot(x, record["density"][i, j], label=f"b = {b:g}", **line)
            axes[1, j].plot(x, record["cdf"][i, j], **line)
        median = float(grids.sigmoid(loc))
        for panel in axes[:, j]:
            panel.axvline(median, color="0.7", linewidth=0.7, zorder=0)
        axes[0, j].set_title(f"μ = {style.number(loc)}, median {median:.3f}")
        axes[1, j].set_xlabel("x")
        style.unit_axis(axes[1, j])
    axes[1, 0].set_ylim(-0.02, 1.02)
    style.decades(axes[0, 0], 1e-2, float(record["density"].max()))
    axes[0, 0].set_ylabel("density, per unit of x")
    axes[1, 0].set_ylabel("cdf, P(X ≤ x)")
    style.legend(figure, axes[0, 0], len(scales))
    return figure
