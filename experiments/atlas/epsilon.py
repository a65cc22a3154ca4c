"""What the ε of the pixel map changes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import logit_laplace_jax as ll
from atlas import Settings, grids, style

EPS = (0.0, 0.01, 0.05, 0.1, 0.2)
SCALES = (0.1, 0.3, 1.0)
"""The b whose masses are quoted."""


def draw(settings: Settings) -> tuple[Figure, dict[str, Any]]:
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
