"""The report's plots, as PNG."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from logit_laplace_jax.evaluation import figures

_GREY = "0.6"

_SHEET_GAP = 6
"""Between the two rows of a sheet that training wrote: 2 pixels, enlarged 3 times."""


def _save(figure: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=120)
    part.replace(path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _colours(names: Sequence[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    return {name: colormaps["tab10"](i % 10) for i, name in enumerate(names)}


def forest(path: Path, rows: Sequence[dict[str, Any]], data: Sequence[str]) -> None:
    """Differences with intervals, by data set and in all: a panel for each measure.

    Args:
      path: the file.
      rows: of :func:`comparisons.compare`, all of one hypothesis.
      data: names of the data sets.
    """
    panels: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        panels.setdefault(row["measure"], []).append(row)
    across, lines = min(2, len(panels)), max(map(len, panels.values()))
    down = math.ceil(len(panels) / across)
    figure = _figure(6.5 * across, 0.6 + down * (0.8 + 0.6 * lines))
    axes = figure.subplots(down, across, squeeze=False).ravel()
    colours = _colours(data)
    for axis, (measure, found) in zip(axes, panels.items(), strict=False):
        for place, row in enumerate(found):
            parts = [*row["data"].items(), ("all", row["all"])]
            for i, (name, part) in enumerate(parts):
                error = [[part["mean"] - part["low"]], [part["high"] - part["mean"]]]
                axis.errorbar(
                    part["mean"],
                    place + 0.7 * (i / max(len(parts) - 1, 1) - 0.5),
                    xerr=np.maximum(error, 0.0),
                    fmt="D" if name == "all" else "o",
                    markersize=4,
                    color=colours.get(name, "black"),
                )
        axis.axvline(0.0, color=_GREY, linewidth=1)
        names = [f"{r['a']}\n- {r['b']}\n{r['all'].get('verdict', '')}" for r in found]
        axis.set_yticks(range(len(found)), names, fontsize=7)
        axis.set_ylim(len(found) - 0.4, -0.6)
        axis.set_title(measure, fontsize=9, loc="left")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles = [
        axes[0].plot([], [], "D" if n == "all" else "o", color=colours.get(n, "black"))[0]
        for n in (*data, "all")
    ]
    figure.legend(handles, [*data, "all"], loc="outside upper center", ncols=len(handles))
    _save(figure, path)


def _by_data(
    path: Path,
    runs: Sequence[dict[str, Any]],
    draw: Callable[[Any, str, Sequence[dict[str, Any]], Any], None],
    labels: tuple[str, str],
) -> None:
    """A panel for each data set, in which ``draw`` draws each cell's runs."""
    data = list(dict.fromkeys(run["data"] for run in runs))
    if not data:
        return
    cells = list(dict.fromkeys(run["cell"] for run in runs))
    colours = _colours(cells)
    figure = _figure(4.2 * len(data) + 1.8, 4.0)
    axes = figure.subplots(1, len(data), squeeze=False)[0]
    for axis, name in zip(axes, data, strict=True):
        for cell in cells:
            found = [run for run in runs if (run["data"], run["cell"]) == (name, cell)]
            if found:
                draw(axis, cell, found, colours[cell])
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_xlabel(labels[0])
    axes[0].set_ylabel(labels[1])
    handles = [axes[0].plot([], [], "o-", color=colours[cell])[0] for cell in cells]
    figure.legend(handles, cells, loc="outside right center", fontsize=8)
    _save(figure, path)


def rates(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Bits per value against PSNR, a point for each run."""

    def draw(axis: Any, cell: str, found: Sequence[dict[str, Any]], colour: Any) -> None:
        axis.plot(
            [r["bpd_hard"] for r in found], [r["psnr_median"] for r in found], "o", color=colour
        )

    _by_data(path, runs, draw, ("bits/dim", "PSNR of the median, dB"))


def calibration(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """The histogram of the probability integral transform; flat is calibrated."""

    def draw(axis: Any, cell: str, found: Sequence[dict[str, Any]], colour: Any) -> None:
        counts = np.sum([run["pit_counts"] for run in found], axis=0)
        density = counts / counts.sum() * len(counts)
        axis.stairs(density, np.linspace(0.0, 1.0, len(counts) + 1), baseline=None, color=colour)
        axis.axhline(1.0, color=_GREY, linewidth=1)

    _by_data(path, runs, draw, ("probability integral transform", "density"))


def codes(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """How often each code occurs, the most frequent first; means over seeds."""

    def draw(axis: Any, cell: str, found: Sequence[dict[str, Any]], colour: Any) -> None:
        counts = np.mean([sorted(run["code_counts"], reverse=True) for run in found], axis=0)
        axis.semilogy(np.maximum(counts / counts.sum(), 1e-6), color=colour)

    _by_data(path, runs, draw, ("code, by frequency", "share"))


def pictures(path: Path, sheets: dict[str, Path]) -> None:
    """Originals and every cell's reconstructions below, each row with its name.

    Args:
      path: the file.
      sheets: by cell, a picture that training wrote: originals above reconstructions.
    """
    from PIL import Image, ImageDraw

    if not sheets:
        return
    rows: dict[str, np.ndarray] = {}
    for cell, sheet in sheets.items():
        with Image.open(sheet) as image:
            pixels = np.asarray(image.convert("RGB"))
        height = (len(pixels) - _SHEET_GAP) // 2
        rows.setdefault("original", pixels[:height])
        rows[cell] = pixels[-height:]
    names = Image.new("RGB", (150, 1), "white")
    strips = []
    for name, row in rows.items():
        label = names.resize((150, len(row)))
        ImageDraw.Draw(label).text((4, len(row) // 2 - 6), name, fill="black")
        strips.append(np.concatenate([np.asarray(label), row], axis=1))
    gap = np.full((6, strips[0].shape[1], 3), 255, np.uint8)
    figures.save_png(path, np.concatenate([p for s in strips for p in (gap, s)][1:]))
