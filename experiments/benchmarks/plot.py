"""The results as one picture: a panel a section, a bar a contestant, quartiles as whiskers."""

from pathlib import Path

from _atlas import style
from _bench import report as reports
from _bench import stats
from _bench.report import OK, Report, Section

_ROW = 0.24  # inches
_DPI = 200

_BARS_UP_TO = 30
"""Times further apart than this factor are drawn as dots on a logarithmic axis."""


def save(report: Report, path: Path) -> None:
    """Draws every timed section into one file (.png, .svg or .pdf)."""
    with style.styled():
        style.save(draw(report), path, _DPI)


def draw(report: Report) -> style.Figure:
    """A figure with one panel for each section that has times."""
    sections = [s for s in report.sections if any(row.seconds for row in s.rows)]
    rows = [sum(bool(row.seconds) for row in section.rows) for section in sections]
    heights = [0.75 + _ROW * count for count in rows]
    figure, axes = style.panels(
        len(sections), 1, sum(heights), gridspec_kw={"height_ratios": heights}
    )
    for panel, section in zip(axes[:, 0], sections, strict=True):
        _panel(panel, section)
    return figure


def _panel(panel: style.Axes, section: Section) -> None:
    unit, factor = reports.unit_of(section)
    rows = [row for row in section.rows if row.seconds]
    summaries = [stats.summarise(row.seconds) for row in rows]
    longest = max(s.q3 for s in summaries) * factor
    shortest = min(s.q1 for s in summaries) * factor
    wide = longest > _BARS_UP_TO * shortest
    if wide:
        panel.set_xscale("log")
    for place, (row, s) in enumerate(zip(rows, summaries, strict=True)):
        own = row.name == section.reference
        colour = style.BLUE if own else style.SKY if row.status == OK else style.ORANGE
        middle = s.median * factor
        whiskers = [[max(0.0, middle - s.q1 * factor)], [max(0.0, s.q3 * factor - middle)]]
        if wide:  # a bar's length means nothing on a logarithmic axis
            panel.plot(middle, place, "o", color=colour, markersize=6)
        else:
            panel.barh(place, middle, height=0.66, color=colour)
        panel.errorbar(middle, place, xerr=whiskers, color=style.BLACK, linewidth=0.9, capsize=2)
        label = f"{reports.number(middle)} {unit}"
        ratio = section.ratios(row)
        if ratio is not None and not own:
            label += f"   × {reports.ratio(ratio.median)}"
        if row.status != OK:
            label += f"   ({row.status})"
        panel.annotate(
            label,
            (s.q3 * factor, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    panel.set_yticks(range(len(rows)), [row.name for row in rows])
    panel.set_ylim(len(rows) - 0.4, -0.6)
    room = 1.35 if not wide else (longest / shortest) ** 0.35
    panel.set_xlim(shortest / 1.5 if wide else 0.0, longest * room)
    panel.set_xlabel(f"{unit}: medians and quartiles" + _factor_note(section))
    panel.set_title(section.title, loc="left", wrap=True)


def _factor_note(section: Section) -> str:
    return f"; × is the time over that of {section.reference}" if section.reference else ""
