"""Pictures of what a trained network attends to, in the manner of the paper's figure 2.

Position t predicts byte t, and key position j holds byte j - 1 (the start symbol at 0). A weight is drawn on the byte
that the key holds, so everything coloured is something that the network has read.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath

from src.attention.draw import INK, SECOND
from src.attention.learned import Floats, Learned

Bytes = npt.NDArray[np.uint8]

GLOW, MARK, FAINT = SECOND, "#19b5fe", "#b9c0cc"
LUMA = np.array([0.299, 0.587, 0.114])
COLUMNS, LINES = 64, 8  # characters that a text panel shows: the query's line and those before it
BINS = 256  # parts of the strip below a text panel
CELL = 2.0  # height of a character's cell, in widths


def draw_learned(learned: Learned, x: Bytes, row: int | None) -> Figure:
    """Draw the weights on the sequence that they were computed for.

    Args:
        learned: the weights.
        x: uint8 (n,), the sequence.
        row: pixels of a row where the sequence is a picture; None for text.

    Returns:
        A figure on an Agg canvas: save it with ``figure.savefig(path)``.
    """
    return draw_on_text(learned, x) if row is None else draw_on_picture(learned, x.reshape(-1, row, 3))


def draw_on_picture(learned: Learned, picture: Bytes) -> Figure:
    """Lay the weights over the picture, summed over the bytes of a pixel: a panel for each block and head.

    Args:
        learned: the weights.
        picture: uint8 (height, width, 3), its bytes in the order row, column, channel.

    Returns:
        A figure on an Agg canvas.
    """
    height, width, _ = picture.shape
    row, column = divmod(learned.query // 3, width)
    on_bytes = np.zeros((*learned.weights.shape[:2], picture.size), dtype=np.float32)
    on_bytes[..., : learned.query] = learned.on_bytes()
    on_pixels = on_bytes.reshape(*on_bytes.shape[:2], height, width, 3).sum(-1)
    figure, axes = _grid(learned, 1.9, 1.9 * height / width, extra=1)
    for i, line in enumerate(on_pixels):
        for j, weight in enumerate(line):
            panel = axes[i][j + 1]
            panel.imshow(_glowing(picture, weight, learned.query), interpolation="nearest")
            _mark(panel, column - 0.5, row - 0.5, 1, 1)
            panel.set_xlabel(_caption(learned, i, j, weight, "pixels"), color=INK, fontsize=7, labelpad=3)
        axes[i][0].set_axis_off()
    axes[0][0].set_axis_on()
    axes[0][0].imshow(picture, interpolation="nearest")
    _mark(axes[0][0], column - 0.5, row - 0.5, 1, 1)
    axes[0][0].set_xlabel("the picture", color=INK, fontsize=7, labelpad=3)
    channel = ("red", "green", "blue")[learned.query % 3]
    figure.suptitle(f"Attention of the {channel} byte at row {row}, column {column}", color=INK, fontsize=11)
    _explain(figure, "pixel", "not known to the query: pale")
    return figure


def draw_on_text(learned: Learned, text: Bytes) -> Figure:
    """Shade each character by its weight: a panel for each block and head, and below it a strip of all bytes before.

    Args:
        learned: the weights.
        text: uint8 (n,), n above the query; bytes that are no printable ASCII show as a dot.

    Returns:
        A figure on an Agg canvas.
    """
    last = learned.query // COLUMNS
    first = max(0, last - LINES + 1)
    start, stop = first * COLUMNS, (last + 1) * COLUMNS
    shown = text[start : min(stop, learned.query + 1)]
    letters = _outline(shown)
    figure, axes = _grid(learned, 4.2, 4.2 * CELL * (last - first + 1) / COLUMNS + (0.12 if start else 0))
    for i, line in enumerate(learned.on_bytes()):
        for j, weight in enumerate(line):
            panel, lines = axes[i][j], last - first + 1
            cells = np.zeros(lines * COLUMNS, dtype=np.float32)
            cells[: learned.query - start] = weight[start:]
            _shade(panel, cells.reshape(lines, COLUMNS), float(weight.max(initial=0)))
            panel.add_patch(PathPatch(letters, facecolor=INK, linewidth=0))
            place = learned.query - start
            _mark(panel, place % COLUMNS, place // COLUMNS * CELL, 1, CELL)
            if start:
                _strip(panel, weight, start, lines)
            caption = _caption(learned, i, j, weight, "bytes")
            if start:
                caption += f", {weight[:start].sum():.0%} further back than the text"
            panel.set_xlabel(caption, color=INK, fontsize=7, labelpad=3)
    figure.suptitle(f"Attention of byte {learned.query:,}, {_named(int(text[learned.query]))}", color=INK, fontsize=11)
    _explain(figure, "byte", f"strip below: all {learned.query:,} bytes before" if start else "")
    return figure


def _grid(learned: Learned, width: float, height: float, extra: int = 0) -> tuple[Figure, list[list[Axes]]]:
    """Make a panel for each block and head, ``extra`` columns before them."""
    rows, columns = len(learned.blocks), len(learned.heads) + extra
    size = (columns * (width + 0.1) + 0.4, rows * (height + 0.3) + 1.0)
    figure = Figure(figsize=size, dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[list[Axes]] = figure.subplots(rows, columns, squeeze=False).tolist()
    for line in axes:
        for panel in line:
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_color("#c9d0dd")
    for panel, head in zip(axes[0][extra:], learned.heads, strict=True):
        panel.set_title(f"head {head}", color=INK, fontsize=9, fontweight="bold")
    for line, block in zip(axes, learned.blocks, strict=True):
        line[extra].set_ylabel(f"block {block}", color=INK, fontsize=9, fontweight="bold")
    return figure, axes


def _glowing(picture: Bytes, weight: Floats, query: int) -> npt.NDArray[np.float64]:
    """The picture in dark grey, pale from the query on, with each pixel's weight as a glow."""
    grey = (picture @ LUMA / 255)[..., None].repeat(3, axis=-1)
    known = (np.arange(weight.size) * 3 < query).reshape(weight.shape)[..., None]
    base = np.where(known, 0.06 + 0.5 * grey, 0.80 + 0.16 * grey)
    alpha = _alpha(weight, float(weight.max(initial=0)))[..., None]
    return _blend(base, alpha)


