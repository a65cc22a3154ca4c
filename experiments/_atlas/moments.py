"""Mean, standard deviation and entropy over the plane of (μ, b)."""

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from _atlas import grids, style
from _atlas.record import Record
from _atlas.settings import Settings


def compute(settings: Settings) -> Record:
    """Mean, standard deviation and entropy [ln b, μ] for -6 <= μ <= 6 and -4 <= ln b <= 3."""
    loc = np.linspace(-6.0, 6.0, settings.grid)
    log_scale = np.linspace(-4.0, 3.0, settings.grid)

    def moments(log_scale, loc):
        return jnp.stack(
            [
                ll.mean(loc, log_scale),
                jnp.sqrt(ll.variance(loc, log_scale)),
                ll.entropy(loc, log_scale),
            ]
        )

    mean, deviations, entropy = np.moveaxis(grids.over(moments, log_scale, loc), -1, 0)
    largest = np.unravel_index(np.argmax(entropy), entropy.shape)
    rows = grids.over(moments, np.log(settings.scales), np.array(settings.locs))
    names = ("mean", "standard deviation", "entropy, nats")
    columns = dict(zip(names, np.moveaxis(rows, -1, 0), strict=True))
    plane = ("log_scale", "loc")
    return Record(
        axes={"log_scale": log_scale, "loc": loc},
        arrays={
            "mean": (plane, mean),
            "standard_deviation": (plane, deviations),
            "entropy": (plane, entropy),
        },
        numbers={
            "table": grids.table(columns, b=settings.scales, loc=settings.locs),
            "largest standard deviation on the grid": float(deviations.max()),
            "largest entropy on the grid": {
                "entropy": float(entropy[largest]),
                "b": float(np.exp(log_scale[largest[0]])),
                "loc": float(loc[largest[1]]),
            },
        },
    )


def draw(record: Record) -> Figure:
    """Three maps in bands; the dashed line is b = 1."""
    loc, log_scale = record["loc"], record["log_scale"]
    figure, axes = style.panels(1, 3, 2.7, sharey=True)
    maps = (
        ("mean", "mean of x", np.arange(0.0, 1.01, 0.1)),
        ("standard_deviation", "standard deviation of x", np.arange(0.0, 0.51, 0.05)),
        ("entropy", "differential entropy, nats", np.arange(-10.0, 0.1, 1.0)),
    )
    axes[0, 0].text(loc[0] + 0.2, 0.08, "b = 1", color="white", fontsize=6.5)
    for panel, (name, title, levels) in zip(axes[0], maps, strict=True):
        values = record[name]
        below = "min" if name == "entropy" else "neither"
        bands = panel.contourf(loc, log_scale, values, levels, cmap="cividis", extend=below)
        panel.contour(
            loc, log_scale, values, levels, colors="white", linewidths=0.5, linestyles="-"
        )
        panel.axhline(0.0, color="white", linewidth=1.0, linestyle=(0, (2, 2)))
        panel.set_title(title)
        panel.set_xlabel("μ, logit units")
        bar = figure.colorbar(bands, ax=panel, location="bottom", aspect=25)
        bar.set_ticks(levels[::2])
    axes[0, 0].set_ylabel("ln b")
    return figure
