"""Results: as dataclasses, as JSON, and as tables."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _bench import stats
from _bench.stats import Summary

SCHEMA = 1
"""Rises when the meaning or the names of the JSON's fields change."""

OK, SKIPPED, DIFFERS, FAILED = "ok", "skipped", "computes something else", "failed"


@dataclasses.dataclass
class Row:
    """One contestant of a section.

    Attributes:
      name: who.
      status: OK, SKIPPED, DIFFERS (timed, but its results are not ours) or FAILED.
      note: why, or what else is to be known; one line.
      seconds: one entry a round; empty if not timed.
      extra: further columns by name: numbers, or text.
    """

    name: str
    status: str = OK
    note: str = ""
    seconds: list[float] = dataclasses.field(default_factory=list)
    extra: dict[str, float | str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Section:
    """Contestants that do the same work, measured in the same rounds.

    Attributes:
      name: short, unique in the report.
      title: what is measured, with sizes.
      reference: the contestant that ratios are taken to; None: no ratios.
      rows: the contestants.
      notes: what a reader has to know, one sentence each.
    """

    name: str
    title: str
    reference: str | None
    rows: list[Row]
    notes: list[str] = dataclasses.field(default_factory=list)

    def ratios(self, row: Row) -> Summary | None:
        """Time over the reference's, paired by rounds; above 1 is slower than the reference."""
        base = next((r.seconds for r in self.rows if r.name == self.reference), [])
        if not base or len(base) != len(row.seconds):
            return None
        return stats.summarise(stats.ratios(row.seconds, base))


@dataclasses.dataclass
class Report:
    """All that a run of benchmark.py found."""

    command: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    sections: list[Section]

    def content(self) -> dict[str, Any]:
        """As plain JSON types. Times are in seconds."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "settings": _plain(self.settings),
            "machine": _plain(self.machine),
            "sections": [_section_content(section) for section in self.sections],
        }

    def write(self, path: Path) -> None:
        """Writes a new JSON file, which appears complete or not at all."""
        text = json.dumps(self.content(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        part = path.with_name(path.name + ".part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)


def _section_content(section: Section) -> dict[str, Any]:
    rows = []
    for row in section.rows:
        ratio = section.ratios(row)
        rows.append(
            {
                "name": row.name,
                "status": row.status,
                "note": row.note,
                "seconds": dataclasses.asdict(stats.summarise(row.seconds))
                if row.seconds
                else None,
                "samples": row.seconds,
                "ratio": dataclasses.asdict(ratio) if ratio else None,
                "extra": _plain(row.extra),
            }
        )
    return {
        "name": section.name,
        "title": section.title,
        "reference": section.reference,
        "notes": section.notes,
        "rows": rows,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


# --- Tables -------------------------------------------------------------------------------------


def unit_of(section: Section) -> tuple[str, float]:
    """The unit for the section's times, and how many of it make a second."""
    medians = [stats.summarise(row.seconds).median for row in section.rows if row.seconds]
    typical = sorted(medians)[len(medians) // 2] if medians else 1.0
    if typical < 1e-3:
        return "µs", 1e6
    return ("ms", 1e3) if typical < 1.0 else ("s", 1.0)


def cells(section: Section) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a section's table, as text."""
    unit, factor = unit_of(section)
    timed = any(row.seconds for row in section.rows)
    extras = list(dict.fromkeys(key for row in section.rows for key in row.extra))
    header = [""]
    if timed:
        header += [f"median {unit}", "quartiles", "least", "rounds"]
    if section.reference is not None:
        header.append(f"time / {section.reference}")
    header += [*extras, "remark"]
    table = []
    for row in section.rows:
        line = [row.name]
        if timed and row.seconds:
            s = stats.summarise(row.seconds)
            line += [
                number(s.median * factor),
                f"{number(s.q1 * factor)} – {number(s.q3 * factor)}",
                number(s.least * factor),
                str(s.count),
            ]
        elif timed:
            line += [""] * 4
        if section.reference is not None:
            r = section.ratios(row)
            line.append(f"{ratio(r.median)} ({ratio(r.q1)} – {ratio(r.q3)})" if r else "")
        line += [_cell(row.extra.get(key, "")) for key in extras]
        remark = "" if row.status == OK else row.status
        line.append(": ".join(part for part in (remark, row.note) if part))
        table.append(line)
    if not any(line[-1] for line in table):
        header, table = header[:-1], [line[:-1] for line in table]
    return header, table


def number(value: float) -> str:
    """Three significant digits, without an exponent for usual sizes.

    >>> number(0.012345), number(12.345), number(123456.0)
    ('0.0123', '12.3', '123,456')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def ratio(value: float) -> str:
    """Two decimals, or three significant digits below 0.1.

    >>> ratio(1.2345), ratio(0.0012345)
    ('1.23', '0.00123')
    """
    return f"{value:.2f}" if value >= 0.1 else number(value)


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else number(value)


def text(report: Report, markdown: bool = False) -> str:
    """The whole report for people: plain, or for a README."""
    blocks = []
    for section in report.sections:
        header, table = cells(section)
        title = f"**{section.title}**" if markdown else section.title
        lines = [
            title,
            "",
            *(_markdown(header, table) if markdown else _plain_table(header, table)),
        ]
        if section.notes:
            lines += ["", *section.notes]
        blocks.append("\n".join(lines))
    blocks.append("\n".join(_machine_lines(report)))
    return "\n\n".join(blocks)


def _plain_table(header: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(header), *map(list, table)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    left = {0, len(header) - 1} if header[-1] == "remark" else {0}
    rule = "  ".join("-" * width for width in widths)

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return [line(header), rule, *map(line, table)]


def _markdown(header: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---" if i == 0 or name == "remark" else "---:" for i, name in enumerate(header)]
    return ["| " + " | ".join(line) + " |" for line in (header, marks, *table)]


def _machine_lines(report: Report) -> list[str]:
    m = report.machine
    accelerator = f", {m['accelerator']}" if m.get("accelerator") else ""
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    commit = f", commit {m['commit']}" if m["commit"] else ""
    # Some of the load at the end is the benchmark's own.
    busy = max(m["load_start"] or 0.0, (m["load_end"] or 0.0) - m["cores"]) > 0.5 * m["cores"]
    warning = "The machine was busy with other work: these are no results to quote."
    return [
        *([warning] if busy else []),
        f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB{accelerator}; "
        f"load average {m['load_start']} at the start, {m['load_end']} at the end",
        f"Python {m['python']}, {versions}{commit}, {m['date']}",
    ]
