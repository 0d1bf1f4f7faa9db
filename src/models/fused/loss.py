# mypy: disable-error-code="no-untyped-def"
"""Cross-entropy over 256 byte values: logits are read once and written once as their gradient."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
CLASSES = tl.constexpr(256)


@triton.jit(do_not_specialize=["rows"])
def nats_forward(logits, target, nats, lse, rows, ROWS: tl.constexpr):
    """nats = lse - logit of the target, a row at a time."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    at = row.to(tl.int64)[:, None] * CLASSES + tl.arange(0, CLASSES)[None, :]
    x = tl.load(logits + at, mask=inside[:, None], other=0.0).to(tl.float32)
    wanted = tl.load(target + row, mask=inside, other=0).to(tl.int32)
    most = tl.max(x, 1)
    total = most + tl.log(tl.sum(tl.exp(x - most[:, None]), 1))
    chosen = tl.sum(tl.where(tl.arange(0, CLASSES)[None, :] == wanted[:, None], x, 0.0), 1)
    tl.store(nats + row, total - chosen, mask=inside)
    tl.store(lse + row, total, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def nats_backward(logits, target, lse, d_nats, d_logits, rows, d_stride, ROWS: tl.constexpr):
    """d_logits = (softmax - one-hot) * d_nats."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    at = row.to(tl.int64)[:, None] * CLASSES + tl.arange(0, CLASSES)[None, :]
    x = tl.load(logits + at, mask=inside[:, None], other=0.0).to(tl.float32)
    wanted = tl.load(target + row, mask=inside, other=0).to(tl.int32)
    total = tl.load(lse + row, mask=inside, other=0.0)
    scale = tl.load(d_nats + row * d_stride, mask=inside, other=0.0)
    p = tl.exp(x - total[:, None])
    p = tl.where(tl.arange(0, CLASSES)[None, :] == wanted[:, None], p - 1.0, p) * scale[:, None]
    tl.store(d_logits + at, p.to(d_logits.dtype.element_ty), mask=inside[:, None])


class _Nats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        rows = logits.shape[0]
        nats = torch.empty(rows, dtype=torch.float32, device=logits.device)
        lse = torch.empty_like(nats)
        nats_forward[(triton.cdiv(rows, ROWS),)](logits, target, nats, lse, rows, ROWS=ROWS, num_warps=4)
        ctx.save_for_backward(logits, target, lse)
        return nats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_nats: Tensor) -> tuple[Tensor, None]:
        logits, target, lse = ctx.saved_tensors
        d_logits = torch.empty_like(logits)
        grid = (triton.cdiv(logits.shape[0], ROWS),)
        nats_backward[grid](
            logits, target, lse, d_nats, d_logits, logits.shape[0], d_nats.stride(0), ROWS=ROWS, num_warps=4
        )
        return d_logits, None


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-ln p of each target byte.

    Args:
        logits: (R, 256) contiguous, any floating dtype; sums are float32.
        target: (R,) bytes of any integer dtype.

    Returns:
        (R,) float32 nats.
    """
    return _Nats.apply(logits.contiguous(), target.contiguous())
