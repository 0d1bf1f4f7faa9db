"""Charts as SVG, written by hand: light and dark by the reader's own setting, text at its true size on any screen.

Colour tells the attention, the dashes of a line another setting, and panels side by side the rest. Each chart is drawn
for a width in CSS pixels.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from src.reporting.axes import Axis, axis, window

FULL, WIDE, NARROW = 1084, 520, 350  # pixels: a desktop page, a column of it, a phone
PANEL = 255  # pixels of a panel at least, where there are several
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "6 2 1 2 1 2")
HUES = ("dense", "fixed", "strided")
OTHER_HUES = 5
LINE, BAR = 19, 22  # pixels of a line of the legend, of a bar
CHARACTER = 6.4  # pixels, about, of a letter at 12 pixels
LEFT, RIGHT, TOP, BELOW = 46, 12, 10, 42
HEADING = 16  # pixels of a panel's heading


@dataclass(frozen=True)
class Curve:
    """A line.

    Args:
        name: of the run, shown where a mouse points at it.
        hue: what the colour tells.
        style: what the dashes tell.
        points: x and y.
        panel: heading of the panel that it is in; all panels have the same axes.
    """

    name: str
    hue: str
    style: str
    points: tuple[tuple[float, float], ...]
    panel: str = ""


@dataclass(frozen=True)
class Lines:
    """A chart of lines.

    Args:
        title: above it.
        x: what is to the right, with its unit.
        y: what is upward, with its unit.
        curves: at least one, none of them empty.
        skipped: share at the beginning of each curve that may lie above the chart.
    """

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    skipped: float = 0.0

    @property
    def panels(self) -> dict[str, list[Curve]]:
        """The curves of each panel, by its heading."""
        found: dict[str, list[Curve]] = {}
        for curve in self.curves:
            found.setdefault(curve.panel, []).append(curve)
        return found


@dataclass(frozen=True)
class Bars:
    """A chart of horizontal bars.

    Args:
        title: above it.
        unit: of the values.
        groups: heading of each group and its bars: label, which is the hue as well, value, and the value as text.
    """

    title: str
    unit: str
    groups: tuple[tuple[str, tuple[tuple[str, float, str], ...]], ...]


@dataclass
class Palette:
    """Which class of the style sheet a hue has, and which dashes a style; the same in all charts of a report."""

    hues: Sequence[str]
    styles: Sequence[str]
    classes: Mapping[str, str] = field(init=False)
    dashes: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        others = [hue for hue in self.hues if hue not in HUES]
        self.classes = {hue: f"hue-{hue}" for hue in HUES} | {
            hue: f"hue-{i % OTHER_HUES}" for i, hue in enumerate(others)
        }
        # so many styles tell nothing: all lines are whole then, and the legend does without them
        few = self.styles if len(self.styles) <= len(DASHES) else ()
        self.dashes = {style: DASHES[i] for i, style in enumerate(few)}


@dataclass(frozen=True)
class Frame:
    """Where a panel is and what its axes are; in pixels.

    Args:
        across: the axis to the right.
        up: the axis upward.
        width: of the panel.
        top: of the plot, below the panel's heading.
        bottom: of the plot.
    """

    across: Axis
    up: Axis
    width: float
    top: float
    bottom: float

    @property
    def right(self) -> float:
        """The end of the plot."""
        return self.width - RIGHT


def lines_svg(chart: Lines, palette: Palette, width: int) -> str:
    """Draw lines with axes, in as many panels as the chart has, and a legend below that hides nothing."""
    panels = chart.panels
    columns = _columns(len(panels), width)
    each = width / columns
    xs = [x for curve in chart.curves for x, _ in curve.points]
    across = axis(min(0.0, *xs), max(xs), about=6 if each >= WIDE else 4)
    up = axis(*window([[y for _, y in curve.points] for curve in chart.curves], chart.skipped), about=5)
    top = TOP + (HEADING if len(panels) > 1 else 0)
    frame = Frame(across, up, each, top, top + round(each * 0.56))
    high = frame.bottom + BELOW + 6
    parts = []
    for number, (heading, curves) in enumerate(panels.items()):
        x, y = number % columns * each, number // columns * high
        parts.append(f'<g transform="translate({x:.0f} {y:.0f})">{_panel(heading, curves, chart, palette, frame)}</g>')
    below = -(-len(panels) // columns) * high
    legend, rows = _legend(chart.curves, palette, width, below)
    return svg(width, round(below - 2 + rows * LINE), chart.title, "".join(parts) + legend)


def _columns(panels: int, width: int) -> int:
    """So many panels go side by side; each row has as many as the others where that is possible."""
    most = max(1, min(panels, width // PANEL))
    return -(-panels // -(-panels // most))


def _panel(heading: str, curves: Sequence[Curve], chart: Lines, palette: Palette, frame: Frame) -> str:
    left, right, top, bottom = LEFT, frame.right, frame.top, frame.bottom
    parts = [_grid(frame), _axis_names(chart, frame)]
    if heading:
        parts.append(f'<text class="heading" x="{left}" y="{top - 9}">{_fit(heading, right - left)}</text>')
    box = f"{left} {top} {right - left:.0f} {bottom - top}"  # an inner drawing cuts off what is above the axis
    place = f'x="{left}" y="{top}" width="{right - left:.0f}" height="{bottom - top}"'
    parts.append(f'<svg {place} viewBox="{box}" overflow="hidden">')
    for curve in curves:
        points = [
            (left + frame.across.place(x) * (right - left), bottom - frame.up.place(y) * (bottom - top))
            for x, y in curve.points
        ]
        parts.append(_line(curve, points, palette))
    return "".join(parts) + "</svg>"


def bars_svg(chart: Bars, palette: Palette, width: int) -> str:
    """Draw bars, the value at the end of each."""
    labels = [label for _, bars in chart.groups for label, _, _ in bars]
    texts = [text for _, bars in chart.groups for _, _, text in bars]
    left = min(width * 0.35, 10 + CHARACTER * max(map(len, labels)))
    room = width - left - 12 - CHARACTER * max(map(len, texts))
    most = max(value for _, bars in chart.groups for _, value, _ in bars) or 1.0
    y, parts = 4, []
    for heading, bars in chart.groups:
        if heading:
            parts.append(f'<text class="muted" x="0" y="{y + 14}">{_fit(heading, width)}</text>')
            y += 20
        for label, value, text in bars:
            long = max(1.0, value / most * room)
            parts.append(
                f'<text x="{left - 6:.0f}" y="{y + 15}" text-anchor="end">{_fit(label, left)}</text>'
                f'<rect class="bar {palette.classes.get(label, "hue-0")}" x="{left:.0f}" y="{y + 3}" rx="2" '
                f'width="{long:.1f}" height="{BAR - 6}"/>'
                f'<text class="number" x="{left + long + 6:.1f}" y="{y + 15}">{_text(text)}</text>'
            )
            y += BAR
        y += 8
    return svg(width, y, f"{chart.title}, {chart.unit}", "".join(parts))


def svg(width: int, height: int, title: str, content: str) -> str:
    """Put a frame around a drawing."""
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{_text(title)}">{content}</svg>'
    )


def _grid(frame: Frame) -> str:
    across, up, right, bottom, parts = frame.across, frame.up, frame.right, frame.bottom, []
    for tick in up.ticks:
        y = bottom - up.place(tick) * (bottom - frame.top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="number" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{up.text(tick)}</text>')
    for tick in across.ticks:
        x = LEFT + across.place(tick) * (right - LEFT)
        anchor = "end" if x > right - 14 else "middle"
        parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(
            f'<text class="number" x="{x:.1f}" y="{bottom + 17}" text-anchor="{anchor}">{across.text(tick)}</text>'
        )
    return "".join(parts) + f'<line class="tick" x1="{LEFT}" x2="{right:.0f}" y1="{bottom}" y2="{bottom}"/>'


def _axis_names(chart: Lines, frame: Frame) -> str:
    across, upward = (LEFT + frame.right) / 2, (frame.top + frame.bottom) / 2
    name = '<text class="muted" text-anchor="middle"'
    return (
        f'{name} x="{across:.0f}" y="{frame.bottom + 34}">{_text(chart.x)}</text>'
        f'{name} transform="translate(11 {upward:.0f}) rotate(-90)">{_text(chart.y)}</text>'
    )


def _line(curve: Curve, at: Sequence[tuple[float, float]], palette: Palette) -> str:
    hue, dashes = palette.classes.get(curve.hue, "hue-0"), palette.dashes.get(curve.style, "")
    title = f"<title>{_text(curve.name)}</title>"
    if len(at) == 1:
        return f'<circle class="dot {hue}" cx="{at[0][0]:.1f}" cy="{at[0][1]:.1f}" r="3.5">{title}</circle>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    return f'<polyline class="line {hue}"{_dashed(dashes)} points="{path}">{title}</polyline>'


def _dashed(dashes: str) -> str:
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def _legend(curves: Sequence[Curve], palette: Palette, width: int, top: float) -> tuple[str, int]:
    """Colours, then dashes, in as many rows as the width asks for; the drawing and the number of rows."""
    hues = [hue for hue in palette.hues if any(curve.hue == hue for curve in curves)]
    styles = [style for style in palette.dashes if any(curve.style == style for curve in curves)]
    items = [(f'<line class="line thick {palette.classes[hue]}" x2="16"/>', hue) for hue in hues]
    rows = [items]
    if len(styles) > 1:
        rows.append([(f'<line class="line ink" x2="26"{_dashed(palette.dashes[style])}/>', style) for style in styles])
    return _flowed(rows, width, top)


def _flowed(rows: Sequence[Sequence[tuple[str, str]]], width: int, top: float) -> tuple[str, int]:
    parts, line = [], 0
    for number, items in enumerate(rows):
        mark = 21 if number == 0 else 31
        x = 4.0
        for drawing, name in items:
            long = mark + CHARACTER * len(name) + 12
            if x > 4.0 and x + long > width:
                x, line = 4.0, line + 1
            y = top + line * LINE
            parts.append(
                f'<g transform="translate({x:.0f} {y:.0f})">{drawing}'
                f'<text x="{mark}" y="4">{_fit(name, width - x - mark)}</text></g>'
            )
            x += long
        line += 1
    return "".join(parts), line


def _fit(text: str, pixels: float) -> str:
    """Shorten text to a width, and escape it."""
    most = max(3, int(pixels / CHARACTER))
    return _text(text if len(text) <= most else text[: most - 1] + "…")


def _text(text: str) -> str:
    return html.escape(text)
