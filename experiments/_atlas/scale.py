"""Loss and gradient against ln b."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from _atlas import grids, style
from _atlas.record import Record
from _atlas.settings import Settings

GREY = 128.0


def compute(settings: Settings) -> Record:
    """Loss and its gradient [residual, ln b] for a target of 128 and medians off by a residual."""
    log_scale = np.linspace(-8.0, 3.0, settings.points)
    residuals = np.array(settings.residuals)

    def logit(grey):
        x = ll.map_pixels(grey / 255.0, settings.eps)
        return jnp.log(x) - jnp.log1p(-x)

    x = float(ll.map_pixels(jnp.asarray(GREY / 255.0), settings.eps))
    target = float(logit(jnp.asarray(GREY)))
    distance = target - grids.over(lambda r: logit(GREY - r), residuals)

    def loss(distance, log_scale):
        return ll.logit_laplace_loss(x, target - distance, log_scale)

    best = {
        f"{r:g} grey levels": {
            "distance in logit units": float(d),
            "best ln b": float(np.log(d)) if d > 0 else float("nan"),
            "loss there, nats": float(loss(d, np.log(d))) if d > 0 else float("nan"),
        }
        for r, d in zip(settings.residuals, distance.tolist(), strict=True)
    }
    plane = ("residual", "log_scale")
    return Record(
        axes={"residual": residuals, "log_scale": log_scale},
        arrays={
            "distance": (("residual",), distance),
            "loss": (plane, grids.over(loss, distance, log_scale)),
            "gradient": (plane, grids.over(jax.grad(loss, argnums=1), distance, log_scale)),
        },
        numbers={"x": x, "best": best},
    )


def draw(record: Record) -> Figure:
    """Loss with its minima, and gradient on a symmetric log axis."""
    figure, axes = style.panels(1, 2, 2.9)
    left, right = axes[0]
    residuals, log_scale = record["residual"], record["log_scale"]
    for i, (r, line) in enumerate(zip(residuals, style.ordered(len(residuals)), strict=True)):
        left.plot(log_scale, record["loss"][i], label=f"{r:g}", **line)
        right.plot(log_scale, record["gradient"][i], **line)
        best = record.numbers["best"][f"{r:g} grey levels"]
        if best["best ln b"] is not None and np.isfinite(best["best ln b"]):
            left.plot(
                best["best ln b"], best["loss there, nats"], "o", color=line["color"], markersize=4
            )
    left.set_ylim(-8.5, 6)
    left.set_ylabel("loss, nats")
    right.set_ylim(-8, 2)
    right.axhline(0.0, color="0.7", linewidth=0.7, zorder=0)
    right.set_ylabel("d loss / d ln b, nats")
    for panel in (left, right):
        panel.set_xlim(log_scale[0], log_scale[-1])
        panel.set_xlabel("ln b")
    style.legend(
        figure, left, len(residuals), "distance of the median from the target, grey levels"
    )
    style.title(axes, "loss; dots at b = |logit x − μ|", "gradient, 1 − |logit x − μ| / b")
    return figure
