"""The numbers of an evaluation as a table on the terminal and as one page of PNG.

Both take one flat dict of results. Every key is optional: what is missing, or None, leaves its row,
column or panel out; NaN is printed as such.

===========================  ==================================================================
key                          meaning
===========================  ==================================================================
likelihood, data             names
step, images                 update of the checkpoint; evaluated images
values_per_image             H · W · C of one image
bpd_{t}_pixels               bits/dim of the pixels given their codes; t is hard or relaxed
bpd_{t}_codes                what the codes cost, spread over the values: log2 V a token, or the KL
bpd_{t}                      the sum, an upper bound of the code length
bpd_gap                      bpd_relaxed_pixels − bpd_hard_pixels
nll_{t}, elbo_{t}            of the density, nats per value
kl                           nats per token
psnr_{r}, ssim_{r},          of the reconstruction r: median, mean, sample (from the hard codes),
ms_ssim_{r}, mae_{r}         or relaxed; dB, 1, 1, grey levels
psnr                         of the likelihood's own point estimate, from the hard codes, dB
edge_share                   share of the pixels that lie near an edge
bpd_{e}, psnr_{e}, mae_{e}   of those pixels (e = edges) and of the others (e = flat)
code_usage, code_perplexity  share of the vocabulary that occurs; exp of the entropy
vocab_size, code_counts      V; how often each of the V codes occurs
pit_counts                   of equal bins, see :mod:`logit_laplace_jax.evaluation.calibration`
pit_tv, pit_ks,              how far that histogram is from uniform
pit_mean_shift,
pit_variance_ratio
floor_share                  share of the values whose ln b is at its floor
optimal_scale                b given the hard codes, where it is the images' own optimum
===========================  ==================================================================
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from logit_laplace_jax.data.errors import missing_package
from logit_laplace_jax.evaluation import codebook, figures

Results = Mapping[str, Any]

_DPI = 150
_PICTURES = 8
# Okabe and Ito's colours, which colour-blind readers tell apart; the two of each pair also
# differ in lightness, for print in grey.
_BLUE, _ORANGE, _SKY, _BLACK, _GREY = "#0072B2", "#E69F00", "#56B4E9", "#000000", "#666666"


class _Row(NamedTuple):
    label: str
    unit: str
    keys: tuple[str, ...]
    """One of each column of the section; "" leaves the cell empty."""
    form: str = ".4f"


class _Section(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: tuple[_Row, ...]


def _each(pattern: str, *names: str) -> tuple[str, ...]:
    return tuple(pattern.format(name) for name in names)


_CODINGS, _KINDS = ("hard", "relaxed"), ("median", "mean", "sample", "relaxed")
_PLACES = ("edges", "flat")
_SECTIONS = (
    _Section(
        "code length",
        _CODINGS,
        (
            _Row("pixels given the codes", "bits/dim", _each("bpd_{}_pixels", *_CODINGS)),
            _Row("codes (log2 V | KL)", "bits/dim", _each("bpd_{}_codes", *_CODINGS)),
            _Row("total", "bits/dim", _each("bpd_{}", *_CODINGS)),
            _Row("pixels, relaxed − hard", "bits/dim", ("", "bpd_gap")),
            _Row("density, −log p", "nats/value", _each("nll_{}", *_CODINGS)),
            _Row("density, ELBO", "nats/value", _each("elbo_{}", *_CODINGS)),
            _Row("KL to uniform", "nats/token", ("", "kl")),
        ),
    ),
    _Section(
        "code length with the prior",
        ("prior", "uniform"),
        (
            _Row("codes", "bits/token", ("bits_per_token", "")),
            _Row("codes", "bits/dim", ("bpd_prior_codes", "bpd_uniform_codes")),
            _Row("codes and pixels", "bits/dim", ("bpd_prior", "bpd_uniform")),
            _Row("PNG | WebP, a file each", "bits/dim", ("bpd_png", "bpd_webp")),
        ),
    ),
    _Section(
        "distortion",
        _KINDS,
        (
            _Row("PSNR", "dB", _each("psnr_{}", *_KINDS), ".2f"),
            _Row("PSNR, point estimate", "dB", ("psnr",), ".2f"),
            _Row("SSIM", "", _each("ssim_{}", *_KINDS)),
            _Row("MS-SSIM", "", _each("ms_ssim_{}", *_KINDS)),
            _Row("absolute error", "grey levels", _each("mae_{}", *_KINDS), ".2f"),
        ),
    ),
    _Section(
        "near edges and away",
        ("near", "away"),
        (
            _Row("share of the pixels", "%", ("edge_share",), "%"),
            _Row("code length", "bits/dim", _each("bpd_{}", *_PLACES)),
            _Row("PSNR", "dB", _each("psnr_{}", *_PLACES), ".2f"),
            _Row("absolute error", "grey levels", _each("mae_{}", *_PLACES), ".2f"),
        ),
    ),
    _Section(
        "codes",
        ("",),
        (
            _Row("vocabulary", "codes", ("vocab_size",), "d"),
            _Row("in use", "%", ("code_usage",), "%"),
            _Row("perplexity", "codes", ("code_perplexity",), ".1f"),
        ),
    ),
    _Section(
        "calibration",
        ("",),
        (
            _Row("PIT, total variation", "", ("pit_tv",)),
            _Row("PIT, largest cdf gap", "", ("pit_ks",)),
            _Row("PIT, mean − 1/2", "", ("pit_mean_shift",)),
            _Row("PIT, variance · 12", "", ("pit_variance_ratio",)),
            _Row("scales at their floor", "%", ("floor_share",), "%"),
            _Row("optimal scale b", "", ("optimal_scale",)),
        ),
    ),
)
_HEAD = ("likelihood", "data", "step", "images", "values_per_image", "prior_step")
_LISTS = ("code_counts", "pit_counts")

_Filled = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""Title, names of the columns, rows of label, unit and cells."""


