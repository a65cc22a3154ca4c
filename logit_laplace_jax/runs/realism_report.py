"""What the realism of several priors amounts to: a table over seeds, and their spectra."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from logit_laplace_jax.evaluation import figures
from logit_laplace_jax.runs.realism import SETS

Values = Mapping[str, Any]
"""What :func:`realism.measure` gives."""

_MEASURES = (("sliced_wasserstein_mean", "sliced Wasserstein"), ("spectrum_error", "spectrum, dB"))


def text(results: Sequence[Values]) -> str:
    """Tables in Markdown: by data set, group and set of images the mean over seeds with its 95 %
    interval (Student's t), and the draws' difference from the first group, paired by seed.
    """
    lines = []
    for data, groups in _by_data(results).items():
        lines += [f"## {data}", "", *_header("mean ± half of its 95 % interval", SETS)]
        for measure, words in _MEASURES:
            for name, rows in groups.items():
                cells = [mean_and_half([r["sets"][s][measure] for r in rows]) for s in SETS]
                lines += [_row(f"{words}, {name}", cells)]
        first, *others = groups
        by_seed = {r["seed"]: r for r in groups[first]}
        differences = []
        for name in others:
            pairs = [(r, by_seed[r["seed"]]) for r in groups[name] if r["seed"] in by_seed]
            if pairs:
                cells = [
                    mean_and_half([_draws(a, m) - _draws(b, m) for a, b in pairs])
                    for m, _ in _MEASURES
                ]
                differences.append(_row(f"{name} - {first}", cells))
        if differences:
            titles = [words for _, words in _MEASURES]
            lines += ["", *_header("draws, paired by seed", titles), *differences]
        kinds = ("draws", "held out")
        lines += ["", *_header("grey levels to the nearest training image, median", kinds)]
        for name, rows in groups.items():
            lines += [_row(name, [mean_and_half([r["nearest"][k] for r in rows]) for k in kinds])]
        lines += [""]
    return "\n".join(lines)


def _header(first: str, titles: Sequence[str]) -> list[str]:
    return [f"| {first} | {' | '.join(titles)} |", f"| --- |{' ---: |' * len(titles)}"]


def _row(name: str, cells: Sequence[tuple[float, float]]) -> str:
    told = (f"{m:.3f}" if np.isnan(half) else f"{m:.3f} ± {half:.3f}" for m, half in cells)
    return f"| {name} | {' | '.join(told)} |"


def _draws(values: Values, measure: str) -> float:
    return float(values["sets"]["prior"][measure])


def _by_data(results: Sequence[Values]) -> dict[str, dict[str, list[Values]]]:
    found: dict[str, dict[str, list[Values]]] = {}
    for values in results:
        scale = "" if values["scale"] == "per_pixel" else f", {values['scale']} scale"
        rows = found.setdefault(values["data"], {}).setdefault(values["likelihood"] + scale, [])
        rows.append(values)
    return found


def mean_and_half(numbers: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval by Student's t: NaN for a single number.

    >>> mean, half = mean_and_half([1.0, 2.0, 3.0])
    >>> mean, round(half, 3)  # 4.303 standard deviations over the root of 3
    (2.0, 2.484)
    """
    from scipy.stats import t

    count = len(numbers)
    if count < 2:
        return float(numbers[0]), float("nan")
    error = np.std(numbers, ddof=1) / np.sqrt(count)
    return float(np.mean(numbers)), float(t.ppf(0.975, count - 1) * error)


def spectra(path: Path, results: Sequence[Values]) -> None:
    """Plots power by frequency, less that of the held-out images: a panel for each data set.

    Args:
      path: the PNG, which appears complete or not at all.
      results: a line for each group's mean of draws (solid) and of reconstructions (dashed).
    """
    from matplotlib.figure import Figure

    data = _by_data(results)
    figure = Figure(figsize=(6.0 * len(data), 3.6), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(data), squeeze=False)[0]
    for axes, (name, groups) in zip(panels, data.items(), strict=True):
        for number, (group, rows) in enumerate(groups.items()):
            for kind, style in (("prior", "-"), ("reconstructions", "--")):
                lines = [np.subtract(r["sets"][kind]["spectrum"], r["real_spectrum"]) for r in rows]
                mean = np.mean(lines, axis=0)
                cycles = np.arange(1, len(mean) + 1)
                label = f"{group}, {'draws' if kind == 'prior' else kind}"
                axes.plot(cycles, mean, style, color=f"C{number}", label=label, lw=1.4)
        axes.axhline(0.0, color="black", lw=0.8)
        axes.set_title(name, size=10, parse_math=False)
        axes.set_xlabel("spatial frequency, cycles per image")
        axes.set_ylabel("power less the held-out images', dB")
        axes.legend(fontsize=7)
    figures.save_figure(path, figure)
