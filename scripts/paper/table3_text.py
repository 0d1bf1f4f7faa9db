"""Table 3 in words: rows with paired differences, how they are made comparable, and what the last block is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.paper.table3_plan import LAST_BLOCKS, Plan, Row
from src.attention.patterns import HeadPattern
from src.config.checks import attention_pattern
from src.config.schema import Config

CONTEXT = 12_288
PAPER = {6144: 0.9952, 9216: 0.9936, 10752: 0.9932, 11904: 0.9930, 12096: 0.9922, 12160: 0.9908}
"""Least context: bits per byte of the paper's model on the test split of enwik8 (table 3)."""
SURE = 2.0  # standard errors
Figures = dict[str, Any]


def figures(nats: npt.NDArray[np.float32], wanted: Plan) -> list[Figures]:
    """Give the bits per byte of every row, and of every stretch of it.

    Args:
        nats: of each row of the plan and each byte, (rows, bytes).
        wanted: what was scored.

    Raises:
        RuntimeError: a byte without a finite number.
    """
    if missing := int((~np.isfinite(nats)).sum()):
        raise RuntimeError(f"{missing:,} of {nats.size:,} scores are missing or not finite: please report")
    bits = nats.astype(np.float64).reshape(len(wanted.rows), wanted.stretches, -1).mean(2) / math.log(2)
    return [
        {"least": row.least, "positions": row.width, "bits_per_byte": float(of.mean()), "stretches": of.tolist()}
        for row, of in zip(wanted.rows, bits, strict=True)
    ]


def gain(before: Figures, after: Figures) -> tuple[float, float | None]:
    """Give how far ``after`` is below ``before``, and its standard error, by paired stretches; None of one alone."""
    differences = np.subtract(before["stretches"], after["stretches"])
    if len(differences) < 2:
        return float(differences.mean()), None
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(differences)))


def report(found: Sequence[Figures], least: Sequence[int], config: Config, wanted: Plan, head: str) -> str:
    """Lay table 3 out as Markdown.

    Args:
        found: figures of all rows of the plan.
        least: least contexts of the table's rows, ascending.
        config: of the run.
        wanted: what was scored.
        head: what stands above: data, run, machine.
    """
    by_row = {Row(one["least"], one["positions"]): one for one in found}
    rows = [by_row[row] for row in wanted.rows[: len(least)]]
    blocks = wanted.context // wanted.stride
    single = [Row(at * wanted.stride, wanted.stride) for at in range(blocks)]
    last = [by_row[row] for row in single if row in by_row][-LAST_BLOCKS:]
    lines = [head, "", *_table(rows, wanted.context), "", verdict(rows), "", *_fair(wanted), "", *_last(last, config)]
    return "\n".join(lines) + "\n"


