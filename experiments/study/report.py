"""The report of a study: results.json, report.json, report.md and pages of plots."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from logit_laplace_jax.runs.directory import write_whole
from study import comparisons, plots
from study.design import Study
from study.jobs import Store

_LISTS = ("per_image",)


def write(
    study: Study,
    store: Store,
    folder: Path,
    say: Callable[[str], None],
    *,
    runs: Path | None = None,
    sanity: dict[str, Any] | None = None,
    draws: int = comparisons.statistics.DRAWS,
) -> None:
    """Writes everything that follows from the runs that are there.

    results.json: one object for each run, without the values of single images; report.json: what is
    compared (:func:`comparisons.compare`) and the table of cells; report.md: the same to read;
    forest_HYPOTHESIS.png, rates.png, calibration.png, codes.png, and pictures_DATA.png of the runs
    of seed 0.

    Args:
      study: the study.
      store: its results.
      folder: where the files go.
      say: prints one line.
      runs: folder of the run directories, for the pictures; None: no pictures.
      sanity: rows of :func:`sanity.keep`.
      draws: of the bootstrap.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = store.all()
    told = [{k: v for k, v in run.items() if k not in _LISTS} for run in results]
    lines = ",\n".join(json.dumps(run) for run in told)
    write_whole(folder / "results.json", f"[\n{lines}\n]\n")
    say(f"results   {folder / 'results.json'}: {len(told)} runs")
    final = [run for run in results if run["split"] == "final"]
    if not final:
        say("report    there is no final run yet")
        return
    cells = [cell.name for cell in study.cells]

    def order(run: dict[str, Any]) -> tuple[int, int, int]:
        return study.data.index(run["data"]), cells.index(run["cell"]), run["seed"]

    table = comparisons.table(final, order)
    compared = comparisons.compare(final, study.data, draws=draws)
    report = {
        "study": final[0]["study"],
        "runs": len(final),
        "failed": sorted(f"{r['data']} {r['cell']} {r['seed']}" for r in final if "failed" in r),
        "comparisons": compared,
        "cells": table,
        "sanity": sanity or {},
    }
    write_whole(folder / "report.json", json.dumps(report, indent=1) + "\n")
    ablations = {cell.name for cell in study.cells if cell.ablation}
    write_whole(folder / "report.md", text(report, study.data, ablations))
    for hypothesis in dict.fromkeys(row["hypothesis"] for row in compared):
        rows = [row for row in compared if row["hypothesis"] == hypothesis]
        plots.forest(folder / f"forest_{hypothesis}.png", rows, study.data)
    whole = [run for run in sorted(final, key=order) if "failed" not in run]
    families = [run for run in whole if run["cell"] not in ablations]
    for name, draw in (
        ("rates", plots.rates),
        ("calibration", plots.calibration),
        ("codes", plots.codes),
    ):
        draw(folder / f"{name}.png", families)
    if runs is not None:
        first = [run for run in families if run["seed"] == 0]
        for data in study.data:
            sheets = {
                run["cell"]: sorted((runs / f"{data}_{run['cell']}_seed0").glob("recon*/*.png"))
                for run in first
                if run["data"] == data
            }
            plots.pictures(
                folder / f"pictures_{data}.png", {c: s[-1] for c, s in sheets.items() if s}
            )
    say(f"report    {folder / 'report.md'}, report.json and plots beside it")


# --- As text --------------------------------------------------------------------------------------

_COLUMNS = (
    ("bits/dim", "bpd_hard", ".3f"),
    ("dB", "psnr_median", ".2f"),
    ("SSIM", "ssim_median", ".3f"),
    ("perplexity", "code_perplexity", ".0f"),
    ("in use", "code_usage", ".0%"),
    ("PIT tv", "pit_tv", ".3f"),
    ("overshoot", "overshoot", ".2f"),
    ("p99.9", "error_p999", ".0f"),
    ("outside", "outside", ".1%"),
)


def text(report: dict[str, Any], data: Sequence[str], ablations: set[str]) -> str:
    """The report in Markdown."""
    done = [name for name in data if any(row["data"] == name for row in report["cells"])]
    parts = [
        f"{report['runs']} final runs of the study {report['study']}, on {', '.join(done)}. Means "
        "and standard deviations over seeds; differences with 95 % intervals by bootstrap over "
        "seeds and pictures.",
        "## Verdicts",
        _verdicts(report["comparisons"]),
    ]
    for name in done:
        rows = [row for row in report["cells"] if row["data"] == name]
        parts += [f"## {name}", _cells([r for r in rows if r["cell"] not in ablations], report)]
        if any(row["cell"] in ablations for row in rows):
            parts.append("Ablations of logit_laplace:")
            parts.append(_cells([r for r in rows if r["cell"] in ablations], None))
    parts += ["## All comparisons", _comparisons(report["comparisons"], data)]
    if report["failed"]:
        parts += ["## Failed", "The loss was not finite: " + "; ".join(report["failed"]) + "."]
    return "\n\n".join(parts) + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in [head, *rows]]
    lines = [escaped[0], ["---"] * len(head), *escaped[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(rows: Sequence[dict[str, Any]], report: dict[str, Any] | None) -> str:
    def cell(row: dict[str, Any], name: str, form: str) -> str:
        if row.get(name) is None:
            return ""
        spread = row.get(f"{name}_sd")
        return f"{row[name]:{form}}" + (f" ± {spread:{form}}" if spread is not None else "")

    lines = [
        [
            row["cell"],
            *(cell(row, name, form) for _, name, form in _COLUMNS),
            f"{row['learning_rate']:g}, {row['beta']:g}",
            f"{row['seeds']}" + (f" ({row['failed']} failed)" if row["failed"] else ""),
        ]
        for row in rows
    ]
    for codec, values in (report["sanity"].get(rows[0]["data"], {}) if report else {}).items():
        shown = [f"{values[key]:{form}}" if key in values else "" for key, form in _SANITY]
        lines.append([f"*{codec}*", *shown, *[""] * (len(_COLUMNS) - len(shown) + 2)])
    head = ["likelihood", *(title for title, _, _ in _COLUMNS), "step size, β", "seeds"]
    return _markdown(head, lines)


_SANITY = (("bpd", ".3f"), ("psnr", ".2f"))


def _signed(part: dict[str, float] | None) -> str:
    if part is None:
        return ""
    return f"{part['mean']:+.3g} [{part['low']:+.3g}, {part['high']:+.3g}]"


def _verdicts(rows: Sequence[dict[str, Any]]) -> str:
    return _markdown(
        ["", "measure", "difference", "all data sets", "claim", "p (Holm)", "verdict"],
        [
            [
                row["hypothesis"],
                row["measure"],
                f"{row['a']} - {row['b']}",
                _signed(row["all"]),
                "< 0" if row["claim"] < 0 else "> 0",
                f"{row['all']['p_holm']:.2g}",
                row["all"]["verdict"],
            ]
            for row in rows
            if row["claim"]
        ],
    )


def _comparisons(rows: Sequence[dict[str, Any]], data: Sequence[str]) -> str:
    return _markdown(
        ["", "measure", "difference", *data],
        [
            [
                row["hypothesis"],
                row["measure"],
                f"{row['a']} - {row['b']}",
                *(_signed(row["data"].get(name)) for name in data),
            ]
            for row in rows
        ],
    )
