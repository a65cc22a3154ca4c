"""What the ε of the pixel map changes."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from _atlas import grids, style
from _atlas.record import Record
from _atlas.settings import Settings

SCALES = (0.1, 0.3, 1.0)


def compute(settings: Settings) -> Record:
    """Logits and their steps [ε, grey level], and the mass of the two end values [ε, b]."""
    eps = np.array(settings.eps_values)
    grey = np.arange(256.0)
    b = np.geomspace(0.05, 20.0, settings.points)

    def mapped(eps, grey):  # ll.map_pixels, with an ε that vmap may vary
        return (1.0 - 2.0 * eps) * grey / 255.0 + eps

    def logit(eps, grey):
        x = mapped(eps, grey)
        return jnp.log(x) - jnp.log1p(-x)

    def finite(values):  # at ε = 0 the ends are mapped to 0 and 1, whose logits are infinite
        return np.where(np.isfinite(values), values, np.nan)

    logits = finite(grids.over(logit, eps, grey))
    steps = finite(grids.over(jax.grad(logit, argnums=1), eps, grey))

    def end_mass(b, value):
        return jnp.exp(ll.pixel_log_prob(pixel, 0.0, jnp.log(b), value))

    masses = []
    for value in settings.eps_values:
        pixel = jnp.array([0, 255], jnp.uint8)
        masses.append(grids.over(lambda b, value=value: end_mass(b, value).sum(), b))
    table = {}
    for i, value in enumerate(settings.eps_values):
        table[grids.tag(eps=value)] = {
            "largest |logit|": float(np.abs(logits[i]).max()),
            "logits a grey level at 0": float(steps[i, 0]),
            "logits a grey level at 128": float(steps[i, 128]),
            "ratio of the two": float(steps[i, 0] / steps[i, 128]),
            "ln(1 - 2 eps)": float(np.log1p(-2.0 * value)) + 0.0,
            "mass of 0 and 255 at loc=0": {
                grids.tag(b=s): float(end_mass(s, value).sum()) for s in SCALES
            },
        }
    return Record(
        axes={"eps": eps, "grey": grey, "b": b},
        arrays={
            "logit": (("eps", "grey"), logits),
            "logits_a_grey_level": (("eps", "grey"), steps),
            "end_mass": (("eps", "b"), np.stack(masses)),
        },
        numbers=table,
    )


def draw(record: Record) -> Figure:
    """The logit of a grey level, how much a grey level is in logits, the mass of both ends."""
    figure, axes = style.panels(1, 3, 2.8)
    first, second, third = axes[0]
    lines = style.ordered(len(record["eps"]))
    for i, (eps, line) in enumerate(zip(record["eps"], lines, strict=True)):
        first.plot(record["grey"], record["logit"][i], label=f"ε = {eps:g}", **line)
        second.semilogy(record["grey"], record["logits_a_grey_level"][i], **line)
        third.semilogx(record["b"], record["end_mass"][i], **line)
    first.set_ylabel("logit x")
    second.set_ylabel("logit units")
    for panel in (first, second):
        panel.set_xlabel("grey level")
        panel.set_xlim(0, 255)
        panel.set_xticks([0, 64, 128, 192, 255])
    third.set_ylabel("probability of 0 or 255")
    third.set_xlabel("b, logit units")
    third.set_ylim(0, 1)
    third.set_xlim(record["b"][0], record["b"][-1])
    style.legend(figure, first, len(lines))
    style.title(axes, "mapped value", "step of one grey level", "end values, μ = 0")
    return figure
