"""One look for all figures: small, plain, and readable in grey and with colour blindness."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullLocator

WIDTH = 7.0  # inches: the text width of a two-column page

_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "density atlas",
    "svg.fonttype": "path",
}

# Okabe and Ito's palette without its yellow, which is too light for lines.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (3, 1.5, 1, 1.5, 1, 1.5)),
    (0, (9, 3)),
)


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's defaults and this style, whatever the user's configuration says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of ``WIDTH`` x ``height`` inches with an array [rows, columns] of axes."""
    figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.06))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def ordered(count: int) -> list[dict[str, Any]]:
    """Line styles for ordered values: cividis from dark to light, each with dashes of its own."""
    colours = matplotlib.colormaps["cividis"](np.linspace(0.0, 0.85, max(count, 2)))
    return [{"color": colours[i], "linestyle": DASHES[i % len(DASHES)]} for i in range(count)]


def legend(figure: Figure, axes: Axes, columns: int, title: str | None = None) -> None:
    """One legend for the whole figure, below the panels, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title)


def title(axes: np.ndarray, *titles: str) -> None:
    """Titles the panels (a), (b), …, at their left."""
    for i, (panel, text) in enumerate(zip(axes.flat, titles, strict=True)):
        panel.set_title(f"({chr(97 + i)}) {text}", loc="left")


def number(value: float) -> str:
    """A number for a title or legend, with a true minus sign."""
    return f"{value:g}".replace("-", "−")


def mark(panel: Axes, x: float) -> None:
    """A thin vertical line behind the curves."""
    panel.axvline(x, color="0.7", linewidth=0.7, zorder=0)


def unit_axis(panel: Axes, low: float = 0.0, high: float = 1.0) -> None:
    """An x axis over (0, 1), or more, with few short labels."""
    panel.set_xlim(low, high)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])


def decades(panel: Axes, low: float, high: float) -> None:
    """A logarithmic y axis over whole decades, with ticks only there."""
    panel.set_yscale("log")
    panel.set_ylim(10.0 ** np.floor(np.log10(low)), 10.0 ** np.ceil(np.log10(high)))
    panel.yaxis.set_major_locator(LogLocator(numticks=12))
    panel.yaxis.set_minor_locator(NullLocator())


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Writes the figure without date and version; the file appears complete or not at all."""
    kind = path.suffix[1:]
    dates = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format=kind, dpi=dpi, metadata=dates[kind])
    part.replace(path)