def _alpha(weight: Floats, largest: float) -> Floats:
    """Opacity of a colour: the square root, since most weights are far below the largest."""
    return np.sqrt(weight / largest) if largest > 0 else np.zeros_like(weight)


def _blend(base: Any, alpha: Floats) -> npt.NDArray[np.float64]:
    """Lay the glow over a colour; rounding must not leave the range of colours."""
    return np.clip(base * (1 - alpha) + alpha * np.array(to_rgb(GLOW)), 0, 1)


def _shade(panel: Axes, weight: Floats, largest: float) -> None:
    alpha = _alpha(weight, largest)[..., None]
    lines, columns = weight.shape
    panel.imshow(_blend(1, alpha), interpolation="nearest", extent=(0, columns, lines * CELL, 0), aspect="equal")


def _strip(panel: Axes, weight: Floats, start: int, lines: int) -> None:
    """Draw the largest weight in each part of all bytes before the query, and a line where the text above begins."""
    edges = np.linspace(0, len(weight), min(BINS, len(weight)) + 1).astype(int)
    parts = np.array([[weight[a:b].max() for a, b in itertools.pairwise(edges)]], dtype=np.float32)
    top, bottom = lines * CELL + 0.5, lines * CELL + 2.5
    alpha = _alpha(parts, float(parts.max()))[..., None]
    panel.imshow(_blend(0.93, alpha), interpolation="nearest", extent=(0, COLUMNS, bottom, top), aspect="equal")
    at = start / len(weight) * COLUMNS
    panel.plot([at, at, COLUMNS], [bottom, bottom + 0.3, bottom + 0.3], color=FAINT, linewidth=1, clip_on=False)
    panel.set_xlim(0, COLUMNS)
    panel.set_ylim(bottom + 0.6, 0)


def _mark(panel: Axes, x: float, y: float, width: float, height: float) -> None:
    panel.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=MARK, linewidth=1.4, clip_on=False))


def _caption(learned: Learned, block: int, head: int, on_bytes: Floats, unit: str) -> str:
    """Say how concentrated a head is: how few places hold 90% of what is not on the start symbol."""
    row, name = learned.weights[block, head], learned.names[block][head]
    if not row.any():
        return f"{name}: sees nothing"
    places = np.sort(on_bytes.reshape(-1))[::-1]
    most = 0.9 * places.sum()
    start = f", {row[0]:.0%} on the start" if row[0] >= 0.005 else ""
    if not most > 0:
        return f"{name}: all on the start"
    return f"{name}: 90% on {int(np.searchsorted(places.cumsum(), most * (1 - 1e-6))) + 1:,} {unit}{start}"


def _explain(figure: Figure, unit: str, more: str) -> None:
    first = "; ".join(part for part in (f"framed: the query's {unit}", more) if part)
    scale = "colour: square root of the weight, each panel by its own largest"
    figure.supxlabel(f"{first}\n{scale}", color=INK, fontsize=7, linespacing=1.4)


def _outline(text: Bytes) -> Outline:
    """All characters as one outline, each in its cell, so that panels share it and nothing can slip out of line."""
    glyphs: dict[int, tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8] | None]] = {}
    placed: list[Outline] = []
    font = FontProperties(family="DejaVu Sans Mono")
    for place, byte in enumerate(text.tolist()):
        if byte == ord(" "):
            continue
        if byte not in glyphs:
            letter = chr(byte) if 32 < byte < 127 else "\u21b5" if byte == ord("\n") else "\u00b7"
            found = TextPath((0, 0), letter, size=1.45, prop=font)
            glyphs[byte] = np.asarray(found.vertices) * (1.0, -1.0), found.codes
        corners, codes = glyphs[byte]
        line, column = divmod(place, COLUMNS)
        corner = np.array((column + 0.06, (line + 0.74) * CELL))
        placed.append(Outline(corners + corner, codes))
    return Outline.make_compound_path(*placed) if placed else Outline(np.zeros((1, 2)))


def _named(byte: int) -> str:
    return repr(chr(byte)) if 32 <= byte < 127 else f"value {byte}"