def _has(results: Results, key: str) -> bool:
    return results.get(key) is not None


def _number(value: Any, form: str) -> str:
    """A number as text, at most ten characters unless it is a whole one.

    >>> [_number(v, f) for v, f in [(0.7, "%"), (3.14159, ".2f"), (8192.0, "d"), (-3e9, ".4f")]]
    ['70.00', '3.14', '8,192', '-3.000e+09']
    """
    value = float(value)
    if not math.isfinite(value):
        return f"{value}"
    if form == "%":
        value, form = 100.0 * value, ".2f"
    if form == "d":
        return f"{round(value):,d}"
    text = f"{value:{form}}"
    return text if len(text) <= 9 else f"{value:.3e}"


def _filled(results: Results) -> list[_Filled]:
    """The sections' titles, columns and rows (label, unit, cells...) that have a number."""
    sections = []
    for title, columns, rows in _SECTIONS:
        rows = tuple(row for row in rows if any(_has(results, key) for key in row.keys))
        kept = [
            i
            for i in range(len(columns))
            if any(_has(results, row.keys[i]) for row in rows if i < len(row.keys))
        ]
        cells = [
            (
                row.label,
                row.unit,
                *(
                    _number(results[row.keys[i]], row.form)
                    if i < len(row.keys) and _has(results, row.keys[i])
                    else ""
                    for i in kept
                ),
            )
            for row in rows
        ]
        if cells:
            sections.append((title, tuple(columns[i] for i in kept), cells))
    return sections


def _headline(results: Results) -> str:
    """What was evaluated, on one line.

    >>> _headline({"data": "photos", "images": 92, "step": 2000})
    'photos · step 2,000 · 92 images'
    """
    forms = {"step": "step {}", "images": "{} images", "values_per_image": "{} values an image"}
    parts = [
        forms[key].format(_number(results[key], "d")) if key in forms else str(results[key])
        for key in _HEAD
        if _has(results, key)
    ]
    return " · ".join(parts)


