# mypy: disable-error-code="no-untyped-def"
"""The rest of a decoding step as Triton kernels: embedding, and a matrix product with all that stands around it.

A step of one byte is bound by launches and by reading the weights, so LayerNorm, the bias, the activation and the
residual addition happen inside the products: six launches a residual block, two of them attention's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from src.attention.triton.steps import FP32_PRODUCTS

ROWS = 16  # sequences a program: the least that tensor cores take


@triton.jit
def embed_step(tokens, token_table, position_table, coordinates, position, out, width, length,
               KINDS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Embed the symbol at ``position`` of one sequence: its row of the token table and its place."""
    batch = tl.program_id(0).to(tl.int64)
    t = tl.load(position)
    cols = tl.arange(0, BLOCK)
    inside = cols < width
    hidden = tl.load(token_table + tl.load(tokens + batch * (length + 1) + t) * width + cols, mask=inside, other=0.0)
    for kind in tl.static_range(KINDS):
        row = tl.load(coordinates + kind * length + t)
        hidden += tl.load(position_table + row * width + cols, mask=inside, other=0.0)
    tl.store(out + batch * width + cols, hidden, mask=inside)


@triton.jit
def step_linear(x, norm_weight, norm_bias, weight, bias, out, batch, width_out, eps, WIDTH: tl.constexpr,
                NORM: tl.constexpr, ACT: tl.constexpr, ADD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                BK: tl.constexpr):  # fmt: skip
    """out = f(g(x) W^T + bias): g is LayerNorm (NORM) or nothing; f is x * sigmoid(1.702 x) (ACT), an addition to
    ``out`` (ADD) or nothing. Each output is written by one program."""
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    outs = tl.program_id(0) * BN + tl.arange(0, BN)
    row_in, out_in = rows < batch, outs < width_out
    dtype: tl.constexpr = weight.dtype.element_ty
    cols = tl.arange(0, BK)
    mean = tl.zeros((BM,), tl.float32)
    spread = tl.zeros((BM,), tl.float32)
    if NORM:
        for k in tl.static_range(0, WIDTH, BK):
            part = tl.load(x + rows[:, None] * WIDTH + (k + cols)[None, :],
                           mask=row_in[:, None] & (k + cols < WIDTH)[None, :], other=0.0)  # fmt: skip
            mean += tl.sum(part, 1) / WIDTH
        for k in tl.static_range(0, WIDTH, BK):
            part = tl.load(x + rows[:, None] * WIDTH + (k + cols)[None, :],
                           mask=row_in[:, None] & (k + cols < WIDTH)[None, :], other=0.0)  # fmt: skip
            part = tl.where((k + cols < WIDTH)[None, :], part - mean[:, None], 0.0)
            spread += tl.sum(part * part, 1) / WIDTH
    rstd = 1.0 / tl.sqrt(spread + eps)
    acc = tl.zeros((BM, BN), tl.float32)
    for k in tl.range(0, WIDTH, BK, num_stages=2):
        inside = k + cols < WIDTH
        w = tl.load(weight + outs[None, :] * WIDTH + (k + cols)[:, None],
                    mask=out_in[None, :] & inside[:, None], other=0.0)  # fmt: skip
        part = tl.load(x + rows[:, None] * WIDTH + (k + cols)[None, :],
                       mask=row_in[:, None] & inside[None, :], other=0.0)  # fmt: skip
        if NORM:
            gain = tl.load(norm_weight + k + cols, mask=inside, other=0.0)
            shift = tl.load(norm_bias + k + cols, mask=inside, other=0.0)
            part = (part - mean[:, None]) * rstd[:, None] * gain[None, :] + shift[None, :]
        a = part.to(dtype)
        acc = tl.dot(a, w, acc, input_precision=FP32_PRODUCTS)
    if bias is not None:
        acc += tl.load(bias + outs, mask=out_in, other=0.0).to(tl.float32)[None, :]
    if ACT:
        acc = acc / (1.0 + tl.exp(-1.702 * acc))
    to = out + rows[:, None] * width_out + outs[None, :]
    keep = row_in[:, None] & out_in[None, :]
    if ADD:
        acc += tl.load(to, mask=keep, other=0.0)
    tl.store(to, acc.to(out.dtype.element_ty), mask=keep)


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, *,
    norm: tuple[torch.Tensor, torch.Tensor, float] | None = None, act: bool = False, add: bool = False,
) -> None:  # fmt: skip
    """Launch ``step_linear``.

    Args:
        x: (B, K).
        weight: (N, K), contiguous, in the activation type.
        bias: (N,) or None.
        out: (B, N), overwritten, or added to with ``add``.
        norm: weight, bias and eps of a LayerNorm of x.
        act: x * sigmoid(1.702 x) of the result.
        add: add the result to ``out`` instead.
    """
    batch, (width_out, width) = len(x), weight.shape
    deepest = 512 if weight.element_size() == 2 else 128  # a deeper tile of fp32 numbers spills
    block_k = min(deepest, triton.next_power_of_2(max(16, width)))
    grid_rows = triton.cdiv(batch, ROWS)
    block_n = 16 if triton.cdiv(width_out, 32) * grid_rows < 128 else 32
    weight_, shift, eps = norm if norm is not None else (None, None, 0.0)
    arguments: tuple[Any, ...] = (x, weight_, shift, weight, bias, out, batch, width_out, eps)
    step_linear[(triton.cdiv(width_out, block_n), grid_rows)](
        *arguments, WIDTH=width, NORM=norm is not None, ACT=act, ADD=add, BM=ROWS, BN=block_n, BK=block_k, num_warps=4
    )  # fmt: skip
