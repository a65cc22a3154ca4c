"""Figures of density.py: one short module each, with ``compute`` (numbers) and ``draw`` (picture).

``compute(settings)`` returns a :class:`_atlas.record.Record`, ``draw(record)`` a matplotlib figure
made from that record alone. So a picture can be redrawn from the JSON file beside it.
"""

import importlib
from types import ModuleType

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


def load(name: str) -> ModuleType:
    """The figure's module."""
    return importlib.import_module(f"_atlas.{name}")
