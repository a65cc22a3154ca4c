"""The mass that normal, Laplace and logistic put outside (0, 1)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from atlas import Settings, grids, matching, style
from atlas.families import LINES

UNBOUNDED = ("normal", "laplace", "logistic")


def draw(settings: Settings) -> tuple[Figure, dict[str, Any]]:
    """One panel per μ; leaked mass against b, both on log axes."""
    b = np.union1d(np.geomspace(0.05, 20.0, settings.points), settings.scales)

    def leaked(loc, b):
        moments = ll.mean(loc, jnp.log(b)), ll.variance(loc, jnp.log(b))
        families = (matching.FAMILIES[name] for name in UNBOUNDED)
        return jnp.stack([matching.leaked(f, *f.match(*moments)) for f in families])

    values = np.moveaxis(grids.over(leaked, settings.locs, b), -1, 0)
    figure, axes = style.panels(1, len(settings.locs), 2.6, sharey=True)
    for j, (panel, loc) in enumerate(zip(axes[0], settings.locs, strict=True)):
        for name, curve in zip(UNBOUNDED, values[:, j], strict=True):
            panel.semilogx(b, curve, label=matching.FAMILIES[name].label, **LINES[name])
        panel.set_title(f"μ = {style.number(loc)}")
        panel.set(xlabel="b, logit units", xlim=(b[0], b[-1]))
    style.decades(axes[0, 0], 1e-6, 1.0)
    axes[0, 0].set_ylabel("mass outside (0, 1)")
    style.legend(figure, axes[0, 0], len(UNBOUNDED))

    places = np.searchsorted(b, settings.scales)
    columns = dict(zip(UNBOUNDED, values[:, :, places], strict=True))
    return figure, {
        "table": grids.table(columns, loc=settings.locs, b=settings.scales),
        "b at which normal and Laplace leak the same": {
            grids.tag(loc=m): crossing(b, values[0, j], values[1, j])
            for j, m in enumerate(settings.locs)
        },
    }


def crossing(b: np.ndarray, first: np.ndarray, second: np.ndarray) -> float | None:
    """The first b where two positive curves cross, interpolated on log axes; None if nowhere."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(first) - np.log(second)
    places = np.flatnonzero(np.isfinite(ratio[:-1]) & (ratio[:-1] * ratio[1:] < 0))
    if not len(places):
        return None
    k = places[0]
    share = ratio[k] / (ratio[k] - ratio[k + 1])
    return float(b[k] * (b[k + 1] / b[k]) ** share)
