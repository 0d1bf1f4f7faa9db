"""The matrices that Muon moves: rows of parameters, their places in a stack, and what happens to single numbers.

``write`` and ``apply`` are plain PyTorch; ``src.optimizers.muon_kernels`` has the same as kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from src.system.torch_internals import first_row


@dataclass(eq=False, slots=True)  # not frozen: there are hundreds in every step
class Matrix:
    """A matrix to be orthogonalised: a parameter or rows of one, and the share of these rows that is here.

    Args:
        group: of the parameter.
        rows: of the whole matrix.
        cols: likewise.
        weight: what is here of the parameter, (rows here, cols); ``grad`` and ``momentum`` alike.
        start: row of ``weight`` at which the matrix begins here.
        count: rows of the matrix that are here, maybe 0.
        first: the first of them, counted in the matrix.
        mesh: over which the parameter is in shares; None: all of it is here.
    """

    group: dict[str, Any]
    rows: int
    cols: int
    weight: Tensor
    grad: Tensor
    momentum: Tensor
    start: int
    count: int
    first: int
    mesh: DeviceMesh | None

    @property
    def tall(self) -> bool:
        """Whether it lies transposed in a stack."""
        return self.rows > self.cols

    @property
    def kind(self) -> tuple[int, int, torch.device, torch.dtype, DeviceMesh | None, int]:
        """What matrices of one stack have in common: sides (m, k) with m <= k, device, dtype, mesh, steps of the
        iteration."""
        m, k = (self.cols, self.rows) if self.rows > self.cols else (self.rows, self.cols)
        return m, k, self.weight.device, self.weight.dtype, self.mesh, self.group["ns_steps"]

    def pace(self) -> tuple[float, float]:
        """Give the factors of the old weight and of the update, which is subtracted."""
        lr = float(self.group["lr"])
        return 1 - lr * self.group["weight_decay"], lr * math.sqrt(max(1, self.rows / self.cols))

    def here(self, tensor: Tensor) -> Tensor:
        """Give its rows (count, cols) of ``weight``, ``grad`` or ``momentum``."""
        return tensor[self.start : self.start + self.count]

    def place(self, slot: Tensor) -> Tensor:
        """Give the place of the rows here, (count, cols), in the matrix's slot (m, k) of a stack."""
        whole = slot.mT if self.tall else slot
        return whole[self.first : self.first + self.count]


def split(parameter: Tensor, momentum: Tensor, group: dict[str, Any]) -> Iterator[Matrix]:
    """Give the matrices of a parameter of a group that has a gradient.

    Raises:
        ValueError: a DTensor that is not in shares of rows over one mesh dimension.
    """
    assert parameter.grad is not None
    weight, grad, begin, mesh = parameter, parameter.grad, 0, None
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        begin = _first_row(parameter)
        weight, grad, momentum = (t.to_local() for t in (parameter, grad, momentum))  # type: ignore[attr-defined]
    weight, grad = weight.detach(), grad.contiguous()
    top, end, (height, cols) = 0, begin + weight.shape[0], parameter.shape
    for rows in group["rows"] or (height,):
        low, high = max(top, begin), min(top + rows, end)
        count = max(0, high - low)
        share = (low - begin, count, low - top, mesh)
        yield Matrix(group, rows, cols, weight, grad, momentum, *share)
        top += rows


def batches(matrices: Iterable[Matrix], limit: int) -> Iterator[list[Matrix]]:
    """Put matrices of a kind together, up to ``limit`` numbers or one matrix."""
    alike: dict[Any, list[Matrix]] = {}
    for matrix in matrices:
        alike.setdefault(matrix.kind, []).append(matrix)
    for some in alike.values():
        most = max(1, limit // (some[0].rows * some[0].cols))
        yield from (some[i : i + most] for i in range(0, len(some), most))


def write(matrices: Sequence[Matrix], stack: Tensor, found_inf: Tensor | None, grad_scale: Tensor | None) -> None:
    """Move the momentum of matrices, and write what is to be orthogonalised into the first slots of a stack.

    Args:
        matrices: of one kind.
        stack: (slots, m, k), bf16 or float32; rows that are not here stay as they are.
        found_inf: where it is not 0 nothing changes but maybe the stack; a scalar.
        grad_scale: by which gradients are divided first; a scalar.
    """
    for matrix, slot in zip(matrices, stack, strict=False):
        grad, old, share = matrix.here(matrix.grad), matrix.here(matrix.momentum), matrix.group["momentum"]
        if grad_scale is not None:
            grad = grad / grad_scale
        new = old.lerp(grad, 1 - share)
        old.copy_(new if found_inf is None else torch.where(found_inf == 0, new, old))
        matrix.place(slot).copy_(grad.lerp(new, share) if matrix.group["nesterov"] else new)


def apply(matrices: Sequence[Matrix], stack: Tensor, found_inf: Tensor | None) -> None:
    """Move the weights of matrices by the orthogonalised slots of ``write``, unless ``found_inf`` is not 0."""
    for matrix, slot in zip(matrices, stack, strict=False):
        old, (keep, pace) = matrix.here(matrix.weight), matrix.pace()
        new = (old * keep).add_(matrix.place(slot), alpha=-pace)
        old.copy_(new if found_inf is None else torch.where(found_inf == 0, new, old))


def _first_row(parameter: DTensor) -> int:
    """Give the row of a whole parameter at which the share here begins."""
    if parameter.placements != (Shard(0),):
        raise ValueError(f"Muon takes DTensors in shares of rows over one mesh dimension, found {parameter.placements}")
    return first_row(parameter)
