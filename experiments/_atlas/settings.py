"""What the figures of the atlas are drawn for."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Settings:
    """Parameters of the figures; every one is an option of density.py."""

    locs: tuple[float, ...] = (-2.0, 0.0, 1.0)
    """μ of shapes and leak (a panel each), in logit units: one to four in [-10, 10]."""
    scales: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    """b, not ln b, of shapes and centres (a line each), logit units: one to six in [0.02, 20]."""
    cases: tuple[tuple[float, float], ...] = ((0.0, 0.3), (2.0, 0.5), (0.0, 2.0))
    """μ b μ b ... of families (a panel a pair), in logit units: one to four pairs."""
    targets: tuple[int, ...] = (0, 64, 128)
    """Targets of gradients (a panel each), in 8-bit grey levels: one to four in [0, 255]."""
    gradient_scale: float = 1.0
    """b of the logit-Laplace loss in gradients, in logit units, in [0.02, 20]."""
    residuals: tuple[float, ...] = (0.0, 0.5, 2.0, 8.0, 32.0)
    """Misses of the median in scale (a line each), in 8-bit grey levels: one to six in [0, 120]."""
    eps: float = 0.1
    """ε of the pixel map in centres, gradients and scale, a share of (0, 1), in [0, 0.5)."""
    eps_values: tuple[float, ...] = (0.0, 0.01, 0.05, 0.1, 0.2)
    """ε of the pixel map in epsilon (a line each), shares of (0, 1): one to six in [0, 0.5)."""
    points: int = 400
    """Points of each curve, 20 to 4000."""
    grid: int = 81
    """Points of each side of the maps in moments, 5 to 500."""

    def check(self) -> None:
        """Refuses what no figure can show.

        Raises:
          ValueError: names the option, what it takes and what it got.
        """
        _each("--locs", self.locs, 4, -10, 10)
        _each("--scales", self.scales, 6, 0.02, 20)
        _each("--targets", self.targets, 4, 0, 255)
        _each("--residuals", self.residuals, 6, 0, 120)
        _each("--eps-values", self.eps_values, 6, 0, 0.5, below=True)
        _each("--eps", (self.eps,), 1, 0, 0.5, below=True)
        _each("--gradient-scale", (self.gradient_scale,), 1, 0.02, 20)
        _each("--points", (self.points,), 1, 20, 4000)
        _each("--grid", (self.grid,), 1, 5, 500)
        if not 1 <= len(self.cases) <= 4 or len(set(self.cases)) < len(self.cases):
            raise ValueError("--cases takes 1 to 4 different pairs of numbers, μ b")
        _within("--cases", [loc for loc, _ in self.cases], -10, 10)
        _within("--cases", [scale for _, scale in self.cases], 0.02, 20)


def _each(
    name: str, values: tuple[float, ...], most: int, low: float, high: float, below: bool = False
) -> None:
    if not 1 <= len(values) <= most or len(set(values)) < len(values):
        raise ValueError(f"{name} takes 1 to {most} different values, got {len(values)}")
    _within(name, list(values), low, high, below)


def _within(name: str, values: list[float], low: float, high: float, below: bool = False) -> None:
    for value in values:
        if not math.isfinite(value) or not low <= value <= high or (below and value == high):
            bracket = ")" if below else "]"
            raise ValueError(f"{name} must lie in [{low}, {high}{bracket}, got {value:g}")
