"""Loss and gradient against the prediction: L1, L2 and logit-Laplace."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from _atlas import grids, style
from _atlas.record import Record
from _atlas.settings import Settings

LIMIT = 5.0  # of |μ|
LINES = {
    "logit_laplace": {"color": style.BLACK, "linestyle": "-"},
    "l1": {"color": style.VERMILLION, "linestyle": style.DASHES[1]},
    "l2": {"color": style.BLUE, "linestyle": style.DASHES[2]},
}
LABELS = {
    "logit_laplace": "logit-Laplace, b = {b:g} (nats)",
    "l1": "L1, |p − x|",
    "l2": "L2, (p − x)²",
}


def compute(settings: Settings) -> Record:
    """Losses above their minimum and gradients in μ and in p = sigmoid(μ), [loss, target, p]."""
    targets = np.array(settings.targets)
    x = np.asarray(ll.map_pixels(jnp.asarray(targets / 255.0), settings.eps))
    logits = np.log(x) - np.log1p(-x)
    loc = np.linspace(-LIMIT, LIMIT, settings.points)
    loc = np.union1d(loc, logits[np.abs(logits) < LIMIT])
    log_scale = np.log(settings.gradient_scale)

    def logit_laplace(target, loc):
        return ll.logit_laplace_loss(target, loc, log_scale)

    def l1(target, loc):
        return jnp.abs(jax.nn.sigmoid(loc) - target)

    def l2(target, loc):
        return (jax.nn.sigmoid(loc) - target) ** 2

    def by_prediction(loss):
        """The loss as a function of the predicted value p instead of μ."""
        return lambda target, p: loss(target, jnp.log(p) - jnp.log1p(-p))

    losses = {"logit_laplace": logit_laplace, "l1": l1, "l2": l2}
    p = grids.sigmoid(loc)
    values = np.stack([grids.over(f, x, loc) for f in losses.values()])
    least = np.stack([jax.vmap(f)(x, logits) for f in losses.values()])
    in_loc = {name: jax.grad(f, argnums=1) for name, f in losses.items()}
    in_p = {name: jax.grad(by_prediction(f), argnums=1) for name, f in losses.items()}
    probes = np.array([-4.6, -2.2, 0.0, 2.2, 4.6])
    columns = {}
    for name in losses:
        columns[f"{name}, in loc"] = grids.over(in_loc[name], x, probes)
        columns[f"{name}, in p"] = grids.over(in_p[name], x, grids.sigmoid(probes))
    cube = ("loss", "target", "loc")
    return Record(
        axes={"loss": np.array(list(losses)), "target": targets, "loc": loc},
        arrays={
            "x": (("target",), x),
            "p": (("loc",), p),
            "above_minimum": (cube, values - least[:, :, None]),
            "gradient_in_loc": (cube, np.stack([grids.over(g, x, loc) for g in in_loc.values()])),
            "gradient_in_p": (cube, np.stack([grids.over(g, x, p) for g in in_p.values()])),
        },
        numbers={
            "b": settings.gradient_scale,
            "gradients": grids.table(columns, target=targets, loc=probes),
        },
    )


def draw(record: Record) -> Figure:
    """A column a target: loss, gradient in μ, size of the gradient in p."""
    targets, p = record["target"], record["p"]
    figure, axes = style.panels(3, len(targets), 5.6, sharex=True, sharey="row")
    b = record.numbers["b"]
    for j, target in enumerate(targets):
        x = record["x"][j]
        for k, name in enumerate(record["loss"]):
            line = {**LINES[name], "label": LABELS[name].format(b=b)}
            axes[0, j].plot(p, record["above_minimum"][k, j], **line)
            axes[1, j].plot(p, record["gradient_in_loc"][k, j], **line)
            size = np.abs(record["gradient_in_p"][k, j])
            axes[2, j].plot(p, np.where(size > 0, size, np.nan), **line)
        for panel in axes[:, j]:
            panel.axvline(x, color="0.7", linewidth=0.7, zorder=0)
        axes[1, j].axhline(0.0, color="0.7", linewidth=0.7, zorder=0)
        axes[0, j].set_title(f"target {target:g}: x = {x:.3f}")
        style.unit_axis(axes[2, j])
        axes[2, j].set_xlabel("prediction p = sigmoid(μ)")
    axes[0, 0].set_ylabel("loss above its\nminimum")
    axes[1, 0].set_ylabel("d loss / dμ,\nper logit unit")
    axes[2, 0].set_ylabel("|d loss / dp|,\nper unit of x")
    style.decades(axes[2, 0], 1e-2, float(np.abs(record["gradient_in_p"]).max()))
    style.legend(figure, axes[0, 0], 3)
    return figure
