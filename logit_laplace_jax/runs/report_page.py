"""The numbers of an evaluation as a table on the terminal and as one page of PNG.

Both take one flat dictionary of results. `_SECTIONS` says what each number is called, in which unit
it is, and under which key it stands. Beside those:

* `likelihood`, `data`: names; `step`, `prior_step`: updates of the checkpoints; `images`: how many
  were evaluated; `values_per_image`: H · W · C of one;
* `code_counts` [V]: how often each code occurs; `pit_counts`: values in each of equal bins, see
  :mod:`logit_laplace_jax.evaluation.calibration`.

Every key is optional: what is missing, or None, leaves its row, column or chart out; NaN is printed
as such.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from logit_laplace_jax.data.errors import missing_package
from logit_laplace_jax.evaluation import codebook, figures

Results = Mapping[str, Any]

_HEAD = {
    "likelihood": "{}",
    "data": "{}",
    "step": "step {:,.0f}",
    "images": "{:,.0f} images",
    "values_per_image": "{:,.0f} values an image",
    "prior_step": "{}",
}
_CHARTED = ("code_counts", "pit_counts")

# Title, names of the columns, rows of label, unit, keys (one of each column, - for none) and form.
_SECTIONS = (
    (
        "code length",
        "hard relaxed",
        (
            ("pixels given the codes", "bits/dim", "bpd_hard_pixels bpd_relaxed_pixels", ".4f"),
            ("codes (log2 V | KL)", "bits/dim", "bpd_hard_codes bpd_relaxed_codes", ".4f"),
            ("total", "bits/dim", "bpd_hard bpd_relaxed", ".4f"),
            ("pixels, relaxed − hard", "bits/dim", "- bpd_gap", ".4f"),
            ("density, −log p", "nats/value", "nll_hard nll_relaxed", ".4f"),
            ("density, ELBO", "nats/value", "elbo_hard elbo_relaxed", ".4f"),
            ("KL to uniform", "nats/token", "- kl", ".4f"),
        ),
    ),
    (
        "code length with the prior",
        "prior uniform",
        (
            ("codes", "bits/token", "bits_per_token -", ".4f"),
            ("codes", "bits/dim", "bpd_prior_codes bpd_uniform_codes", ".4f"),
            ("codes and pixels", "bits/dim", "bpd_prior bpd_uniform", ".4f"),
        ),
    ),
    (
        "other codecs",
        "k-means JPEG",
        (
            ("PSNR", "dB", "psnr_kmeans psnr_jpeg", ".2f"),
            ("at a rate of", "bits/pixel", "rate_tokens rate_jpeg", ".3f"),
            ("without loss, in all", "bits/dim", "bpd_kmeans -", ".4f"),
        ),
    ),
    (
        "files without loss",
        "PNG WebP",
        (("one per image", "bits/dim", "bpd_png bpd_webp", ".4f"),),
    ),
    (
        "distortion",
        "median mean sample relaxed",
        (
            ("PSNR", "dB", "psnr_median psnr_mean psnr_sample psnr_relaxed", ".2f"),
            ("PSNR, point estimate", "dB", "psnr - - -", ".2f"),
            ("SSIM", "", "ssim_median ssim_mean ssim_sample ssim_relaxed", ".4f"),
            ("MS-SSIM", "", "ms_ssim_median ms_ssim_mean ms_ssim_sample ms_ssim_relaxed", ".4f"),
            ("absolute error", "grey levels", "mae_median mae_mean mae_sample mae_relaxed", ".2f"),
        ),
    ),
    (
        "near edges and away",
        "near away",
        (
            ("share of the pixels", "%", "edge_share -", "%"),
            ("code length", "bits/dim", "bpd_edges bpd_flat", ".4f"),
            ("PSNR", "dB", "psnr_edges psnr_flat", ".2f"),
            ("absolute error", "grey levels", "mae_edges mae_flat", ".2f"),
        ),
    ),
    (
        "codes",
        "",
        (
            ("vocabulary", "codes", "vocab_size", ",.0f"),
            ("in use", "%", "code_usage", "%"),
            ("perplexity", "codes", "code_perplexity", ".1f"),
        ),
    ),
    (
        "calibration",
        "",
        (
            ("PIT, total variation", "", "pit_tv", ".4f"),
            ("PIT, largest cdf gap", "", "pit_ks", ".4f"),
            ("PIT, mean − 1/2", "", "pit_mean_shift", ".4f"),
            ("PIT, variance · 12", "", "pit_variance_ratio", ".4f"),
            ("scales at their floor", "%", "floor_share", "%"),
            ("optimal scale b", "", "optimal_scale", ".4f"),
        ),
    ),
)


def _number(value: Any, form: str) -> str:
    """A number as text, at most ten characters unless it is a whole one; nothing for None.

    >>> [_number(v, f) for v, f in [(0.7, "%"), (3.14159, ".2f"), (8192.0, ",.0f"), (-3e9, ".4f")]]
    ['70.00', '3.14', '8,192', '-3.000e+09']
    """
    if value is None:
        return ""
    value = float(value)
    text = f"{100.0 * value:.2f}" if form == "%" else f"{value:{form}}"
    return text if len(text) <= 9 or "," in form else f"{value:.3e}"


def _headline(results: Results) -> str:
    """What was evaluated, on one line.

    >>> _headline({"data": "photos", "images": 92, "step": 2000})
    'photos · step 2,000 · 92 images'
    """
    given = ((form, results.get(key)) for key, form in _HEAD.items())
    return " · ".join(form.format(value) for form, value in given if value is not None)


def _blocks(results: Results) -> list[list[str]]:
    """The table's sections that have a number: lines of equal columns, the title first."""
    sections = []
    known = {*_HEAD, *_CHARTED}
    for title, columns, rows in _SECTIONS:
        names = columns.split() or [""]
        cells = [
            (label, unit, [_number(results.get(key), form) for key in keys.split()])
            for label, unit, keys, form in rows
        ]
        known.update(key for _, _, keys, _ in rows for key in keys.split())
        used = [i for i in range(len(names)) if any(row[2][i] for row in cells)]
        kept = [(label, unit, [c[i] for i in used]) for label, unit, c in cells if any(c)]
        sections.append((title, [names[i] for i in used], kept))
    rest = [
        (key, "", [_number(value, ".4f")])
        for key, value in results.items()
        if key not in known and hasattr(value, "__float__") and np.ndim(value) == 0
    ]
    sections = [section for section in [*sections, ("other", [""], rest)] if section[2]]
    every = [row for _, _, kept in sections for row in kept]
    label = max([18, *(len(row[0]) for row in every)])
    unit = max([11, *(len(row[1]) for row in every)])
    wide = max([7, *(len(cell) for row in every for cell in row[2])])

    def line(start: str, cells: list[str]) -> str:
        return (f"{start:<{label + unit + 4}}" + "".join(f"  {c:>{wide}}" for c in cells)).rstrip()

    return [
        [line(title, names), *(line(f"  {a:<{label}}  {b}", cells) for a, b, cells in kept)]
        for title, names, kept in sections
    ]


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
    head = _headline(results)
    return "\n\n".join(([head] if head else []) + ["\n".join(b) for b in _blocks(results)])


