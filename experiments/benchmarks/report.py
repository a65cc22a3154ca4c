"""Results: as dataclasses, as JSON, and as Markdown tables."""

import dataclasses
import json
import math
from typing import Any

from benchmarks import rounds
from benchmarks.rounds import Summary

OK, SKIPPED, DIFFERS, FAILED = "ok", "skipped", "computes something else", "failed"
OURS = "ours"
"""The contestant that ratios are taken to."""


@dataclasses.dataclass
class Row:
    """One contestant of a section.

    Attributes:
      name: who.
      status: OK, SKIPPED, DIFFERS (timed, but its results are not ours) or FAILED.
      note: why, in one line.
      seconds: one entry per round; empty if not timed.
      extra: further columns by name.
    """

    name: str
    status: str = OK
    note: str = ""
    seconds: list[float] = dataclasses.field(default_factory=list)
    extra: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Section:
    """Contestants that do the same work, measured in the same rounds.

    Attributes:
      name: short, unique in the report.
      title: what is measured, with sizes.
      rows: the contestants, ours among them.
    """

    name: str
    title: str
    rows: list[Row]

    def ratios(self, row: Row) -> Summary | None:
        """Time over ours, paired by rounds; above 1 is slower than ours."""
        base = next((r.seconds for r in self.rows if r.name == OURS), [])
        if not base or len(base) != len(row.seconds):
            return None
        return rounds.summarise(rounds.ratios(row.seconds, base))

    def unit(self) -> tuple[str, float]:
        """The unit for the section's times, and how many of it make a second."""
        medians = sorted(rounds.summarise(r.seconds).median for r in self.rows if r.seconds)
        typical = medians[len(medians) // 2] if medians else 1.0
        if typical < 1e-3:
            return "µs", 1e6
        return ("ms", 1e3) if typical < 1.0 else ("s", 1.0)

    def content(self) -> dict[str, Any]:
        """As plain JSON types. Times are in seconds."""
        rows = []
        for row in self.rows:
            times = rounds.summarise(row.seconds) if row.seconds else None
            ratio = self.ratios(row)
            rows.append(
                dataclasses.asdict(row)
                | {
                    "median": dataclasses.asdict(times) if times else None,
                    "ratio": dataclasses.asdict(ratio) if ratio else None,
                }
            )
        return {"name": self.name, "title": self.title, "rows": rows}

    def markdown(self) -> str:
        """Title and table."""
        unit, factor = self.unit()
        extras = list(dict.fromkeys(key for row in self.rows for key in row.extra))
        table = [["", f"median, {unit}", "quartiles", f"time / {OURS}", *extras, "remark"]]
        for row in self.rows:
            times, ratio = ["", ""], self.ratios(row)
            if row.seconds:
                s = rounds.summarise(row.seconds)
                spread = f"{number(s.q1 * factor)} - {number(s.q3 * factor)}"
                times = [number(s.median * factor), spread]
            spread = f"{ratio.median:.2f} ({ratio.q1:.2f} - {ratio.q3:.2f})" if ratio else ""
            extra = [number(row.extra[key]) if key in row.extra else "" for key in extras]
            remark = [row.status] if row.status != OK else []
            remark += [row.note] if row.note else []
            table.append([row.name, *times, spread, *extra, ": ".join(remark)])
        if not any(line[-1] for line in table[1:]):
            table = [line[:-1] for line in table]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        texts = [i == 0 or name == "remark" for i, name in enumerate(table[0])]
        rules = [
            "-" * w if text else "-" * (w - 1) + ":" for w, text in zip(widths, texts, strict=True)
        ]
        lines = [
            [
                c.ljust(w) if text else c.rjust(w)
                for c, w, text in zip(line, widths, texts, strict=True)
            ]
            for line in (table[0], rules, *table[1:])
        ]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def number(value: float) -> str:
    """Three significant digits, without an exponent for usual sizes.

    >>> number(0.012345), number(12.345), number(123456.0)
    ('0.0123', '12.3', '123,456')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


@dataclasses.dataclass
class Report:
    """All that a run of benchmark.py found."""

    suite: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    sections: list[Section]

    def json(self) -> str:
        """Every number as JSON; times are in seconds."""
        content = {
            "suite": self.suite,
            "settings": self.settings,
            "machine": self.machine,
            "sections": [section.content() for section in self.sections],
        }
        return json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n"

    def markdown(self) -> str:
        """The tables and the machine."""
        m = self.machine
        # Some of the load at the end is the benchmark's own.
        busy = max(m["load_start"], m["load_end"] - m["cores"]) > 0.5 * m["cores"]
        warning = "The machine was busy with other work: these are no results to quote."
        versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
        told = (
            f"{m['cpu']}, {m['cores']} cores, on {m['device']}; load average {m['load_start']} at "
            f"the start, {m['load_end']} at the end; {versions}, commit {m['commit']}, {m['date']}"
        )
        tables = [section.markdown() for section in self.sections]
        return "\n\n".join([*tables, *[warning] * busy, told]) + "\n"
