# mypy: disable-error-code="no-untyped-def"
"""What Muon does to single numbers, for all matrices of one group and shape in one launch.

A launch reads where its matrices are from a table of addresses. The stack holds (m, k) with m <= k, so a matrix with
more rows than columns lies transposed in it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from src.optimizers.matrices import Matrix

TILE, WARPS = 64, 4
ENTRIES = 6  # of a matrix in the table: addresses of weight, gradient and momentum; slot, first row, count of rows


@triton.jit
def _pointer(entry, ALIGNED: tl.constexpr):
    pointer = tl.load(entry).to(tl.pointer_type(tl.float32))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def _tile(table, found_inf, rows, cols, per, TALL: tl.constexpr, ALIGNED: tl.constexpr, T: tl.constexpr):
    """The program's matrix in the table, places in its rows and in the stack (T, T), and which of them to touch."""
    program = tl.program_id(0)
    entry = table + (program // per).to(tl.int64) * 6
    slot, first, count = tl.load(entry + 3), tl.load(entry + 4), tl.load(entry + 5)
    if found_inf is not None:
        count = tl.where(tl.load(found_inf) == 0, count, 0)
    if ALIGNED:
        first = tl.multiple_of(first, 16)
    across = tl.cdiv(cols, T)
    row = (program % per // across * T + tl.arange(0, T)).to(tl.int64)[:, None]
    col = (program % per % across * T + tl.arange(0, T))[None, :]
    inside = (row < count) & (col < cols)
    place = slot * rows * cols
    place += first + row + col.to(tl.int64) * rows if TALL else (first + row) * cols + col
    return entry, row * cols + col, place, inside


@triton.jit(do_not_specialize=["per", "momentum"])
def write_kernel(table, stack, found_inf, grad_scale, rows, cols, per, momentum, NESTEROV: tl.constexpr,
                 TALL: tl.constexpr, ALIGNED: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """Move the momentum towards the gradient, and write what is to be orthogonalised into the stack."""
    entry, at, place, inside = _tile(table, found_inf, rows, cols, per, TALL, ALIGNED, T)
    grad = tl.load(_pointer(entry + 1, ALIGNED) + at, mask=inside, other=0.0)
    if grad_scale is not None:
        grad = grad / tl.load(grad_scale)
    buffer = _pointer(entry + 2, ALIGNED) + at
    moved = tl.load(buffer, mask=inside, other=0.0)
    moved = moved + (1.0 - momentum) * (grad - moved)
    tl.store(buffer, moved, mask=inside)
    if NESTEROV:
        moved = grad + momentum * (moved - grad)
    tl.store(stack + place, moved.to(stack.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["per", "keep", "pace"])
def apply_kernel(table, stack, found_inf, rows, cols, per, keep, pace,
                 TALL: tl.constexpr, ALIGNED: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """weight = keep * weight - pace * stack."""
    entry, at, place, inside = _tile(table, found_inf, rows, cols, per, TALL, ALIGNED, T)
    weight = _pointer(entry, ALIGNED) + at
    update = tl.load(stack + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(weight, keep * tl.load(weight, mask=inside, other=0.0) - pace * update, mask=inside)


class Launch(NamedTuple):
    """Matrices of one group and shape: one of them, their table, whether all begin at addresses that allow wide loads,
    programs of each and of all."""

    example: Matrix
    table: Tensor
    aligned: bool
    per: int
    programs: int


def launches(matrices: Sequence[Matrix]) -> Iterator[Launch]:
    """Put matrices of a stack together, slot by slot: contiguous float32 tensors."""
    alike: dict[tuple[int, bool], list[tuple[int, Matrix]]] = {}
    for slot, matrix in enumerate(matrices):
        if matrix.count:
            alike.setdefault((id(matrix.group), matrix.tall), []).append((slot, matrix))
    for some in alike.values():
        example = some[0][1]
        entries = tuple(_entry(slot, matrix) for slot, matrix in some)
        most = max(matrix.count for _, matrix in some)
        per = triton.cdiv(most, TILE) * triton.cdiv(example.cols, TILE)
        yield Launch(example, *_table(entries, example.weight.device), per, per * len(some))


def write(launches: Sequence[Launch], stack: Tensor, found_inf: Tensor | None, grad_scale: Tensor | None) -> None:
    """``src.optimizers.matrices.write``."""
    for launch in launches:
        group = launch.example.group
        write_kernel[(launch.programs,)](
            launch.table, stack, found_inf, grad_scale, launch.example.rows, launch.example.cols, launch.per,
            group["momentum"], NESTEROV=group["nesterov"], TALL=launch.example.tall, ALIGNED=launch.aligned,
            T=TILE, num_warps=WARPS,
        )  # fmt: skip


def apply(launches: Sequence[Launch], stack: Tensor, found_inf: Tensor | None) -> None:
    """``src.optimizers.matrices.apply``."""
    for launch in launches:
        apply_kernel[(launch.programs,)](
            launch.table, stack, found_inf, launch.example.rows, launch.example.cols, launch.per,
            *launch.example.pace(), TALL=launch.example.tall, ALIGNED=launch.aligned, T=TILE, num_warps=WARPS,
        )  # fmt: skip


def _entry(slot: int, matrix: Matrix) -> tuple[int, ...]:
    weight, grad, momentum = matrix.weight, matrix.grad, matrix.momentum
    skipped = 4 * matrix.start * matrix.cols
    addresses = (weight.data_ptr() + skipped, grad.data_ptr() + skipped, momentum.data_ptr() + skipped)
    return (*addresses, slot, matrix.first, matrix.count)


@functools.lru_cache(maxsize=64)  # training comes back to the same addresses, most of the time
def _table(entries: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[Tensor, bool]:
    numbers = torch.tensor(entries, dtype=torch.int64, pin_memory=device.type == "cuda")
    aligned = all(number % 16 == 0 for *starts, _, first, _ in entries for number in (*starts, first))
    return numbers.to(device, non_blocking=True), aligned