def scaled(context: int, stride: int) -> list[int]:
    """The rows of the table, those of 12,288 in proportion, each once; the last is ``context - stride``."""
    rows = {row * context // CONTEXT for row in (0, 1024, 3072, *PAPER)}
    return sorted({row for row in rows if row <= context - stride} | {context - stride})


def verdict(rows: Sequence[Figures]) -> str:
    """Say whether more context helps all the way."""
    steps = [gain(before, after) for before, after in itertools.pairwise(rows)]
    if not steps or any(error is None for _, error in steps):
        return "One stretch, or one row: nothing is said about differences."
    falls = sum(by > 0 for by, _ in steps)
    sure = sum(by > SURE * (error or 0) for by, error in steps)
    losses = sum(by < -SURE * (error or 0) for by, error in steps)
    whole, error = gain(rows[0], rows[-1])
    helps = "helps" if falls == len(steps) else "does not help"
    return (
        f"**More context {helps} all the way**: {falls} of {len(steps)} steps are gains, {sure} of them by more than "
        f"{SURE:.0f} standard errors; {losses} are losses by more than that. From the first row to the last bits per "
        f"byte fall by {whole:.4f} ± {error:.4f}."
    )


def _table(rows: Sequence[Figures], context: int) -> list[str]:
    paper = {least * context // CONTEXT: (least, bits) for least, bits in PAPER.items()}
    lines = [
        "| least context | positions scored | bits per byte | below the row above | paper: least context of 12,288 | "
        "paper: bits per byte (enwik8, test) |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for index, row in enumerate(rows):
        of, bits = paper.get(row["least"], (None, None))
        beside = f"{of:,} | {bits:.4f}" if of is not None else "|"
        lines.append(f"| {row['least']:,} | {_positions(row)} | {_bits(rows, index)} | {beside} |")
    return lines


def _positions(row: Figures) -> str:
    return f"{row['least']:,} to {row['least'] + row['positions'] - 1:,}"


def _bits(rows: Sequence[Figures], index: int) -> str:
    own = f"{rows[index]['bits_per_byte']:.4f}"
    return f"{own} | {_signed(*gain(rows[index - 1], rows[index]))}" if index else f"{own} |"


def _signed(by: float, error: float | None) -> str:
    return f"{by:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _fair(wanted: Plan) -> list[str]:
    length, stride = len(wanted.places) // wanted.stretches, wanted.stride
    lines = [
        f"- Every row scores the same {len(wanted.places):,} bytes: {wanted.stretches:,} stretches of {length:,}, "
        "spread evenly over the split.",
        f"- Every window is {wanted.context:,} bytes long and begins with a block of {stride:,} bytes, counted from "
        "the beginning of the split. So a byte has the same place within its block in every row, and every place "
        "counts equally often. Rows differ in nothing but how much stands before that block.",
        "- ±: standard error of the mean difference of the same bytes, by stretches.",
    ]
    if broken := [row.least for row in wanted.rows if row.least % stride]:
        lines.append(
            f"- Rows that begin in the middle of a block ({', '.join(f'{least:,}' for least in broken)}) end in the "
            "middle of one: of both together they score every place once."
        )
    return lines


def _last(last: Sequence[Figures], config: Config) -> list[str]:
    lines = [
        "The same bytes again, all of them from one block of the window:", "",
        "| block | positions scored | bits per byte | below the row above |", "| ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    stride, context = config.attention.stride, config.data.context
    for index, row in enumerate(last):
        lines.append(
            f"| {row['least'] // stride + 1:,} of {context // stride:,} | {_positions(row)} | {_bits(last, index)} |"
        )
    return [*lines, "", *about_the_last_block(config)]


def about_the_last_block(config: Config) -> list[str]:
    """Say what queries in the last block of a window see, and what sets it apart."""
    stride, context, model = config.attention.stride, config.data.context, config.model
    blocks, start = context // stride, (context // stride - 1) * stride
    pattern = attention_pattern(config.attention)
    first, end = (keys_seen(pattern, model.heads, at) for at in (start, start + stride - 1))
    before = keys_seen(pattern, model.heads, start - 1) if start else 0
    sees = (
        f"- A query in the last block sees {first:,.0f} keys a head at the block's first byte and {end:,.0f} at its "
        f"last; the last query of the block before sees {before:,.0f}."
    )
    if pattern.name == "fixed" and config.attention.mode == "merged":
        sees += (
            f" They are {config.attention.summary:,} summary cells of each of the {blocks - 1:,} blocks before, and "
            "the own block up to the query: the cells of one block more than a query of the block before sees, and "
            "nothing of another kind."
        )
    own = ["no later query reads its keys, so in training they serve its own bytes alone"]
    if model.rotary is not None and pattern.name in ("dense", "fixed", "strided"):
        own.append(f"a distance of {blocks - 1:,} blocks occurs in it alone, so it is the rarest in training")
    if model.position_embeddings == "always" and model.row == stride:
        own.append(
            f"its row of the learned position embedding learns from the losses of its {stride:,} positions alone"
        )
    return [
        sees,
        f"- The row of least context {start:,} is the last block alone, where the others are means over several. "
        f"What sets it apart: {'; '.join(own)}. Whatever the model does worse there shows in full in that row. Small "
        "models are worse at the window's end with dense attention as well (docs/evaluation.md).",
    ]


def keys_seen(pattern: HeadPattern, heads: int, query: int) -> float:
    """Count the keys that a query sees: the mean over heads and residual blocks."""
    import torch  # late: it takes seconds, and the command line can be wrong

    i, keys = torch.tensor([query]), torch.arange(query + 1)
    layers = [pattern.layer(heads, block) for block in range(pattern.turns)]
    seen = {one: int(torch.as_tensor(one.sees(i, keys)).sum()) for one in itertools.chain(*layers)}
    return sum(seen[one] for one in itertools.chain(*layers)) / sum(map(len, layers))
