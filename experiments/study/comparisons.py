"""The hypotheses of docs/study.md as paired comparisons of finished runs."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from study import statistics

Result = dict[str, Any]
"""One run's numbers, as in its file."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is compared.

    Attributes:
      name: what tables call it, with its unit.
      of_images: the names in ``per_image`` of a value, and of another that is taken away from it.
      of_run: a number of the run, in place of ``of_images``.
      logarithm: compare logarithms, so that differences are ratios.
    """

    name: str
    of_images: tuple[str, ...] = ()
    of_run: str = ""
    logarithm: bool = False

    def values(self, run: Result) -> np.ndarray | None:
        """Of one run: float [N] by image, or [1]; None if it has none."""
        if self.of_run:
            value = run.get(self.of_run)
            if value is None:
                return None
            return np.array([math.log(value) if self.logarithm else value], float)
        columns = [np.array(run["per_image"][name], float) for name in self.of_images]
        return columns[0] - columns[1] if len(columns) == 2 else columns[0]


BITS = Measure("bits/dim", ("bits",))
EDGES = Measure("bits/dim near edges less away", ("bits_edges", "bits_flat"))
EDGE_ERROR = Measure("absolute error near edges less away, grey levels", ("mae_edges", "mae_flat"))
PERPLEXITY = Measure("ln perplexity of the codes", of_run="code_perplexity", logarithm=True)
OVERSHOOT = Measure("overshoot, grey levels", ("overshoot",))
PSNR = Measure("PSNR, dB", ("psnr",))
PIT = Measure("PIT, distance from uniform", of_run="pit_tv")
USAGE = Measure("share of codes in use", of_run="code_usage")
P999 = Measure("99.9th percentile of the error, grey levels", of_run="error_p999")
BLACK = Measure("bits of a value 0", of_run="bpd_black")
WHITE = Measure("bits of a value 255", of_run="bpd_white")
OUTSIDE = Measure("probability outside of [0, 255]", of_run="outside")
LOCATION = Measure("largest |μ|, logit units", of_run="location_max")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The measure of cell ``a`` less that of cell ``b``.

    ``claim`` is the sign that the hypothesis predicts; 0 for what is told beside it or has no
    predicted sign. Those with a claim are corrected together.
    """

    hypothesis: str
    measure: Measure
    a: str
    b: str
    claim: int = 0


_LL, _LN, _L, _N = "logit_laplace", "logit_normal", "laplace", "normal"
_ABLATIONS = {
    "H6": (
        "scale_per_channel",
        "scale_shared",
        "scale_optimal",
        "scale_0.03",
        "scale_0.1",
        "scale_0.3",
        "scale_1",
    ),
    "H7": ("eps_0.01", "eps_0.2", "no_floor", "objective_mass", "beta_x0.25", "beta_x4"),
}

COMPARISONS = (
    Comparison("H1", BITS, _LL, _LN, -1),
    Comparison("H1", BITS, _L, _N, -1),
    Comparison("H1", PIT, _LL, _LN),
    Comparison("H1", PIT, _L, _N),
    Comparison("H2", EDGES, _LL, _N, -1),
    Comparison("H2", EDGES, _LL, _L, -1),
    Comparison("H2", EDGE_ERROR, _LL, _N),
    Comparison("H2", EDGE_ERROR, _LL, _L),
    Comparison("H3", BITS, _LL, _L, -1),
    Comparison("H3", BITS, "truncated_laplace", _L, -1),
    Comparison("H3", BITS, "truncated_normal", _N, -1),
    *(Comparison("H3", m, _LL, other) for other in (_L, _N) for m in (BLACK, WHITE, OUTSIDE)),
    Comparison("H4", PERPLEXITY, _LL, _N, 1),
    Comparison("H4", PERPLEXITY, _LL, _L, 1),
    Comparison("H4", USAGE, _LL, _N),
    Comparison("H4", USAGE, _LL, _L),
    Comparison("H5", OVERSHOOT, _LL, _L, 1),
    Comparison("H5", P999, _LL, _L),
    Comparison("H5", LOCATION, _LL, _LN),
    Comparison("H5", PSNR, _LL, _L),
    *(
        Comparison(hypothesis, BITS, cell, _LL)
        for hypothesis, cells in _ABLATIONS.items()
        for cell in cells
    ),
)


