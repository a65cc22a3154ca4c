"""The sheet at the end of a run: held-out photographs, and where the model expects its errors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from logit_laplace_jax.evaluation import figures
from logit_laplace_jax.runs.coding import Coded

_PANEL = 3.3
"""Width of a panel, in inches."""
_DPI = 150


def write(path: Path, rows: Sequence[tuple[str, Coded]], title: str) -> None:
    """Draws a row for each image: original, reconstruction, expected and actual error.

    Args:
      path: the PNG, which appears complete or not at all.
      rows: names and images, coded with their expected errors.
      title: one line.
    """
    from matplotlib.figure import Figure

    heights = [row.original.shape[0] / row.original.shape[1] for _, row in rows]
    width, height = 4 * _PANEL + 0.9, sum(_PANEL * h + 0.42 for h in heights) + 0.45
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    figure.suptitle(title, size=11, weight="bold", parse_math=False)
    grid = figure.subplots(len(rows), 4, squeeze=False, height_ratios=heights)
    for axes, (name, row) in zip(grid, rows, strict=True):
        assert row.expected is not None
        actual = np.abs(255.0 * row.rebuilt - row.original).mean(-1)
        expected = row.expected
        top = max(float(np.quantile(np.stack([actual, expected]), 0.99)), 1.0)
        tall, wide = row.original.shape[:2]
        axes[0].imshow(figures.to_uint8(row.original), interpolation="nearest")
        axes[0].set_title(f"{name}, original, {wide} × {tall}", size=9, parse_math=False)
        axes[1].imshow(figures.to_uint8(row.rebuilt), interpolation="nearest")
        axes[1].set_title(
            f"hard codes: PSNR {row.psnr:.2f} dB, {row.bits_per_dim:.2f} bits/dim", size=9
        )
        titles = ("error expected, by the predicted scale b", "actual error")
        for place, values, title in zip(axes[2:], (expected, actual), titles, strict=True):
            heat = place.imshow(values, "inferno", vmin=0.0, vmax=top, interpolation="nearest")
            place.set_title(f"{title}: mean {values.mean():.1f}", size=9)
        bar = figure.colorbar(heat, ax=axes, shrink=0.9, pad=0.01, aspect=25)
        bar.set_label("absolute error, grey levels (0…255)", size=8)
        bar.ax.tick_params(labelsize=8)
        for place in axes:
            place.set_axis_off()
    figures.save_figure(path, figure)
