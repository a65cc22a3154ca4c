"""Loss and gradient against the prediction: L1, L2 and logit-Laplace."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.special import expit

import logit_laplace_jax as ll
from atlas import Settings, grids, style

LIMIT = 5.0
"""Of abs(μ)."""
PROBES = np.array([-4.6, -2.2, 0.0, 2.2, 4.6])
LINES = {
    "logit_laplace": {
        "color": style.BLACK, "linestyle": "-", "label": "logit-Laplace, b = 1 (nats)"
    },
    "l1": {"color": style.VERMILLION, "linestyle": style.DASHES[1], "label": "L1, |p − x|"},
    "l2": {"color": style.BLUE, "linestyle": style.DASHES[2], "label": "L2, (p − x)²"},
}  # fmt: skip


def _logit_laplace(target, loc):
    return ll.logit_laplace_loss(target, loc, 0.0)


def _l1(target, loc):
    return jnp.abs(jax.nn.sigmoid(loc) - target)


def _l2(target, loc):
    return (jax.nn.sigmoid(loc) - target) ** 2


LOSSES = {"logit_laplace": _logit_laplace, "l1": _l1, "l2": _l2}


def draw(settings: Settings) -> tuple[Figure, dict[str, Any]]:
    """One column per target: loss, gradient in μ, size of the gradient in p = sigmoid(μ)."""
    targets = np.array(settings.targets)
    x = np.asarray(ll.map_pixels(jnp.asarray(targets / 255.0), settings.eps))
    loc = np.linspace(-LIMIT, LIMIT, settings.points)
    logits = np.log(x) - np.log1p(-x)
    loc = np.union1d(loc, logits[np.abs(logits) < LIMIT])
    p = expit(loc)
    figure, axes = style.panels(3, len(targets), 5.6, sharex=True, sharey="row")
    columns, steepest = {}, 0.0
    for name, loss in LOSSES.items():

        def of_p(target, p, loss=loss):
            return loss(target, jnp.log(p) - jnp.log1p(-p))

        in_loc, in_p = jax.grad(loss, argnums=1), jax.grad(of_p, argnums=1)
        above = grids.over(loss, x, loc) - np.asarray(jax.vmap(loss)(x, logits))[:, None]
        forces, sizes = grids.over(in_loc, x, loc), np.abs(grids.over(in_p, x, p))
        steepest = max(steepest, float(sizes.max()))
        for j in range(len(targets)):
            axes[0, j].plot(p, above[j], **LINES[name])
            axes[1, j].plot(p, forces[j], **LINES[name])
            axes[2, j].plot(p, np.where(sizes[j] > 0, sizes[j], np.nan), **LINES[name])
        columns[f"{name}, in loc"] = grids.over(in_loc, x, PROBES)
        columns[f"{name}, in p"] = grids.over(in_p, x, expit(PROBES))
    for j, target in enumerate(targets):
        for panel in axes[:, j]:
            style.mark(panel, x[j])
        axes[1, j].axhline(0.0, color="0.7", linewidth=0.7, zorder=0)
        axes[0, j].set_title(f"target {target:g}: x = {x[j]:.3f}")
        style.unit_axis(axes[2, j])
        axes[2, j].set_xlabel("prediction p = sigmoid(μ)")
    axes[0, 0].set_ylabel("loss above its\nminimum")
    axes[1, 0].set_ylabel("d loss / dμ,\nper logit unit")
    axes[2, 0].set_ylabel("|d loss / dp|,\nper unit of x")
    style.decades(axes[2, 0], 1e-2, steepest)
    style.legend(figure, axes[0, 0], 3)
    return figure, {"gradients": grids.table(columns, target=targets, loc=PROBES)}