def compare(
    runs: Iterable[Result],
    data: Sequence[str],
    comparisons: Sequence[Comparison] = COMPARISONS,
    draws: int = statistics.DRAWS,
) -> list[dict[str, Any]]:
    """Every comparison of which there are runs.

    Args:
      runs: results of final runs.
      data: names of the data sets, in order.
      comparisons: what is compared.
      draws: of the bootstrap.

    Returns:
      A dictionary for each: ``hypothesis``, ``measure``, ``a``, ``b``, ``claim``; ``data``: by data
      set ``mean``, ``low``, ``high`` (95 %), ``seeds``, ``pictures``; ``all``: the same of the mean
      over data sets with ``p`` and, where there is a claim, ``p_holm`` and ``verdict`` (holds,
      reversed or undecided, at 5 %).
    """
    by_cell = {(run["data"], run["cell"], run["seed"]): run for run in runs if "failed" not in run}
    rows = []
    for comparison in comparisons:
        # Of its own, so that no comparison depends on which others there are.
        rng = np.random.default_rng(0)
        of_data, means, draws_of = {}, [], []
        for name in data:
            found = _differences(by_cell, comparison, name)
            if found is None:
                continue
            difference, groups = found
            drawn = statistics.resampled_means(difference, groups, rng, draws)
            low, high = statistics.interval(drawn)
            of_data[name] = {
                "mean": float(np.nanmean(difference)),
                "low": low,
                "high": high,
                "seeds": len(difference),
                "pictures": len(np.unique(groups)),
            }
            means.append(of_data[name]["mean"])
            draws_of.append(drawn)
        if not of_data:
            continue
        together = np.mean(draws_of, axis=0)
        low, high = statistics.interval(together)
        rows.append(
            {
                "hypothesis": comparison.hypothesis,
                "measure": comparison.measure.name,
                "a": comparison.a,
                "b": comparison.b,
                "claim": comparison.claim,
                "data": of_data,
                "all": {
                    "mean": float(np.mean(means)),
                    "low": low,
                    "high": high,
                    "p": statistics.p_value(together),
                },
            }
        )
    claimed = [row for row in rows if row["claim"]]
    for row, p in zip(claimed, statistics.holm([r["all"]["p"] for r in claimed]), strict=True):
        agrees = row["all"]["mean"] * row["claim"] > 0
        verdict = "undecided" if p >= 0.05 else "holds" if agrees else "reversed"
        row["all"] |= {"p_holm": p, "verdict": verdict}
    return rows


def _differences(
    by_cell: dict[tuple[str, str, int], Result], comparison: Comparison, data: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Paired differences [S, N] and the images' groups [N]; None without a pair of runs."""
    pairs, groups = [], np.zeros(1, int)
    for (name, cell, seed), run in sorted(by_cell.items()):
        other = by_cell.get((data, comparison.b, seed))
        if (name, cell) != (data, comparison.a) or other is None:
            continue
        a, b = comparison.measure.values(run), comparison.measure.values(other)
        if a is None or b is None:
            continue
        pairs.append(a - b)
        if comparison.measure.of_images:
            groups = np.array(run["per_image"].get("group", range(len(a))))
    if not np.isfinite(pairs).any():
        return None
    return np.stack(pairs), groups


SCALARS = (
    "bpd_hard",
    "bpd_hard_pixels",
    "bpd_relaxed",
    "psnr_median",
    "ssim_median",
    "mae_median",
    "bpd_edges",
    "bpd_flat",
    "mae_edges",
    "mae_flat",
    "code_perplexity",
    "code_usage",
    "pit_tv",
    "bpd_black",
    "bpd_white",
    "outside",
    "overshoot",
    "error_p999",
    "location_max",
    "floor_share",
)
"""What the table of cells shows the mean of, over seeds."""


def table(runs: Iterable[Result], order: Callable[[Result], Any]) -> list[dict[str, Any]]:
    """A row for each data set and cell: means and standard deviations of SCALARS over seeds."""
    cells: dict[tuple[str, str], list[Result]] = {}
    for run in sorted(runs, key=order):
        cells.setdefault((run["data"], run["cell"]), []).append(run)
    rows = []
    for (data, cell), found in cells.items():
        whole = [run for run in found if "failed" not in run]
        row: dict[str, Any] = {
            "data": data,
            "cell": cell,
            "seeds": len(whole),
            "failed": len(found) - len(whole),
            "learning_rate": found[0]["learning_rate"],
            "beta": found[0]["beta"],
        }
        for name in SCALARS:
            values = [run[name] for run in whole if run.get(name) is not None]
            if values:
                row[name] = float(np.mean(values))
                row[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        rows.append(row)
    return rows
