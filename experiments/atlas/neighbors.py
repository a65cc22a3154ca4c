"""The logit-Laplace beside other families of equal mean and variance."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.special import expit

import logit_laplace_jax as ll
from atlas import Settings, grids, matching, style

CASES = ((0.0, 0.3), (2.0, 0.5), (0.0, 2.0))
"""(μ, b) of each column."""
NEAR_ENDS = (1e-6, 1e-3, 1.0 - 1e-3, 1.0 - 1e-6)
FINE = 2000
"""Points on which the cdfs are compared."""

LINES: dict[str, dict[str, Any]] = {
    "logistic": {"color": style.PURPLE, "linestyle": style.DASHES[5]},
    "laplace": {"color": style.GREEN, "linestyle": style.DASHES[4]},
    "normal": {"color": style.ORANGE, "linestyle": style.DASHES[3]},
    "logit_normal": {"color": style.BLUE, "linestyle": style.DASHES[2], "linewidth": 1.8},
    "beta": {"color": style.VERMILLION, "linestyle": style.DASHES[1]},
}


def families(settings: Settings) -> tuple[Figure, dict[str, Any]]:
    """One column per case: density above, cdf below, beyond both ends too."""
    figure, axes = style.panels(2, len(CASES), 4.4, sharex="col")
    numbers = {
        grids.tag(loc=loc, b=b): _column(axes[:, j], settings.points, loc, b)
        for j, (loc, b) in enumerate(CASES)
    }
    axes[0, 0].set_ylabel("density, per unit of x")
    axes[1, 0].set_ylabel("cdf, P(X ≤ x)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=len(labels))
    return figure, numbers


def _column(axes: np.ndarray, points: int, loc: float, b: float) -> dict[str, Any]:
    above, below = axes
    log_scale = jnp.log(b)
    mean, variance = float(ll.mean(loc, log_scale)), float(ll.variance(loc, log_scale))
    reach = 4.5 * variance**0.5
    low, high = max(mean - reach, -0.2), min(mean + reach, 1.2)
    x = np.sort([*np.linspace(low, high, points), mean, expit(loc), *NEAR_ENDS])
    fine = np.linspace(low, high, FINE)
    inside = (x > 0) & (x < 1)

    def exact(x):
        return jnp.exp(ll.log_prob(x, loc, log_scale)), ll.cdf(x, loc, log_scale)

    heights, exact_cdf = (np.asarray(v) for v in jax.jit(jax.vmap(exact))(x))
    exact_fine = np.asarray(ll.cdf(fine, loc, log_scale))
    inner = (x >= low) & (x <= high) & (x > 0.03) & (x < 0.97)
    top = heights[inner].max()  # without the very ends, where densities may be unbounded
    found, leaks = {}, []
    for name, line in LINES.items():
        family = matching.FAMILIES[name]
        first, second = (float(p) for p in jax.jit(family.match)(mean, variance))

        def values(x, family=family, first=first, second=second):
            return family.pdf(x, first, second), family.cdf(x, first, second)

        curve = jax.jit(jax.vmap(values))
        density, cdf = (np.array(v) for v in curve(x))
        finely = np.array(curve(fine)[1])
        if family.bounded:
            density[~inside] = np.nan
            cdf[x <= 0], cdf[x >= 1] = 0.0, 1.0
            finely[fine <= 0], finely[fine >= 1] = 0.0, 1.0
        above.plot(x, density, label=family.label, **line)
        below.plot(x, cdf, label=family.label, **line)
        top = max(top, density[inner].max())
        found[name] = {
            **dict(zip(family.names, (first, second), strict=True)),
            "largest cdf difference": float(np.abs(finely - exact_fine).max()),
        }
        if not family.bounded:
            leak = found[name]["mass outside (0, 1)"] = float(
                matching.leaked(family, first, second)
            )
            percent = f"{100 * leak:.2f} %" if leak >= 1e-4 else "< 0.01 %"
            leaks.append(f"{family.label} {percent}")
    line = {"color": style.BLACK, "linestyle": "-", "linewidth": 2.0, "label": "logit-Laplace"}
    above.plot(x, np.where(inside, heights, np.nan), **line)
    below.plot(x, exact_cdf, **line)
    above.set_title(f"μ = {style.number(loc)}, b = {b:g}\nmean {mean:.3g}, sd {variance**0.5:.3g}")
    above.set(ylim=(0, 1.08 * top), xlim=(low, high))
    below.set_ylim(-0.02, 1.02)
    # In the corner that the cdf leaves free.
    early = np.interp(0.6 * low + 0.4 * high, x, exact_cdf) > 0.6
    below.text(
        *((0.97, 0.05) if early else (0.03, 0.97)),
        "\n".join(["outside (0, 1):", *leaks[::-1]]),
        transform=below.transAxes,
        ha="right" if early else "left",
        va="bottom" if early else "top",
        fontsize=6.5,
        linespacing=1.3,
    )
    below.set_xlabel("x")
    for panel in axes:
        for end in (0.0, 1.0):
            panel.axvline(end, color="0.75", linewidth=0.7, zorder=0)
    return {"mean": mean, "variance": variance, "families": found}


UNBOUNDED = ("normal", "laplace", "logistic")


def leak(settings: Settings) -> tuple[Figure, dict[str, Any]]:
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
