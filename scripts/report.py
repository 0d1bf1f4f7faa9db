"""Write a report on a sweep, or on some runs: one HTML file that opens without a server or a network, and Markdown.

It has the paper's table 2 beside ours, bits per byte at equal bytes and at equal time, the curves, speed and memory,
how the configurations differ, samples and pictures. Sweeps that still run and runs that failed are shown as far as
they are.

python -m scripts.report runs/sweeps/NAME           report.html, report.md and pictures in report/, all in that folder
python -m scripts.report runs/NAME runs/OTHER       the same, in the current folder
python -m scripts.report runs/sweeps/NAME --output today.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from src.errors import UserError, exit_code, of_the_machine


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, read, write; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a sweep's folder, or run directories")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="the page; FILE.md and FILE/ with its pictures go beside it (default: report.html in the folder that is "
        "reported on, or in the current one where there are several)",
    )
    wanted = parser.parse_args(arguments)
    return exit_code(lambda: print(*write(wanted.folders, wanted.output), sep="\n"))


def write(folders: Sequence[Path], output: Path | None) -> list[Path]:
    """Write the report and give its two files.

    Raises:
        UserError: a folder is no sweep and no run, or a file cannot be written.
    """
    file = place(folders, output)
    from src.reporting.content import report
    from src.reporting.load import load
    from src.reporting.markdown import markdown
    from src.reporting.page import page

    found = report(load(folders))
    text, pictures = markdown(found, file.stem)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if pictures:
            file.with_suffix("").mkdir(exist_ok=True)
        for name, content in pictures.items():
            put(file.with_suffix("") / name, content)
        put(file.with_suffix(".md"), text.encode())
        put(file, page(found).encode())
    except OSError as error:
        raise of_the_machine(error) or UserError(f"{file} cannot be written: {error.strerror}") from error
    return [file, file.with_suffix(".md")]


def place(folders: Sequence[Path], output: Path | None) -> Path:
    """Choose where the page goes.

    Raises:
        UserError: ``--output`` is not the name of an HTML file.
    """
    if output is None:
        return (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if output.suffix != ".html" or output.is_dir():
        raise UserError(f"--output must be a file whose name ends in .html, found {output}")
    return output


def put(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    from src.system.atomic_files import written_whole

    with written_whole(path) as file:
        file.write(content)


if __name__ == "__main__":
    sys.exit(main())
