"""The results as one picture: a panel per section, a bar per contestant, quartiles as whiskers."""

from atlas import style

from benchmarks import report, rounds
from benchmarks.report import OK, OURS, Report, Section

_ROW = 0.24  # inches
_BARS_UP_TO = 30
"""Times further apart than this factor are drawn as dots on a logarithmic axis."""


def draw(results: Report) -> style.Figure:
    """A figure with one panel for each section."""
    rows = [sum(bool(row.seconds) for row in section.rows) for section in results.sections]
    heights = [0.75 + _ROW * count for count in rows]
    figure, axes = style.panels(len(rows), 1, sum(heights), gridspec_kw={"height_ratios": heights})
    for panel, section in zip(axes[:, 0], results.sections, strict=True):
        _panel(panel, section)
    return figure


def _panel(panel: style.Axes, section: Section) -> None:
    unit, factor = section.unit()
    rows = [row for row in section.rows if row.seconds]
    summaries = [rounds.summarise([factor * s for s in row.seconds]) for row in rows]
    longest, shortest = max(s.q3 for s in summaries), min(s.q1 for s in summaries)
    wide = longest > _BARS_UP_TO * shortest
    for place, (row, s) in enumerate(zip(rows, summaries, strict=True)):
        own = row.name == OURS
        color = style.BLUE if own else style.SKY if row.status == OK else style.ORANGE
        whiskers = [[s.median - s.q1], [s.q3 - s.median]]
        if wide:  # a bar's length means nothing on a logarithmic axis
            panel.plot(s.median, place, "o", color=color, markersize=6)
        else:
            panel.barh(place, s.median, height=0.66, color=color)
        panel.errorbar(s.median, place, xerr=whiskers, color=style.BLACK, linewidth=0.9, capsize=2)
        label = f"{report.number(s.median)} {unit}"
        ratio = section.ratios(row)
        if ratio is not None and not own:
            label += f"   × {ratio.median:.2f}"
        if row.status != OK:
            label += f"   ({row.status})"
        offset = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
        panel.annotate(label, (s.q3, place), **offset)
    panel.set_yticks(range(len(rows)), [row.name for row in rows])
    panel.set_ylim(len(rows) - 0.4, -0.6)
    room = 1.35 if not wide else (longest / shortest) ** 0.35
    panel.set_xscale("log" if wide else "linear")
    panel.set_xlim(shortest / 1.5 if wide else 0.0, longest * room)
    panel.set_xlabel(f"{unit}: medians and quartiles; × is the time over that of {OURS}")
    panel.set_title(section.title, loc="left", wrap=True)
