"""Pictures made of bytes, side by side in one PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from src.data.png import BadPictureError, decode_png
from src.errors import UserError
from src.system.atomic_files import written_whole

Picture = npt.NDArray[np.uint8]
BACKGROUND, UNKNOWN = 255, 128
LEAST_SIDE = 128  # small pictures are enlarged to about so many pixels, each pixel to a whole square


def as_picture(x: Tensor, row: int, context: int) -> Picture:
    """Turn the bytes of one picture into an array.

    Args:
        x: (n,) bytes in the order row, column, channel; bytes that are missing at the end are grey.
        row: pixels of a row.
        context: bytes of a whole picture.

    Returns:
        uint8 array of shape (height, row, 3).
    """
    whole = np.full(context, UNKNOWN, dtype=np.uint8)
    whole[: len(x)] = x.cpu().numpy()
    return whole.reshape(-1, row, 3)


def read_picture(path: Path, row: int, context: int) -> Tensor:
    """Read a PNG as the bytes of one picture: (context,) uint8, in the order row, column, channel.

    Args:
        path: an 8-bit RGB PNG of the model's size.
        row: pixels of a row.
        context: bytes of a whole picture.

    Raises:
        UserError: it cannot be read or is something else.
    """
    wanted = f"must be an 8-bit RGB PNG of {row} x {context // (3 * row)} pixels"
    try:
        return torch.from_numpy(decode_png(path.read_bytes(), row, context // (3 * row)).copy())
    except BadPictureError as error:
        raise UserError(f"{path} {wanted}, and it {error}") from error
    except OSError as error:
        raise UserError(f"{path} {wanted}, and cannot be read: {error.strerror}") from error


def save_grid(path: Path, rows: Sequence[Sequence[Picture]], gap: int = 4) -> None:
    """Write pictures of one size as a PNG, row by row; the file appears whole or not at all.

    Args:
        path: the file; its folder must exist.
        rows: the pictures of each row, uint8 (height, width, 3); short rows end in white.
        gap: white pixels between two pictures.
    """
    from PIL import Image

    height, width, _ = rows[0][0].shape
    scale = max(1, LEAST_SIDE // width)
    columns = max(len(row) for row in rows)
    tall, wide = height * scale + gap, width * scale + gap
    grid = np.full((len(rows) * tall + gap, columns * wide + gap, 3), BACKGROUND, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = gap + i * tall, gap + j * wide
            large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            grid[top : top + height * scale, left : left + width * scale] = large
    with written_whole(path) as file:
        Image.fromarray(grid).save(file, format="PNG")


def square(pictures: Sequence[Picture]) -> list[Sequence[Picture]]:
    """Arrange pictures in rows, about as many rows as columns."""
    columns = math.ceil(math.sqrt(len(pictures)))
    return [pictures[i : i + columns] for i in range(0, len(pictures), columns)]


def completions_grid(originals: Tensor, drawn: Tensor, given: int, row: int, context: int) -> list[list[Picture]]:
    """Arrange completions: each row the original, what was given of it, and its completions.

    Args:
        originals: (P, context) bytes.
        drawn: (P * C, n) bytes, the C completions of each original side by side in the batch.
        given: bytes of each original that the model was given.
        row: pixels of a row.
        context: bytes of a picture.
    """
    each = len(drawn) // len(originals)
    return [
        [as_picture(original, row, context), as_picture(original[:given], row, context)]
        + [as_picture(x, row, context) for x in drawn[i * each : (i + 1) * each]]
        for i, original in enumerate(originals)
    ]


def given_bytes(share: float, row: int, context: int) -> int:
    """Bytes of the whole rows that make up a share of a picture, rounded down; at least one row if any."""
    line = 3 * row
    rows = context // line
    return min(max(math.floor(rows * share), 1 if share > 0 else 0), rows - 1) * line


def shown_byte(row: int, context: int) -> int:
    """Choose the byte whose attention is drawn: well down the picture and right of its middle, a red one."""
    line = 3 * row
    return context // line * 7 // 10 * line + row * 6 // 10 * 3