# --- The page ------------------------------------------------------------------------------------

# Okabe and Ito's colours, which colour-blind readers tell apart, also in grey.
_BLUE, _ORANGE, _SKY, _BLACK, _GREY = "#0072B2", "#E69F00", "#56B4E9", "#000000", "#666666"
_PICTURES = 8
# In inches: the page, its margin, the head, the table, a line of it, a chart and its labels, the
# pictures' names, a picture.
_WIDTH, _MARGIN, _HEAD_HEIGHT, _TABLE, _LINE, _CHART = 12.0, 0.3, 0.75, 6.0, 0.175, 2.75
_NAMES, _CELL = 0.85, 1.3
_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def write_page(
    path: Path, results: Results, pictures: Mapping[str, np.ndarray], title: str
) -> None:
    """Writes the table, two charts and a sheet of pictures as one PNG.

    The charts show what no single number tells: the PIT histogram, and the codes in the order of
    their counts.

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
    except ImportError as error:
        raise missing_package("matplotlib") from error

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # Nobody's own style changes the page.
        matplotlib.rcParams.update(_STYLE)
        figures.save_figure(path, _page(results, pictures, title))


def _page(results: Results, pictures: Mapping[str, np.ndarray], title: str) -> Any:
    """The page as a matplotlib figure: head, table beside charts, pictures below."""
    from matplotlib.figure import Figure

    lines = [line for block in _blocks(results) for line in (*block, "")]
    charts = [
        (draw, np.asarray(results[key], np.float64))
        for key, draw in (("pit_counts", _draw_pit), ("code_counts", _draw_codes))
        if results.get(key) is not None and np.sum(results[key]) > 0
    ]
    rows = {name: _fitted(row[:_PICTURES]) for name, row in pictures.items() if len(row)}
    upper = _HEAD_HEIGHT + max(_LINE * len(lines), _CHART * len(charts)) + 0.2
    height = upper + sum(high for _, _, high in rows.values()) + _MARGIN
    figure = Figure(figsize=(_WIDTH, height), dpi=150)

    # Places are in inches from the upper left corner.
    def text(x: float, y: float, words: str, **options: Any) -> None:
        figure.text(x / _WIDTH, 1 - y / height, words, parse_math=False, **options)

    def axes(x: float, y: float, wide: float, high: float) -> Any:
        place = (x / _WIDTH, 1 - (y + high) / height, wide / _WIDTH, high / height)
        return figure.add_axes(place)

    text(_MARGIN, 0.38, _clip(title, 80), size=14, weight="bold")
    text(_MARGIN, 0.6, _clip(_headline(results), 130), size=9, color=_GREY)
    # A character is 0.602 of its size wide, and there are 72 points to an inch.
    size = min(9.0, 72 * _TABLE / (0.602 * max(map(len, lines), default=1)))
    for i, line in enumerate(lines):
        weight = "normal" if line.startswith(" ") else "bold"
        y = _HEAD_HEIGHT + _LINE * (i + 0.5)
        text(
            _MARGIN, y, re.sub(r"-(?=\d)", "−", line), family="monospace", size=size, weight=weight
        )
    left = _MARGIN + _TABLE + 0.9
    for i, (draw, counts) in enumerate(charts):
        y = _HEAD_HEIGHT + _CHART * i + 0.25
        draw(axes(left, y, _WIDTH - _MARGIN - left, _CHART - 0.75), counts)
    y = upper
    for name, (strip, wide, high) in rows.items():
        text(_MARGIN, y + high / 2, _clip(name, 12), weight="bold", va="center")
        place = axes(_MARGIN + _NAMES, y, wide, high - 0.06)
        place.imshow(strip, aspect="auto", interpolation="nearest")
        place.set(xticks=(), yticks=())
        for spine in place.spines.values():  # A frame, or white pictures would be lost.
            spine.set(visible=True, color=_GREY, linewidth=0.4)
        y += high
    return figure


def _fitted(pictures: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Pictures side by side, NaN black, and the inches that they take, a gap below included."""
    strip = figures.side_by_side(*np.nan_to_num(pictures))
    high, wide = strip.shape[:2]
    inch = min(_CELL / max(pictures.shape[1:3]), (_WIDTH - 2 * _MARGIN - _NAMES) / wide)
    return strip, wide * inch, high * inch + 0.06