def table(results: Results) -> str:
    """The numbers as text for a terminal, in sections, aligned, with units.

    Numbers under keys that this module does not know come last, under their own names; lists
    and other values are passed over.

    Args:
      results: as at the top of this module.

    Returns:
      Lines without an end of line after the last one.

    >>> print(table({"bpd_hard": 3.5, "bpd_relaxed": 3.25, "kl": 2.0, "psnr_median": 23.1}))
    code length                           hard  relaxed
      total               bits/dim      3.5000   3.2500
      KL to uniform       nats/token             2.0000
    <BLANKLINE>
    distortion                          median
      PSNR                dB             23.10
    """
    sections = _filled(results)
    known = {key for section in _SECTIONS for row in section.rows for key in row.keys}
    known.update(_HEAD, _LISTS)
    rest = {key: results[key] for key in results if key not in known and _scalar(results[key])}
    if rest:
        rows: list[tuple[str, ...]] = [(k, "", _number(v, ".4f")) for k, v in rest.items()]
        sections.append(("other", ("",), rows))
    rows = [row for section in sections for row in section[2]]
    names = max([18, *(len(row[0]) for row in rows)])
    units = max([11, *(len(row[1]) for row in rows)])
    cells = [cell for row in rows for cell in row[2:]]
    wide = max([7, *(len(text) for text in cells)])
    blocks = []
    for title, columns, lines in sections:
        text = [f"{title:<{names + units + 4}}" + "".join(f"  {c:>{wide}}" for c in columns)]
        for label, unit, *numbers in lines:
            right = "".join(f"  {n:>{wide}}" for n in numbers)
            text.append(f"  {label:<{names}}  {unit:<{units}}{right}")
        blocks.append("\n".join(line.rstrip() for line in text))
    return "\n\n".join(([_headline(results)] if _headline(results) else []) + blocks)


def _scalar(value: Any) -> bool:
    return hasattr(value, "__float__") and np.ndim(value) == 0


# --- The page ------------------------------------------------------------------------------------


def write_page(
    path: Path, results: Results, pictures: Mapping[str, np.ndarray], title: str
) -> None:
    """Writes the table, its charts and a sheet of pictures as one PNG.

    The charts: code length, split into pixels and codes; the PIT histogram; the codes in the order
    of their counts; measures near edges and away from them.

    Args:
      path: the PNG file, which appears complete or not at all; an older one is replaced.
      results: as at the top of this module.
      pictures: a row of pictures under each name, e.g. original, median, mean and sample: float
        [N, H, W, C] in [0, 1] or uint8; C is 1 or 3. The first 8 are shown.
      title: the heading.

    Raises:
      DataError: matplotlib is not installed.

    Example:
      ``write_page(Path("report.png"), results, {"original": x, "median": y}, "photos, seed 0")``
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise missing_package("matplotlib") from error

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # Nobody's own style changes the page.
        matplotlib.rcParams.update(_STYLE)
        figure = _page(results, pictures, title)
        FigureCanvasAgg(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        figure.savefig(part, format="png")
    part.replace(path)


_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.borderaxespad": 0.2,
}
# Inches: the page, the table's columns and lines, a chart, the pictures.
_WIDTH, _MARGIN, _HEAD_HEIGHT = 12.0, 0.3, 0.75
_TABLE, _UNIT, _NUMBERS, _COLUMN, _LINE = 5.75, 1.55, 2.2, 0.76, 0.18
_CHART_HEIGHT = 2.7
_NAMES, _CELL, _GAP = 0.85, 1.26, 0.05


def _page(results: Results, pictures: Mapping[str, np.ndarray], title: str) -> Any:
    """The page as a matplotlib figure: head, table beside charts, pictures, where there are any."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    sections = _filled(results)
    charts = [draw for draw, given in _CHARTS if given(results)]
    sheet = {name: _shown(rows) for name, rows in pictures.items() if len(rows)}
    across = 2 if sections else 3
    down = math.ceil(len(charts) / across)
    heights = {
        "head": _HEAD_HEIGHT,
        "body": max(_table_height(sections), down * _CHART_HEIGHT),
        "sheet": _sheet_height(sheet),
    }
    heights = {name: height for name, height in heights.items() if height}
    figure = Figure(
        figsize=(_WIDTH, sum(heights.values())),
        dpi=_DPI,
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08),
    )
    parts = figure.subfigures(len(heights), 1, height_ratios=list(heights.values()), squeeze=False)
    part = dict(zip(heights, parts[:, 0], strict=True))
    _draw_head(_inches(part["head"], _WIDTH, _HEAD_HEIGHT), title, results)
    if "body" in part:
        table_width = _TABLE if sections else _MARGIN
        left, right, _ = part["body"].subfigures(
            1, 3, width_ratios=[table_width, _WIDTH - table_width - _MARGIN, _MARGIN]
        )
        if sections:
            _draw_table(_inches(left, table_width, heights["body"]), sections)
        for place, draw in zip(right.add_gridspec(max(down, 1), across), charts, strict=False):
            draw(right, place, results)
    if sheet:
        _draw_sheet(_inches(part["sheet"], _WIDTH, heights["sheet"]), sheet)
    return figure


