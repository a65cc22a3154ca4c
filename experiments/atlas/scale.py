"""Loss and gradient against ln b."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from atlas import Settings, grids, style

GREY = 128.0
"""The target; medians miss it by the residuals, in grey levels."""
RESIDUALS = (0.0, 0.5, 2.0, 8.0, 32.0)


def draw(settings: Settings) -> tuple[Figure, dict[str, Any]]:
    """Loss with its minima, and gradient on a symmetric log axis."""
    log_scale = np.linspace(-8.0, 3.0, settings.points)
    x = float(ll.map_pixels(jnp.asarray(GREY / 255.0), settings.eps))

    def logit(grey):
        x = ll.map_pixels(grey / 255.0, settings.eps)
        return jnp.log(x) - jnp.log1p(-x)

    target = float(logit(jnp.asarray(GREY)))
    distances = target - grids.over(lambda r: logit(GREY - r), RESIDUALS)

    def loss(distance, log_scale):
        return ll.logit_laplace_loss(x, target - distance, log_scale)

    losses = grids.over(loss, distances, log_scale)
    gradients = grids.over(jax.grad(loss, argnums=1), distances, log_scale)
    figure, axes = style.panels(1, 2, 2.9)
    left, right = axes[0]
    best = {}
    for i, (r, line) in enumerate(zip(RESIDUALS, style.ordered(len(RESIDUALS)), strict=True)):
        left.plot(log_scale, losses[i], label=f"{r:g}", **line)
        right.plot(log_scale, gradients[i], **line)
        if distances[i] > 0:
            place = float(np.log(distances[i]))
            least = float(loss(distances[i], place))
            left.plot(place, least, "o", color=line["color"], markersize=4)
            best[f"{r:g} grey levels"] = {"best ln b": place, "loss there, nats": least}
    left.set(ylim=(-8.5, 6), ylabel="loss, nats")
    right.set_ylim(-8, 2)
    right.axhline(0.0, color="0.7", linewidth=0.7, zorder=0)
    right.set_ylabel("d loss / d ln b, nats")
    for panel in (left, right):
        panel.set(xlim=(log_scale[0], log_scale[-1]), xlabel="ln b")
    title = "distance of the median from the target, grey levels"
    style.legend(figure, left, len(RESIDUALS), title)
    style.title(axes, "loss; dots at b = |logit x − μ|", "gradient, 1 − |logit x − μ| / b")
    return figure, {"x": x, "best": best}