def _clip(text: str, length: int) -> str:
    """The text, its middle left out where it is too long.

    >>> _clip("folder:/a/very/long/path", 12)
    'folder…/path'
    """
    text = " ".join(text.split())
    end = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - end]}…{text[-end:]}"


def _draw_pit(axes: Any, counts: np.ndarray) -> None:
    """The PIT histogram as a density, with the uniform one."""
    density = counts * counts.size / counts.sum()
    axes.stairs(density, np.linspace(0, 1, counts.size + 1), fill=True, color=_SKY)
    axes.axhline(1.0, color=_BLACK, linestyle="--", linewidth=1, label="uniform")
    axes.set(xlabel="probability integral transform", ylabel="density", xlim=(0, 1))
    axes.set(title="Calibration of the predicted scale", ylim=(0, 1.25 * density.max()))
    axes.legend(loc="upper right")


def _draw_codes(axes: Any, counts: np.ndarray) -> None:
    """Counts of the codes in falling order."""
    counts = np.sort(counts)[::-1]
    size, used = counts.size, np.count_nonzero(counts)
    perplexity, uniform = codebook.perplexity(counts), counts.sum() / size
    # Half a count as the floor, so that codes that occur once are seen on the log scale.
    low = min(0.5, uniform / 2)
    axes.stairs(counts[:used], np.arange(used + 1) + 0.5, baseline=low, fill=True, color=_BLUE)
    axes.axvline(perplexity, color=_ORANGE, label=f"perplexity {_number(perplexity, '.1f')}")
    axes.axhline(uniform, color=_BLACK, linestyle="--", linewidth=1, label="uniform")
    # A handful of thousands would be too thin to see.
    scale = "log" if used < size / 20 else "linear"
    axes.set(xscale=scale, yscale="log", xlim=(0.5, size + 0.5), ylim=(low, 8 * counts[0]))
    axes.set(title=f"{used:,} of {size:,} codes in use", ylabel="count")
    axes.set(xlabel=f"rank of the code{', log scale' if scale == 'log' else ''}")
    axes.legend(loc="upper right", ncols=2)
