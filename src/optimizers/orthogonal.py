"""Matrices with all singular values near 1, by Newton-Schulz iterations of many matrices at once.

Source: Keller Jordan 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x^3 and x^5: the steepest start at 0 for which five steps end between about 0.7 and 1.2."""
EPS = 1e-7
"""Added to the norm of a matrix, so that one of zeros stays one."""


def orthogonalize(x: Tensor, steps: int = 5) -> Tensor:
    """Give U V^T of every matrix U S V^T, roughly: singular values between about 0.7 and 1.2 instead of 1.

    A step is three batched products. The term a x is in the last one, through the diagonal of its left factor, which
    costs bf16 one more rounding there (1 to 4% of the result, with 1 to 2% otherwise); to add a x behind the product
    PyTorch would copy x, a fifth of all time.

    Args:
        x: (n, m, k) with m <= k, bf16 or float32; not changed.
        steps: of the iteration.

    Returns:
        (n, m, k), contiguous, in the dtype of ``x``, in which all products are.
    """
    a, b, c = COEFFICIENTS
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x = x / (norm + EPS).to(x.dtype)
    for _ in range(steps):
        square = torch.bmm(x, x.mT)
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        x = torch.bmm(factor, x)
    return x


def muon_flops(shapes: Iterable[tuple[int, int]], steps: int = 5) -> int:
    """Count the operations of the products of one optimizer step; a multiplication and an addition are two.

    Args:
        shapes: rows and columns of every matrix that is orthogonalised by itself.
        steps: of the iteration.
    """
    sides = ((min(shape), max(shape)) for shape in shapes)
    return sum(steps * (4 * m * m * k + 2 * m**3) for m, k in sides)
