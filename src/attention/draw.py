"""Pictures of attention patterns, in the manner of the paper's figure 3.

Top row: a square picture of l x l positions in reading order. The query is dark, the keys it sees in the first set
(A1) and in the second (A2) are coloured. Bottom row: the connectivity matrix of the same sequence, queries downwards,
keys to the right; nothing above the diagonal is ever computed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from src.attention.key_sets import Column, Dense, Fixed, KeySet, OwnBlock, Strided, Summary, Window
from src.attention.other_key_sets import Axial, BigBird, Local, Logarithmic, WindowAndFirst
from src.attention.patterns import HeadPattern, Pattern, shared_layer

INK = "#1f2a44"
FIRST, SECOND, BOTH = "#3a7ebf", "#f2a541", "#3f9c7a"
PAST, FUTURE = "#e4e8f0", "#f7f8fb"
# beyond this many positions cells are smaller than a pixel and the picture takes seconds
LARGEST = 256
# of a pattern that is not the paper's so many positions are drawn, in a picture of so many a row
FIRST_POSITIONS, SIDE = 1024, 32
MOST_PANELS = 4
READY_MADE_SETS = {
    "windows": (
        ("local", "window 24", Local(24)),
        ("local, dilated", "window 12, dilation 3", Local(12, 3)),
        ("longformer", "window 24, first 8", WindowAndFirst(24, 8)),
        ("sinks", "window 32, first 2", WindowAndFirst(32, 2)),
    ),
    "others": (
        ("bigbird", "blocks of 16: 2 near, the first, 1 random", BigBird(16, 2, 1, 1)),
        ("axial", "rows of 16", Axial(16)),
        ("logarithmic", "window 4", Logarithmic(4)),
    ),
}
# the most cells in a row that still get lines between them
FINEST_GRID = 100


@dataclass(frozen=True)
class _Panel:
    title: str
    first: KeySet
    second: KeySet | None
    names: tuple[str, str]


def draw_figure3(stride: int = 8, summary: int = 2) -> Figure:
    """Draw dense, strided and fixed attention side by side (figure 3).

    Args:
        stride: ``l``, the side of the square picture; the sequence has ``l * l`` positions.
        summary: ``c``, summary cells a block.

    Returns:
        A figure on an Agg canvas: save it with ``figure.savefig(path)``.

    Raises:
        ValueError: an impossible stride or summary.
    """
    panels = (
        _Panel("dense", Dense(), None, ("all keys up to the query", "")),
        _panel(Strided(stride), "strided"),
        _panel(Fixed(stride, summary), "fixed"),
    )
    return _draw(panels, stride, stride * stride)


def draw_ready_made(which: str) -> Figure:
    """Draw patterns of other papers side by side, in small.

    Args:
        which: of ``READY_MADE_SETS``.
    """
    panels = [_Panel(title, keys, None, (words, "")) for title, words, keys in READY_MADE_SETS[which]]
    return _draw(panels, 16, 256)


def draw_pattern(pattern: HeadPattern, heads: int, n: int, kv_heads: int | None = None) -> Figure:
    """Draw what the heads of one pattern see, one column of panels for each different key set.

    A long sequence is scaled down: the stride of a pattern of the paper shrinks to the square root of what can be
    drawn, and the summary cells with it in proportion. Of other patterns the first positions are drawn.

    Args:
        pattern: the pattern of a run.
        heads: attention heads of a residual block.
        n: sequence length of the run, in positions.
        kv_heads: heads of keys and values, see ``shared_layer``, which has the order of the heads.

    Returns:
        A figure on an Agg canvas.
    """
    if isinstance(pattern, Pattern):
        return _draw_of_the_paper(pattern, heads, n, kv_heads)
    return _draw_other(pattern, heads, n, kv_heads)


def _draw_other(pattern: HeadPattern, heads: int, n: int, kv_heads: int | None) -> Figure:
    shown = min(n, FIRST_POSITIONS)
    kinds: dict[KeySet, list[str]] = {}
    for block in range(pattern.turns):
        for head, keys in enumerate(shared_layer(pattern, heads, kv_heads, block)):
            kinds.setdefault(keys, []).append(f"block {block + 1} head {head}" if pattern.turns > 1 else f"head {head}")
    panels = []
    for keys, places in list(kinds.items())[:MOST_PANELS]:
        every = len(kinds) == 1
        title = f"{keys.name}, " + ("every head" if every else places[0] + (", ..." if len(places) > 1 else ""))
        panels.append(_Panel(title, keys, None, ("the keys that are seen", "")))
    figure = _draw(panels, min(SIDE, shown), shown)
    more = f" ({len(kinds) - len(panels)} more kinds of head)" if len(kinds) > len(panels) else ""
    first = f", the first {shown:,} drawn" if shown < n else ""
    title = f"{pattern.name.rpartition(':')[2]}, {n:,} positions{first}{more}"
    figure.suptitle(textwrap.fill(title, int(10 * figure.get_figwidth())), color=INK, fontsize=11)
    return figure


def _draw_of_the_paper(pattern: Pattern, heads: int, n: int, kv_heads: int | None) -> Figure:
    shown = _scaled(pattern, n)
    blocks_shown = min(shown.stride, LARGEST // shown.stride, -(-n // pattern.stride))
    n_shown = min(n, shown.stride * max(2, blocks_shown))
    # one residual block of each kind
    blocks = range(sum(pattern.interleave)) if pattern.mode == "interleaved" else range(1)
    kinds = dict.fromkeys(keys for block in blocks for keys in shown.layer(heads, block))
    panels = tuple(_panel(keys, _heads_title(shown, keys, heads, kv_heads)) for keys in list(kinds)[:MOST_PANELS])
    figure = _draw(panels, shown.stride, n_shown)
    scaled = f", drawn with stride {shown.stride}" if shown.stride != pattern.stride and shown.name != "dense" else ""
    stride = "" if pattern.name == "dense" else f" {pattern.mode}, stride {pattern.stride}"
    more = f" ({len(kinds) - len(panels)} more kinds of head)" if len(kinds) > len(panels) else ""
    title = f"{pattern.name}{stride}, {n:,} positions{scaled}{more}"
    figure.suptitle(textwrap.fill(title, int(10 * figure.get_figwidth())), color=INK, fontsize=11)  # 10 letters an inch
    return figure


def sets_matrix(first: KeySet, second: KeySet | None, n: int) -> np.ndarray:
    """Give an (n, n) array of small integers: 0 future, 1 past but unseen, 2 first set, 3 second set, 4 both."""
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    in_first = (torch.as_tensor(first.sees(i, j)) & (j <= i)).numpy()
    in_second = np.zeros_like(in_first) if second is None else torch.as_tensor(second.sees(i, j)).numpy()
    kinds = (j <= i).long().numpy()
    kinds[in_first], kinds[in_second], kinds[in_first & in_second] = 2, 3, 4
    return kinds


def _scaled(pattern: Pattern, n: int) -> Pattern:
    if pattern.name == "dense":
        return Pattern("dense", stride=8)
    if pattern.stride <= 16 and n <= LARGEST:
        return pattern
    choices = pattern.stride // pattern.summary if pattern.name == "fixed" else 1
    choices = min(choices, 16)
    summary = max(1, 16 // choices)
    stride = summary * choices if pattern.name == "fixed" else min(pattern.stride, 16)
    return Pattern(pattern.name, stride, min(summary, stride), pattern.mode, pattern.distinct, pattern.interleave)


def _heads_title(pattern: Pattern, keys: KeySet, heads: int, kv_heads: int | None) -> str:
    if pattern.name == "dense":
        return "every head"
    if pattern.mode == "interleaved":
        first, second = pattern.interleave
        which = f"{first} of {first + second} blocks"
        return f"{keys.name}, {which if isinstance(keys, Window | OwnBlock) else 'the other blocks'}"
    own = [h for h, other in enumerate(shared_layer(pattern, heads, kv_heads)) if other == keys]
    if len(own) == heads:
        return f"{keys.name}, every head"
    if len(own) > 2 and own[-1] - own[0] == len(own) - 1:
        return f"{keys.name}, heads {own[0]} to {own[-1]}"
    return f"{keys.name}, head{'s' * (len(own) > 1)} {', '.join(map(str, own))}"


def _panel(keys: KeySet, title: str) -> _Panel:
    """Show a merged set as the two sets that it is made of, any other as it is."""
    match keys:
        case Strided(stride):
            return _Panel(title, Window(stride), Column(stride), ("previous l positions", "every l-th before"))
        case Fixed(stride, summary, sub_block):
            second = Summary(stride, summary, sub_block)
            return _Panel(title, OwnBlock(stride), second, ("own block", "summary cells"))
        case Column() | Summary():
            names = {"column": "every l-th position", "summary": "summary cells"}
            return _Panel(title, _Nothing(), keys, ("", names[keys.name]))
    names = {
        "window": "previous l positions",
    }
    return _Panel(title, keys, None, (names.get(keys.name, "all keys up to the query"), ""))


@dataclass(frozen=True)
class _Nothing(KeySet):
    """No key at all: the first set of a head that has only the second."""

    def sees(self, i: Any, j: Any) -> Any:
        return (i < 0) & (j < 0)

    def pairs(self, n: int) -> int:
        return 0


def _draw(panels: Sequence[_Panel], side: int, n: int) -> Figure:
    figure = Figure(figsize=(3.4 * len(panels) + 0.4, 6.6), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(panels), height_ratios=(1, 1.6), squeeze=False)
    for column, panel in enumerate(panels):
        _draw_column(axes[0, column], axes[1, column], panel, side, n)
    _legend(figure, panels)
    return figure


def _draw_column(top: Axes, bottom: Axes, panel: _Panel, side: int, n: int) -> None:
    kinds = sets_matrix(panel.first, panel.second, n)
    share = np.count_nonzero(kinds > 1) / (n * (n + 1) / 2)
    rows = -(-n // side)
    # a query past the middle of its row, well down the picture: every kind of key shows
    query = min(n - 1, side * int(rows * 0.7) + int(side * 0.6))
    picture = np.zeros(rows * side, dtype=int)
    picture[:n] = kinds[query]
    picture[query] = 5
    _cells(top, picture.reshape(rows, side))
    np.fill_diagonal(kinds, 5)
    _cells(bottom, kinds)
    top.set_title(panel.title, color=INK, fontsize=13, fontweight="bold", pad=8)
    names = [name for name in panel.names if name]
    sets = " and ".join(names) if len(names) > 1 else names[0]
    label = f"{sets}\n{share:.0%} of the causal pairs of {n} positions"
    bottom.set_xlabel(label, color=INK, fontsize=9, labelpad=6, linespacing=1.5)


def _legend(figure: Figure, panels: Sequence[_Panel]) -> None:
    handles = [Patch(color=INK, label="query")]
    if any(panel.names[0] for panel in panels):
        several = any(panel.names[1] for panel in panels)
        handles.append(Patch(color=FIRST, label="first set, A1" if several else "keys that it sees"))
    if any(panel.names[1] for panel in panels):
        handles.append(Patch(color=SECOND, label="second set, A2"))
    if any(all(panel.names) for panel in panels):
        handles.append(Patch(color=BOTH, label="in both"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) if len(panels) > 1 else 2,
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=2.0,
    )


def _cells(axes: Axes, kinds: np.ndarray) -> None:
    palette = np.array([to_rgb(colour) for colour in (FUTURE, PAST, FIRST, SECOND, BOTH, INK)])
    axes.imshow(palette[kinds], interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#c9d0dd")
    rows, columns = kinds.shape
    if columns <= FINEST_GRID:
        width = 1.0 if columns <= 16 else 0.35
        axes.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, color="white", linewidth=width)
        axes.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, color="white", linewidth=width)
