"""The mass that normal, Laplace and logistic put outside (0, 1)."""

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from _atlas import grids, matching, style
from _atlas.families import LINES
from _atlas.record import Record
from _atlas.settings import Settings

UNBOUNDED = tuple(name for name, family in matching.FAMILIES.items() if not family.bounded)


def compute(settings: Settings) -> Record:
    """Leaked mass [family, μ, b] of the members with the logit-Laplace's mean and variance."""
    locs = np.array(settings.locs)
    b = np.union1d(np.geomspace(0.05, 20.0, settings.points), settings.scales)

    def leaked(loc, b):
        mean, variance = ll.mean(loc, jnp.log(b)), ll.variance(loc, jnp.log(b))
        families = (matching.FAMILIES[name] for name in UNBOUNDED)
        return jnp.stack([matching.leaked(f, *f.match(mean, variance)) for f in families])

    values = np.moveaxis(grids.over(leaked, locs, b), -1, 0)
    columns = dict(zip(UNBOUNDED, values[:, :, grids.where(b, settings.scales)], strict=True))
    return Record(
        axes={"family": np.array(UNBOUNDED), "loc": locs, "b": b},
        arrays={"leaked": (("family", "loc", "b"), values)},
        numbers={
            "table": grids.table(columns, loc=locs, b=settings.scales),
            "b at which normal and Laplace leak the same": {
                grids.tag(loc=m): crossing(b, values[0, j], values[1, j])
                for j, m in enumerate(settings.locs)
            },
        },
    )


def crossing(b: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """The first b where two positive curves cross, interpolated on log axes; NaN if nowhere."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(first) - np.log(second)
    places = np.flatnonzero(np.isfinite(ratio[:-1]) & (ratio[:-1] * ratio[1:] < 0))
    if not len(places):
        return float("nan")
    k = places[0]
    share = ratio[k] / (ratio[k] - ratio[k + 1])
    return float(b[k] * (b[k + 1] / b[k]) ** share)


def draw(record: Record) -> Figure:
    """A panel a μ; leaked mass against b, both on log axes."""
    figure, axes = style.panels(1, len(record["loc"]), 2.6, sharey=True)
    for j, (panel, loc) in enumerate(zip(axes[0], record["loc"], strict=True)):
        for k, name in enumerate(record["family"]):
            line = {**LINES[name], "label": matching.FAMILIES[name].label}
            panel.semilogx(record["b"], record["leaked"][k, j], **line)
        panel.set_title(f"μ = {style.number(loc)}")
        panel.set_xlabel("b, logit units")
        panel.set_xlim(record["b"][0], record["b"][-1])
    style.decades(axes[0, 0], 1e-6, 1.0)
    axes[0, 0].set_ylabel("mass outside (0, 1)")
    style.legend(figure, axes[0, 0], len(UNBOUNDED))
    return figure
