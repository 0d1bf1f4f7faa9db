"""Draw the attention patterns side by side, as the paper's figure 3 does."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Parse the command line, draw, write the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.figures.draw_patterns",
        description=__doc__,
        epilog="With --pattern it draws one pattern as a run does at its start, one column of panels a kind of head.",
    )
    parser.add_argument("--out", type=Path, default=Path("docs/patterns.png"), help="the picture (default %(default)s)")
    parser.add_argument("--of", choices=("windows", "others"), help="patterns of other papers instead")
    parser.add_argument("--stride", type=int, default=8, help="l, in positions (default %(default)s)")
    parser.add_argument("--summary", type=int, default=2, help="c, summary cells a block (default %(default)s)")
    parser.add_argument("--pattern", choices=("dense", "strided", "fixed"), help="draw this pattern only")
    parser.add_argument(
        "--mode", choices=("merged", "interleaved", "multihead"), default="merged", help="with --pattern"
    )
    parser.add_argument("--heads", type=int, default=2, help="with --pattern: attention heads (default %(default)s)")
    parser.add_argument("--length", type=int, default=64, help="with --pattern: positions (default %(default)s)")
    arguments = parser.parse_args()
    from src.attention.draw import draw_figure3, draw_pattern, draw_ready_made
    from src.attention.patterns import Pattern

    try:
        if arguments.of is not None:
            figure = draw_ready_made(arguments.of)
        elif arguments.pattern is None:
            figure = draw_figure3(arguments.stride, arguments.summary)
        else:
            pattern = Pattern(arguments.pattern, arguments.stride, arguments.summary, arguments.mode)
            figure = draw_pattern(pattern, arguments.heads, arguments.length)
    except ValueError as mistake:
        parser.error(str(mistake))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
