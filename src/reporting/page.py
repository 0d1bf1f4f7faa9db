"""The report as one HTML file that needs nothing else: no server, no network, no script."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.reporting.charts import FULL, NARROW, WIDE, Bars, Lines, Palette, bars_svg, lines_svg
from src.reporting.content import Report
from src.reporting.draw import OF_CURVES

HERE = Path(__file__).parent
STYLE = HERE / "page.css"
CHART_STYLE = HERE / "chart.css"


def page(report: Report) -> str:
    """Write the page; every text of a run or a user is escaped."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        report=report,
        style=Markup(CHART_STYLE.read_text() + STYLE.read_text()),
        of_curves=OF_CURVES,
        lines=[(chart.title, both(chart, report.palette)) for chart in report.lines],
        bars=[(f"{chart.title}, {chart.unit}", both(chart, report.palette)) for chart in report.bars],
    )


def both(chart: Lines | Bars, palette: Palette) -> list[tuple[str, Markup]]:
    """Draw a chart for a phone and a desktop, one of panels for a whole page too; the style sheet shows what fits."""
    widths = {"narrow": NARROW, "wide": WIDE}
    if in_panels(chart):
        widths = {"narrow": NARROW, "middle": WIDE, "full": FULL}
    return [(name, Markup(drawn(chart, palette, width))) for name, width in widths.items()]


def in_panels(chart: Lines | Bars) -> bool:
    """Say whether a chart has the width of the page."""
    return isinstance(chart, Lines) and len(chart.panels) > 1


def drawn(chart: Lines | Bars, palette: Palette, width: int) -> str:
    """Draw a chart of either kind."""
    return lines_svg(chart, palette, width) if isinstance(chart, Lines) else bars_svg(chart, palette, width)
