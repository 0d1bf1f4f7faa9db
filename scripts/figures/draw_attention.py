"""Draw what the heads of a trained run attend to when they predict one byte, as the paper's figure 2 does.

python -m scripts.figures.draw_attention runs/NAME                          a byte of the first test sequence
python -m scripts.figures.draw_attention runs/NAME --query 20,14            row and column of a pixel (its red byte)
python -m scripts.figures.draw_attention runs/NAME --query 4000 --blocks 0,11,29 --heads 0,1
python -m scripts.figures.draw_attention runs/NAME --file MINE.png          or a text file, for a model of text
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from src.errors import UserError, exit_code

if TYPE_CHECKING:
    from torch import Tensor

    from src.config.schema import Config

MOST_BLOCKS, MOST_HEADS = 6, 4


def main() -> int:
    """Parse the command line, draw, write the picture; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.figures.draw_attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--out", type=Path, help="the PNG (default: a new name in RUN/attention/)")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="default %(default)s")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="default %(default)s")
    parser.add_argument("--item", type=int, default=0, help="sequence of the split (default %(default)s)")
    parser.add_argument("--file", type=Path, help="a PNG, or text, instead of a sequence of the split")
    parser.add_argument("--query", help="position, or ROW,COLUMN or ROW,COLUMN,CHANNEL of a picture's byte")
    parser.add_argument("--blocks", help=f"numbers from 0, such as 0,11,29 (default: up to {MOST_BLOCKS}, evenly)")
    parser.add_argument("--heads", help=f"numbers from 0 (default: up to {MOST_HEADS}, evenly)")
    parser.add_argument("--data-dir", help="folder of the data sets (default: the run's own paths.data_dir)")
    wanted = parser.parse_args()
    return exit_code(lambda: print(draw(wanted)))


def draw(wanted: argparse.Namespace) -> Path:
    """Draw what the command line asks for, and give the file.

    Raises:
        UserError: no such run, checkpoint, sequence, byte, block or head, or a place that cannot be written.
    """
    from src.runs.run import Run

    run = Run.find(wanted.run)
    config = run.config()
    if wanted.data_dir is not None:
        config.paths.data_dir = wanted.data_dir
    blocks = chosen("--blocks", wanted.blocks, config.model.depth, MOST_BLOCKS)
    heads = chosen("--heads", wanted.heads, config.model.heads, MOST_HEADS)
    checkpoint = run.checkpoint(wanted.checkpoint)

    from src.attention.draw_learned import draw_learned  # late, all of them: torch takes seconds to import
    from src.jobs.build import picture_row
    from src.jobs.sampling import restored
    from src.models.attention_maps import learned_attention

    (x, documents), row = sequence(wanted, config), picture_row(config)
    query = query_byte(wanted.query, row, len(x))
    path = wanted.out or run.path / "attention" / f"{wanted.checkpoint}-{_name(wanted)}-byte{query}.png"
    learned = learned_attention(restored(config, checkpoint), x, query, blocks, heads, documents)
    return save(path, draw_learned(learned, x.numpy(), row))


def sequence(wanted: argparse.Namespace, config: Config) -> tuple[Tensor, Tensor | None]:
    """Read the sequence whose bytes are predicted, (n,) uint8, n at most the context, and its documents if any."""
    import numpy as np
    import torch

    from src.data.picture_grid import read_picture
    from src.jobs.build import picture_row
    from src.jobs.shared import prepared_data

    row, context = picture_row(config), config.data.context
    if wanted.file is not None and row is not None:
        return read_picture(wanted.file, row, context), None
    if wanted.file is not None:
        try:
            raw = wanted.file.read_bytes()[:context]
        except OSError as error:
            raise UserError(f"--file {wanted.file} cannot be read: {error.strerror}") from error
        if not raw:
            raise UserError(f"--file {wanted.file} must hold text, found an empty file")
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8), None
    data = prepared_data(config)
    items = data.splits.test if wanted.split == "test" else data.splits.val
    if not 0 <= wanted.item < len(items):
        raise UserError(f"--item must be from 0 to {len(items) - 1} for the {wanted.split} split, found {wanted.item}")
    found = items.batch(np.array([wanted.item]))
    n = int(found.length[0])
    return found.x[0, :n], None if found.documents is None else found.documents[0, :n]


def query_byte(text: str | None, row: int | None, n: int) -> int:
    """Read ``--query``: a position below ``n``, or row, column and channel of a picture of ``row`` pixels a row."""
    from src.data.picture_grid import shown_byte

    if text is None:
        return n - 1 if row is None else shown_byte(row, n)
    numbers = whole_numbers("--query", text)
    if len(numbers) == 1 and numbers[0] < n:
        return numbers[0]
    if row is None or len(numbers) == 1:
        raise UserError(f"--query must be one position below {n}, found {text}")
    line, column, channel = (*numbers, 0)[:3]
    height = n // (3 * row)
    if len(numbers) > 3 or line >= height or column >= row or channel > 2:
        raise UserError(f"--query must be ROW,COLUMN,CHANNEL below {height},{row},3, found {text}")
    return (line * row + column) * 3 + channel


def chosen(option: str, text: str | None, count: int, most: int) -> list[int]:
    """Read numbers of blocks or heads below ``count``, or choose at most ``most`` of them evenly."""
    from src.attention.learned import spread

    if text is None:
        return spread(count, most)
    numbers = whole_numbers(option, text)
    if max(numbers) >= count:
        raise UserError(f"{option} must be numbers from 0 to {count - 1} in this run, found {text}")
    return numbers


def whole_numbers(option: str, text: str) -> list[int]:
    """Read ``3`` or ``0,3,7``."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"{option} must be whole numbers with commas between them, found {text!r}")
    return [int(part) for part in parts]


def save(path: Path, figure: object) -> Path:
    """Write the figure as a PNG that appears whole or not at all."""
    from src.system.atomic_files import written_whole

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            figure.savefig(file, format="png")  # type: ignore[attr-defined]
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _name(wanted: argparse.Namespace) -> str:
    return wanted.file.stem if wanted.file is not None else f"{wanted.split}{wanted.item}"


if __name__ == "__main__":
    sys.exit(main())
