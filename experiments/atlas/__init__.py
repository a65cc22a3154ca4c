"""Figures of density.py: a function each, by topic.

A function of a figure's name computes its grids by ``jax.vmap``, in double precision, and returns
the matplotlib figure with the numbers that docs/density.md quotes of it.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {
    "shapes": "density and cdf over a grid of (μ, b)",
    "moments": "mean, standard deviation and entropy over the plane of (μ, b)",
    "centres": "mean, median and mode: what a reconstruction by sigmoid(μ) is",
    "ends": "where b ≥ 1 piles the density up at 0 and 1",
    "families": "normal, Laplace, logistic, beta and logit-normal of equal mean and variance",
    "leak": "the mass that normal, Laplace and logistic put outside (0, 1)",
    "gradients": "loss and gradient against the prediction: L1, L2 and logit-Laplace",
    "scale": "loss and gradient against ln b",
    "epsilon": "what the ε of the pixel map changes",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures are drawn for; every field is an option of density.py."""

    locs: tuple[float, ...] = (-2.0, 0.0, 1.0)
    """μ of shapes and leak (a panel each), in logit units: one to four in [-10, 10]."""
    scales: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    """b, not ln b, of shapes and centres (a line each), logit units: one to six in [0.02, 20]."""
    targets: tuple[int, ...] = (0, 64, 128)
    """Targets of gradients (a panel each), in 8-bit grey levels: one to four in [0, 255]."""
    eps: float = 0.1
    """ε of the pixel map in centres, gradients and scale, a share of (0, 1), in [0.001, 0.49]."""
    points: int = 400
    """Points of each curve, 20 to 4000; the maps of moments have a fifth of them on a side."""

    def check(self) -> None:
        """Refuses what no figure can show.

        Raises:
          ValueError: names the option, what it takes and what it got.
        """
        for name, values, most, low, high in (
            ("--locs", self.locs, 4, -10, 10),
            ("--scales", self.scales, 6, 0.02, 20),
            ("--targets", self.targets, 4, 0, 255),
            ("--eps", (self.eps,), 1, 0.001, 0.49),
            ("--points", (self.points,), 1, 20, 4000),
        ):
            if not 1 <= len(values) <= most or len(set(values)) < len(values):
                raise ValueError(f"{name} takes 1 to {most} different values, got {len(values)}")
            for value in values:
                if not low <= value <= high:  # so that NaN is caught
                    raise ValueError(f"{name} must lie in [{low}, {high}], got {value:g}")


def load(name: str) -> Callable[[Settings], tuple["Figure", dict[str, Any]]]:
    """The figure's function."""
    places = {"families": "neighbors", "leak": "neighbors"}
    places |= dict.fromkeys(("gradients", "scale", "epsilon"), "losses")
    module = importlib.import_module(f"atlas.{places.get(name, 'distribution')}")
    return getattr(module, name)
