"""Mean, standard deviation and entropy over the plane of (μ, b)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from atlas import Settings, grids, style

MAPS = (
    ("mean", "mean of x", np.arange(0.0, 1.01, 0.1)),
    ("standard deviation", "standard deviation of x", np.arange(0.0, 0.51, 0.05)),
    ("entropy, nats", "differential entropy, nats", np.arange(-10.0, 0.1, 1.0)),
)


def draw(settings: Settings) -> tuple[Figure, dict[str, Any]]:
    """Three maps in bands, for -6 <= μ <= 6 and -4 <= ln b <= 3; the dashed line is b = 1."""
    side = settings.points // 5 + 1
    loc, log_scale = np.linspace(-6.0, 6.0, side), np.linspace(-4.0, 3.0, side)

    def moments(log_scale, loc):
        deviation = jnp.sqrt(ll.variance(loc, log_scale))
        return jnp.stack([ll.mean(loc, log_scale), deviation, ll.entropy(loc, log_scale)])

    maps = np.moveaxis(grids.over(moments, log_scale, loc), -1, 0)
    figure, axes = style.panels(1, 3, 2.7, sharey=True)
    axes[0, 0].text(loc[0] + 0.2, 0.08, "b = 1", color="white", fontsize=6.5)
    for panel, values, (name, title, levels) in zip(axes[0], maps, MAPS, strict=True):
        below = "min" if name.startswith("entropy") else "neither"
        bands = panel.contourf(loc, log_scale, values, levels, cmap="cividis", extend=below)
        lines = {"colors": "white", "linewidths": 0.5, "linestyles": "-"}
        panel.contour(loc, log_scale, values, levels, **lines)
        panel.axhline(0.0, color="white", linewidth=1.0, linestyle=(0, (2, 2)))
        panel.set_title(title)
        panel.set_xlabel("μ, logit units")
        bar = figure.colorbar(bands, ax=panel, location="bottom", aspect=25)
        bar.set_ticks(levels[::2])
    axes[0, 0].set_ylabel("ln b")

    rows = np.moveaxis(grids.over(moments, np.log(settings.scales), settings.locs), -1, 0)
    columns = dict(zip((name for name, *_ in MAPS), rows, strict=True))
    i, j = np.unravel_index(np.argmax(maps[2]), maps[2].shape)
    return figure, {
        "table": grids.table(columns, b=settings.scales, loc=settings.locs),
        "largest standard deviation on the grid": float(maps[1].max()),
        "largest entropy on the grid": {
            "entropy": float(maps[2, i, j]),
            "b": float(np.exp(log_scale[i])),
            "loc": float(loc[j]),
        },
    }