def _inches(part: Any, width: float, height: float) -> Any:
    """An empty canvas over a part of the page: x and y in inches from its upper left corner."""
    axes = part.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def _clip(text: str, length: int) -> str:
    """The text, its middle left out where it is too long.

    >>> _clip("folder:/a/very/long/path", 12)
    'folder…/path'
    """
    text = " ".join(text.split())
    end = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - end]}…{text[-end:]}"


def _draw_head(axes: Any, title: str, results: Results) -> None:
    axes.text(_MARGIN, 0.38, _clip(title, 80), size=14, weight="bold", parse_math=False)
    axes.text(_MARGIN, 0.6, _clip(_headline(results), 130), size=9, color=_GREY, parse_math=False)


def _table_height(sections: list[_Filled]) -> float:
    return sum((len(rows) + 1.8) * _LINE for _, _, rows in sections) + _LINE if sections else 0.0


def _draw_table(axes: Any, sections: list[_Filled]) -> None:
    y = _LINE
    for title, columns, rows in sections:
        axes.text(_MARGIN, y, title[0].upper() + title[1:], weight="bold", size=9)
        ends = [_NUMBERS + _MARGIN + _COLUMN * (i + 1) for i in range(len(columns))]
        for name, x in zip(columns, ends, strict=True):
            axes.text(x, y, name, ha="right", color=_GREY)
        axes.plot([_MARGIN, _TABLE - 0.2], [y + 0.05] * 2, color=_GREY, linewidth=0.5)
        for label, unit, *cells in rows:
            y += _LINE
            axes.text(_MARGIN, y, label)
            axes.text(_MARGIN + _UNIT, y, unit, color=_GREY)
            for cell, x in zip(cells, ends, strict=True):
                axes.text(x, y, cell.replace("-", "−"), ha="right")
        y += 1.8 * _LINE


def _value(results: Results, key: str) -> float:
    """The number of a chart; NaN, which draws nothing, where it is missing or infinite."""
    value = float(results[key]) if _has(results, key) else math.nan
    return value if math.isfinite(value) else math.nan


def _draw_code_length(figure: Any, place: Any, results: Results) -> None:
    """Bars of bits/dim, the pixels' part and the codes' part stacked."""
    axes = figure.add_subplot(place, title="Code length", xlabel="bits/dim")
    codings = [t for t in _CODINGS if any(_has(results, key) for key in _bpd_keys(t))]
    for y, coding in enumerate(reversed(codings)):
        pixels, codes, total = (_value(results, key) for key in _bpd_keys(coding))
        first, second = np.nan_to_num([pixels, codes])
        if math.isnan(pixels) and math.isnan(codes):
            axes.barh(y, np.nan_to_num(total), 0.55, color=_SKY, label="total")
        else:
            axes.barh(y, first, 0.55, color=_BLUE, label="pixels given the codes")
            axes.barh(y, second, 0.55, left=first, color=_ORANGE, label="codes")
        end = max(first, first + second, np.nan_to_num(total), 0.0)
        axes.annotate(f" {_short(results, _bpd_keys(coding)[2], 4)}", (end, y), va="center")
    right = axes.get_xlim()[1]
    axes.set(xlim=(0, 1.2 * right), ylim=(-0.6, len(codings) + 0.1))
    axes.set_yticks(range(len(codings)), codings[::-1])
    axes.xaxis.set_major_locator(_ticks(4))
    drawn = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    axes.legend(drawn.values(), drawn.keys(), loc="upper left", ncols=2, columnspacing=1.0)


