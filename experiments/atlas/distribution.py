"""The distribution itself: density, cdf, moments, centres, and what happens at both ends."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.special import expit

import logit_laplace_jax as ll
from atlas import Settings, grids, style


def shapes(settings: Settings) -> tuple[Figure, dict[str, Any]]:
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


MAPS = (
    ("mean", "mean of x", np.arange(0.0, 1.01, 0.1)),
    ("standard deviation", "standard deviation of x", np.arange(0.0, 0.51, 0.05)),
    ("entropy, nats", "differential entropy, nats", np.arange(-10.0, 0.1, 1.0)),
)


def moments(settings: Settings) -> tuple[Figure, dict[str, Any]]:
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


SHOWN = (1.0, 3.0)
"""The μ of the first panel."""
KINDS = (
    ("mean", {"color": style.VERMILLION, "linestyle": style.DASHES[1]}),
    ("median = sigmoid(μ)", {"color": style.BLACK, "linestyle": "-"}),
    ("mode, for b < 1", {"color": style.SKY, "linestyle": style.DASHES[2], "linewidth": 3.0}),
)


def centres(settings: Settings) -> tuple[Figure, dict[str, Any]]:
    """Centres against b; mean minus median against μ; its price in decibels."""
    scales = np.array(settings.scales)
    rows = np.union1d(settings.locs, SHOWN)
    loc = np.union1d(np.linspace(-6.0, 6.0, settings.points), rows)
    b = np.geomspace(0.02, 20.0, settings.points)
    levels = 255.0 / (1.0 - 2.0 * settings.eps)  # grey levels per unit of x

    def centres(loc, b):
        return jnp.stack([f(loc, jnp.log(b)) for f in (ll.mean, ll.median, ll.mode)])

    def errors(b, loc):
        mean, median, _ = centres(loc, b)
        bias = mean - median
        # By how much the expected squared error of the median exceeds the variance.
        price = 10.0 * jnp.log10(1.0 + bias**2 / ll.variance(loc, jnp.log(b)))
        return jnp.stack([mean, median, levels * bias, price])

    figure, axes = style.panels(1, 3, 2.8)
    first, second, third = axes[0]
    for j, (m, values) in enumerate(zip(SHOWN, grids.over(centres, SHOWN, b), strict=True)):
        for k in (1, 0, 2):
            label, line = KINDS[k]
            first.semilogx(b, values[:, k], label=None if j else label, **line)
        first.text(18, values[0, 1] + 0.008, f"μ = {m:g}", ha="right", fontsize=7)
    first.axvline(1.0, ymin=0.32, color="0.7", linewidth=0.7, zorder=0)
    first.set(xlabel="b, logit units", ylabel="x", xlim=(b[0], b[-1]), ylim=(0.3, 1.0))
    over_loc = np.moveaxis(grids.over(errors, scales, loc), -1, 0)
    gaps, prices = over_loc[2:]
    for i, (s, line) in enumerate(zip(scales, style.ordered(len(scales)), strict=True)):
        second.plot(loc, gaps[i], label=f"b = {s:g}", **line)
        third.plot(loc, prices[i], **line)
    second.set_ylabel("grey levels")
    third.set_ylabel("dB, for x drawn from the model")
    for panel in (second, third):
        panel.set(xlabel="μ, logit units", xlim=(-6, 6))
    first.legend(loc="lower left")
    style.legend(figure, second, len(scales))
    style.title(axes, "three centres", "mean − median", "PSNR lost by the median")

    names = ("mean", "median", "mean - median, grey levels", "PSNR of the median, lost dB")
    columns = dict(zip(names, over_loc[:, :, np.searchsorted(loc, rows)], strict=True))
    places = [grids.tag(b=s) for s in settings.scales]
    return figure, {
        "table": grids.table(columns, b=scales, loc=rows),
        "largest |mean - median|, grey levels": dict(
            zip(places, np.abs(gaps).max(axis=1).tolist(), strict=True)
        ),
        "largest loss of PSNR, dB": dict(zip(places, prices.max(axis=1).tolist(), strict=True)),
    }


END_LOC = 1.0
END_SCALES = (0.5, 1.0, 1.5, 3.0)


def peak_limit(loc: Any) -> np.ndarray:
    """The b below which sigmoid(μ) is a local maximum of the density: coth(abs(μ) / 2).

    With t = logit x, d ln f / dt is 1/b - 1 + 2x left of the median and -1/b - 1 + 2x right of it.
    The density rises to sigmoid(μ) and falls from it where 1/b > abs(2 sigmoid(μ) - 1), and the
    right side is tanh(abs(μ) / 2). At μ = 0 that is every b.
    """
    with np.errstate(divide="ignore"):
        return 1.0 / np.tanh(np.abs(np.asarray(loc, float)) / 2.0)


def ends(settings: Settings) -> tuple[Figure, dict[str, Any]]:
    """Densities; the same near 0 on log axes; which shape at which (μ, b)."""
    x = grids.unit_interval(settings.points, expit(END_LOC))
    small = np.geomspace(1e-6, 0.5, settings.points)

    def density(b, x):
        return jnp.exp(ll.log_prob(x, END_LOC, jnp.log(b)))

    densities, near = grids.over(density, END_SCALES, x), grids.over(density, END_SCALES, small)
    figure, axes = style.panels(1, 3, 2.9)
    first, second, third = axes[0]
    for i, (b, line) in enumerate(zip(END_SCALES, style.ordered(len(END_SCALES)), strict=True)):
        first.plot(x, densities[i], label=f"b = {b:g}", **line)
        second.loglog(small, near[i], **line)
    first.set_ylim(0, 5.5)
    style.unit_axis(first)
    first.set(xlabel="x", ylabel="density, per unit of x")
    second.set(xlabel="x", xlim=(small[0], small[-1]))
    _regions(third, np.linspace(-3.0, 3.0, 4 * (settings.points // 4) + 1))
    style.legend(figure, first, len(END_SCALES))
    name = f"μ = {style.number(END_LOC)}"
    style.title(axes, name, f"{name}, close to 0", "shape of the density")

    slopes = np.log(near[:, 1] / near[:, 0]) / np.log(small[1] / small[0])
    return figure, {
        "log-log slope of the density at x = 1e-6": {
            grids.tag(b=b): float(s) for b, s in zip(END_SCALES, slopes, strict=True)
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
