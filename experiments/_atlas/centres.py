"""Mean, median and mode: what a reconstruction by sigmoid(μ) is."""

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from _atlas import grids, style
from _atlas.record import Record
from _atlas.settings import Settings

SHOWN = (1.0, 3.0)  # the μ of the first panel


def compute(settings: Settings) -> Record:
    """Mean, median and mode over μ and over b, and the price of the median in decibels."""
    scales, shown = np.array(settings.scales), np.array(SHOWN)
    rows = np.union1d(settings.locs, shown)
    loc = np.union1d(np.linspace(-6.0, 6.0, settings.points), rows)
    b = np.geomspace(0.02, 20.0, settings.points)
    levels = 255.0 / (1.0 - 2.0 * settings.eps)  # grey levels in a unit of x

    def centres(b, loc):
        log_scale = jnp.log(b)
        return ll.mean(loc, log_scale), ll.median(loc, log_scale), ll.mode(loc, log_scale)

    def errors(b, loc):
        mean, median, mode = centres(b, loc)
        bias = mean - median
        # By how much the expected squared error of the median exceeds the variance.
        price = 10.0 * jnp.log10(1.0 + bias**2 / ll.variance(loc, jnp.log(b)))
        return jnp.stack([mean, median, mode, levels * bias, price])

    names = ("mean", "median", "mode", "mean - median, grey levels", "PSNR of the median, lost dB")
    over_loc = np.moveaxis(grids.over(errors, scales, loc), -1, 0)
    over_b = grids.over(lambda loc, b: jnp.stack(centres(b, loc)), shown, b)
    gaps, prices = over_loc[3:]
    columns = dict(zip(names, over_loc[:, :, grids.where(loc, rows)], strict=True))
    furthest = np.abs(gaps).argmax(axis=1)
    places = [grids.tag(b=s) for s in settings.scales]
    return Record(
        axes={"b_shown": scales, "loc": loc, "loc_shown": shown, "b": b},
        arrays={
            "mean_minus_median": (("b_shown", "loc"), gaps),
            "decibels": (("b_shown", "loc"), prices),
            "mean": (("loc_shown", "b"), over_b[..., 0]),
            "median": (("loc_shown", "b"), over_b[..., 1]),
            "mode": (("loc_shown", "b"), over_b[..., 2]),
        },
        numbers={
            "table": grids.table(columns, b=scales, loc=rows),
            "grey levels in a unit of x": levels,
            "largest |mean - median|": {
                place: {"grey levels": float(abs(row[k])), "loc": float(loc[k])}
                for place, row, k in zip(places, gaps, furthest, strict=True)
            },
            "largest loss of PSNR, dB": dict(
                zip(places, (float(row.max()) for row in prices), strict=True)
            ),
        },
    )


def draw(record: Record) -> Figure:
    """Centres against b; mean minus median against μ; the price in decibels."""
    figure, axes = style.panels(1, 3, 2.8)
    first, second, third = axes[0]
    b = record["b"]
    kinds = (
        ("median", "median = sigmoid(μ)", {"color": style.BLACK, "linestyle": "-"}),
        ("mean", "mean", {"color": style.VERMILLION, "linestyle": style.DASHES[1]}),
        ("mode", "mode, for b < 1", {"color": style.SKY, "linestyle": style.DASHES[2]}),
    )
    for j, loc in enumerate(record["loc_shown"]):
        for name, label, line in kinds:
            width = 3.0 if name == "mode" else 1.4
            first.semilogx(
                b, record[name][j], label=label if j == 0 else None, linewidth=width, **line
            )
        first.text(18, record["median"][j, 0] + 0.008, f"μ = {loc:g}", ha="right", fontsize=7)
    first.axvline(1.0, ymin=0.32, color="0.7", linewidth=0.7, zorder=0)
    first.set_xlabel("b, logit units")
    first.set_ylabel("x")
    first.set_xlim(b[0], b[-1])
    first.set_ylim(0.3, 1.0)
    scales = record["b_shown"]
    for i, (s, line) in enumerate(zip(scales, style.ordered(len(scales)), strict=True)):
        second.plot(record["loc"], record["mean_minus_median"][i], label=f"b = {s:g}", **line)
        third.plot(record["loc"], record["decibels"][i], **line)
    second.set_ylabel("grey levels")
    third.set_ylabel("dB, for x drawn from the model")
    for panel in (second, third):
        panel.set_xlabel("μ, logit units")
        panel.set_xlim(-6, 6)
    first.legend(loc="lower left")
    style.legend(figure, second, len(scales))
    style.title(axes, "three centres", "mean − median", "PSNR lost by the median")
    return figure