def _bpd_keys(coding: str) -> tuple[str, str, str]:
    return f"bpd_{coding}_pixels", f"bpd_{coding}_codes", f"bpd_{coding}"


def _ticks(count: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])


def _short(results: Results, key: str, digits: int) -> str:
    """A number beside its bar, of few characters; nothing where it is missing.

    >>> [_short({"mae_flat": value}, "mae_flat", 3) for value in (27.12, 255, -12345.6, 3e9)]
    ['27.1', '255', '−12346', '3e+09']
    """
    if not _has(results, key):
        return ""
    value = float(results[key])
    size = abs(value)
    form = f"#.{digits}g" if size < 1000 else ".0f" if size < 1e6 else ".0e"
    return f"{value:{form}}".rstrip(".").replace("-", "−") if math.isfinite(value) else f"{value}"


def _draw_pit(figure: Any, place: Any, results: Results) -> None:
    """The PIT histogram as a density, with the uniform one."""
    axes = figure.add_subplot(place, title="Calibration of the predicted scale")
    counts = np.asarray(results["pit_counts"], np.float64)
    bins = counts.size
    density = counts * bins / counts.sum()
    axes.bar(
        (np.arange(bins) + 0.5) / bins, density, 1 / bins, color=_SKY, edgecolor="white", lw=0.5
    )
    axes.axhline(1.0, color=_BLACK, linestyle="--", linewidth=1, label="uniform")
    axes.set(xlabel="probability integral transform", ylabel="density", xlim=(0, 1))
    axes.set_ylim(0, 1.25 * max(density.max(), 1.0))
    axes.legend(loc="upper right")


def _draw_codes(figure: Any, place: Any, results: Results) -> None:
    """Counts of the codes in falling order."""
    counts = np.sort(np.asarray(results["code_counts"], np.float64))[::-1]
    vocabulary, used = counts.size, int(np.sum(counts > 0))
    perplexity, even = codebook.perplexity(counts), counts.sum() / vocabulary
    axes = figure.add_subplot(place, title=f"{used:,} of {vocabulary:,} codes in use")
    ranks = np.arange(used + 1) + 0.5
    # Half a count as the floor, so that codes that occur once are seen on the log scale.
    axes.stairs(counts[:used], ranks, baseline=0.5, fill=True, color=_BLUE)
    low, high = min(0.5, even / 2), 2 * counts[0]
    label = f"perplexity {_number(perplexity, '.1f')}"
    axes.vlines(perplexity, low, high, color=_ORANGE, linewidth=1.5, label=label)
    axes.axhline(even, color=_BLACK, linestyle="--", linewidth=1, label="uniform")
    axes.set_yscale("log")
    # Room for the legend above: an eighth of the height, on the log scale.
    axes.set(xlim=(0.5, vocabulary + 0.5), ylim=(low, high * (high / low) ** 0.15))
    # A handful of thousands would be too thin to see.
    few = used < vocabulary / 20
    if few:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(_ticks(5))
    axes.set(xlabel=f"rank of the code{', log scale' if few else ''}", ylabel="count")
    axes.legend(loc="upper right", ncols=2, columnspacing=1.0, handlelength=1.4)


_PLACE_CHARTS = (("bpd", "bits/dim"), ("psnr", "PSNR, dB"), ("mae", "error,\ngrey levels"))


