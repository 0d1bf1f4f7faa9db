"""The report as Markdown, with its pictures as files beside it."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from src.errors import UserError
from src.reporting.charts import FULL, WIDE, Bars, Lines, Palette
from src.reporting.content import Report
from src.reporting.draw import OF_CURVES
from src.reporting.page import CHART_STYLE, drawn, in_panels
from src.reporting.pictures import Left, Picture
from src.reporting.tables import Table
from src.system.atomic_files import written_whole


def markdown(report: Report, folder: str) -> tuple[str, Mapping[str, bytes]]:
    """Write the Markdown.

    Args:
        report: what to show.
        folder: where the pictures will be, as the Markdown names it.

    Returns:
        The text, and the pictures' content by file name.
    """
    files = Files(folder)
    states = ", ".join(f"{count} {state}" for state, count in report.states)
    parts = [f"# {plain(report.title)}", plain(states)]
    parts += [f"> **{plain(warning)}**" for warning in report.warnings]
    parts += ["\n".join(f"- **{plain(tile.value)}** {plain(tile.what)}" for tile in report.tiles)]
    if report.effects.rows:
        parts += ["## What each choice is worth", table(report.effects)]
    parts += ["## Runs", table(report.runs)]
    parts += ["## Loss", *(files.chart(chart, report.palette) for chart in report.lines), OF_CURVES]
    parts += ["## Speed and memory", *(files.chart(chart, report.palette) for chart in report.bars)]
    if report.table2.rows:
        parts += ["## Table 2: kinds of attention", table(report.table2)]
        parts += ["## At equal bytes, at equal time", table(report.budgets)]
    parts += ["## What was run", "\n".join(f"- {name}: {plain(value)}" for name, value in report.facts)]
    if len(report.differences.columns) > 1:
        parts += ["## How their configurations differ", table(report.differences)]
    if report.patterns:
        parts += ["## What each head sees", *map(files.picture, report.patterns)]
    if report.left:
        parts += ["## Samples and learned attention", *(files.left(found) for found in report.left)]
    parts.append(f"Made on {report.made} by `python -m scripts.report`.")
    return "\n\n".join(filter(None, parts)) + "\n", files.content


@dataclass
class Files:
    """The pictures that the text has shown so far.

    Args:
        folder: where they will be, as the Markdown names it.
        content: by name.
    """

    folder: str
    content: dict[str, bytes] = field(default_factory=dict)

    def chart(self, chart: Lines | Bars, palette: Palette) -> str:
        """Show a chart under its title."""
        name = re.sub(r"\W+", "-", chart.title.lower()) + ".svg"
        drawing = standalone(drawn(chart, palette, FULL if in_panels(chart) else WIDE))
        return f"### {plain(chart.title)}\n\n{self._shown(name, drawing.encode(), chart.title)}"

    def picture(self, found: Picture) -> str:
        """Show a picture above its caption."""
        return f"{self._shown(found.file_name, found.data, found.caption)}\n\n{plain(found.caption)}"

    def left(self, found: Left) -> str:
        """Show what a run left, text as it is."""
        text = "\n".join(f"    {line}" for line in found.text.splitlines())
        return "\n\n".join(filter(None, [f"### {plain(found.run)}", text, *map(self.picture, found.pictures)]))

    def _shown(self, name: str, content: bytes, caption: str) -> str:
        self.content[name] = content
        return f"![{plain(caption)}]({quote(self.folder)}/{quote(name)})"


def table(found: Table) -> str:
    """Write a table; a row of a single cell becomes a bold one."""
    lines = [found.columns, [":--" if i == 0 or i in found.words else "--:" for i in range(len(found.columns))]]
    text = ["| " + " | ".join(map(plain, lines[0])) + " |", "| " + " | ".join(lines[1]) + " |"]
    for number, row in enumerate(found.rows):
        if len(row) == 1:
            cells = [f"**{plain(row[0])}**", *[""] * (len(found.columns) - 1)]
        else:
            cells = [f"**{plain(cell)}**" if (number, i) in found.best else plain(cell) for i, cell in enumerate(row)]
        text.append("| " + " | ".join(cells) + " |")
    notes = "\n".join(f"- {plain(note)}" for note in found.notes)
    return "\n".join(text) + (f"\n\n{notes}" if notes else "")


def plain(text: str) -> str:
    """Take from a text what Markdown or HTML would read as more than text."""
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def standalone(drawing: str) -> str:
    """Give a drawing its style sheet, so that it is a file of its own."""
    begin, end = drawing.split(">", 1)
    background = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    paper = ".chart { --paper: #fff; } @media (prefers-color-scheme: dark) { .chart { --paper: #1c2026; } }"
    return f"{begin}><style>{CHART_STYLE.read_text()}{paper}</style>{background}{end}\n"


def put_into(text: str, block: str) -> str:
    """Replace the part of a document that stands between the first and the last line of ``block``, which are marks; a
    document without them ends with the block."""
    begin, *_, end = block.strip().splitlines()
    before, mark, rest = text.partition(begin)
    if not mark:
        return f"{text.rstrip()}\n\n{block}" if text.strip() else block
    return f"{before}{block.rstrip()}{rest.partition(end)[2]}"


def write_into(output: Path, block: str, drawings: Mapping[str, bytes]) -> None:
    """Put a block into the document ``output``, new or there before, and its drawings into a folder of its name.

    Raises:
        UserError: a file cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        before = output.read_text() if output.is_file() else ""
        if drawings:
            output.with_suffix("").mkdir(exist_ok=True)
        for name, content in drawings.items():
            with written_whole(output.with_suffix("") / name) as file:
                file.write(content)
        with written_whole(output) as file:
            file.write(put_into(before, block).encode())
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}") from error
