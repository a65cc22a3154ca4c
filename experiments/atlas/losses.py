"""The losses: against the prediction, against ln b, and what ε changes."""

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


def gradients(settings: Settings) -> tuple[Figure, dict[str, Any]]:
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


GREY = 128.0
"""The target; medians miss it by the residuals, in grey levels."""
RESIDUALS = (0.0, 0.5, 2.0, 8.0, 32.0)


def scale(settings: Settings) -> tuple[Figure, dict[str, Any]]:
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


EPS = (0.0, 0.01, 0.05, 0.1, 0.2)
SCALES = (0.1, 0.3, 1.0)
"""The b whose masses are quoted."""


def epsilon(settings: Settings) -> tuple[Figure, dict[str, Any]]:
    """The logit of a grey level, its step in logits, and the mass of the two end values."""
    grey = np.arange(256.0)
    b = np.geomspace(0.05, 20.0, settings.points)

    def logit(eps, grey):
        x = (1.0 - 2.0 * eps) * grey / 255.0 + eps  # ll.map_pixels, with an ε that vmap may vary
        return jnp.log(x) - jnp.log1p(-x)

    def finite(values):  # at ε = 0 the ends are mapped to 0 and 1, whose logits are infinite
        return np.where(np.isfinite(values), values, np.nan)

    logits = finite(grids.over(logit, EPS, grey))
    steps = finite(grids.over(jax.grad(logit, argnums=1), EPS, grey))
    figure, axes = style.panels(1, 3, 2.8)
    first, second, third = axes[0]
    numbers = {}
    for i, (eps, line) in enumerate(zip(EPS, style.ordered(len(EPS)), strict=True)):

        def end_mass(b, eps=eps):
            ends = jnp.array([0, 255], jnp.uint8)
            return jnp.exp(ll.pixel_log_prob(ends, 0.0, jnp.log(b), eps)).sum()

        first.plot(grey, logits[i], label=f"ε = {eps:g}", **line)
        second.semilogy(grey, steps[i], **line)
        third.semilogx(b, grids.over(end_mass, b), **line)
        numbers[grids.tag(eps=eps)] = {
            "largest |logit|": float(np.nanmax(np.abs(logits[i]))),
            "logits per grey level at 0": float(steps[i, 0]) if eps else None,
            "logits per grey level at 128": float(steps[i, 128]),
            "mass of 0 and 255 at loc=0": {grids.tag(b=s): float(end_mass(s)) for s in SCALES},
        }
    first.set_ylabel("logit x")
    second.set_ylabel("logit units")
    for panel in (first, second):
        panel.set(xlabel="grey level", xlim=(0, 255), xticks=[0, 64, 128, 192, 255])
    third.set(
        ylabel="probability of 0 or 255", xlabel="b, logit units", ylim=(0, 1), xlim=(b[0], b[-1])
    )
    style.legend(figure, first, len(EPS))
    style.title(axes, "mapped value", "step of one grey level", "end values, μ = 0")
    return figure, numbers