def _draw_places(figure: Any, place: Any, results: Results) -> None:
    """Bars near edges and away, a small chart for each measure."""
    frame = figure.add_subplot(place, title="Near edges and away from them")
    frame.set_axis_off()
    measures = [
        (keys, label)
        for keys, label in ((_each(f"{m}_{{}}", *_PLACES), label) for m, label in _PLACE_CHARTS)
        if any(map(_finite(results), keys))
    ]
    for i, (keys, label) in enumerate(measures):
        axes = frame.inset_axes(((i + 0.05) / len(measures), 0, 0.9 / len(measures), 1))
        values = np.nan_to_num([_value(results, key) for key in keys])
        axes.bar((0, 1), values, 0.7, color=(_ORANGE, _BLUE))
        for x, (key, value) in enumerate(zip(keys, values, strict=True)):
            axes.annotate(_short(results, key, 3), (x, value), (0, 2), **_ABOVE)
        axes.set(xlim=(-0.6, 1.6), ylim=(0.0, 1.15 * values.max() or 1.0))
        axes.set(xlabel=label, yticks=())
        axes.set_xticks((0, 1), ("near", "away"))
        axes.spines["left"].set_visible(False)


_ABOVE = {"textcoords": "offset points", "ha": "center", "va": "bottom"}


def _finite(results: Results) -> Callable[[str], bool]:
    return lambda key: not math.isnan(_value(results, key))


def _counted(key: str) -> Callable[[Results], bool]:
    return lambda results: _has(results, key) and bool(np.sum(results[key]) > 0)


def _any_finite(*keys: str) -> Callable[[Results], bool]:
    return lambda results: any(map(_finite(results), keys))


_CHARTS: tuple[tuple[Callable[[Any, Any, Results], None], Callable[[Results], bool]], ...] = (
    (_draw_code_length, _any_finite(*(key for t in _CODINGS for key in _bpd_keys(t)))),
    (_draw_places, _any_finite(*(f"{m}_{e}" for m, _ in _PLACE_CHARTS for e in _PLACES))),
    (_draw_pit, _counted("pit_counts")),
    (_draw_codes, _counted("code_counts")),
)
"""Each chart, and whether the results have anything for it."""


def _shown(pictures: np.ndarray) -> np.ndarray:
    """The first pictures as uint8 [n, H, W, 3]; NaN is black."""
    first = np.asarray(pictures)[:_PICTURES]
    return figures.to_uint8(np.nan_to_num(first) if first.dtype.kind == "f" else first)


def _fitted(picture: np.ndarray) -> tuple[float, float]:
    """Width and height in inches that keep the proportions within a cell."""
    height, width = picture.shape[:2]
    inch = min(_CELL / height, _CELL / width)
    return width * inch, height * inch


def _row_height(row: np.ndarray) -> float:
    return max(_fitted(picture)[1] for picture in row) + _GAP


def _sheet_height(sheet: Mapping[str, np.ndarray]) -> float:
    return sum(map(_row_height, sheet.values())) + 2 * _MARGIN if sheet else 0.0


def _draw_sheet(axes: Any, sheet: Mapping[str, np.ndarray]) -> None:
    """A row of pictures under each name."""
    top = _MARGIN
    for name, row in sheet.items():
        left = _MARGIN + _NAMES
        axes.text(_MARGIN, top + _row_height(row) / 2, _clip(name, 12), va="center", weight="bold")
        for picture in row:
            wide, high = _fitted(picture)
            box = (left, left + wide, top + high, top)
            axes.imshow(picture, extent=box, aspect="auto")
            # A frame, or white pictures would be lost on the page.
            x, y = (left, left + wide), (top, top + high)
            axes.plot(
                (x[0], x[1], x[1], x[0], x[0]),
                (y[0], y[0], y[1], y[1], y[0]),
                color=_GREY,
                linewidth=0.4,
            )
            left += wide + _GAP
        top += _row_height(row)
    axes.set(xlim=(0, _WIDTH), ylim=(_sheet_height(sheet), 0))
