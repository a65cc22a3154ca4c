"""Mean, median and mode: what a reconstruction by sigmoid(μ) is."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from atlas import Settings, grids, style

SHOWN = (1.0, 3.0)
"""The μ of the first panel."""
KINDS = (
    ("mean", {"color": style.VERMILLION, "linestyle": style.DASHES[1]}),
    ("median = sigmoid(μ)", {"color": style.BLACK, "linestyle": "-"}),
    ("mode, for b < 1", {"color": style.SKY, "linestyle": style.DASHES[2], "linewidth": 3.0}),
)


def draw(settings: Settings) -> tuple[Figure, dict[str, Any]]:
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
