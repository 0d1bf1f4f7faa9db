# mypy: disable-error-code="no-untyped-def"
"""The rest of a decoding step as Triton kernels: embedding, and a matrix product with all that stands around it.

A step of one byte is bound by latencies, so the norm, the bias, the activation and the residual addition happen inside
the products, and a program has all that it reads in flight at once. Weights do not depend on the kernel before: with
OVERLAP a kernel starts while that one still runs, loads them, and only then waits for it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from src.attention.triton.decode import overlapping
from src.attention.triton.steps import FP32_PRODUCTS
from src.decoding.decoder import Norm
from src.decoding.tiles import LEAST, Gpu, Tiling, tiling
from src.models.options import EPS, Activation


@triton.jit
def embed_step(tokens, token_table, position_table, coordinates, position, out, width, length,
               KINDS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Embed the symbol at ``position`` of one sequence: its row of the token table and its place."""
    if OVERLAP:
        gdc_launch_dependents()
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
def _activated(x, ACT: tl.constexpr):
    if ACT == "relu2":
        x = tl.maximum(x, 0.0)
        return x * x
    else:
        return x / (1.0 + tl.exp(-1.702 * x))


@triton.jit
def _norm_part(row, cols, WIDTH: tl.constexpr, NOTHING: tl.constexpr):
    """A norm's weight or bias at some columns; where there is none, a number that changes nothing."""
    if row is None:
        return tl.full(cols.shape, NOTHING, tl.float32)
    else:
        return tl.load(row + cols, mask=cols < WIDTH, other=0.0)


@triton.jit
def _gain_and_shift(norm_weight, norm_bias, cols, WIDTH: tl.constexpr):
    return _norm_part(norm_weight, cols, WIDTH, 1.0), _norm_part(norm_bias, cols, WIDTH, -0.0)  # x + -0.0 is x, always


@triton.jit
def step_vector(x, norm_weight, norm_bias, weight, bias, out, width_out, eps, WIDTH: tl.constexpr,
                NORM: tl.constexpr, RMS: tl.constexpr, ACT: tl.constexpr, ADD: tl.constexpr, BN: tl.constexpr,
                PADDED: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """``step_linear`` for one sequence a program, in fp32 multiplications and additions."""
    if OVERLAP:
        gdc_launch_dependents()
    outs, cols = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, PADDED)
    row = tl.program_id(1).to(tl.int64)
    inside, out_in = cols < WIDTH, outs < width_out
    w = tl.load(weight + outs.to(tl.int64)[:, None] * WIDTH + cols[None, :],
                mask=out_in[:, None] & inside[None, :], other=0.0)  # fmt: skip
    acc = tl.zeros((BN,), tl.float32)
    if bias is not None:
        acc += tl.load(bias + outs, mask=out_in, other=0.0).to(tl.float32)
    if NORM:
        gain, shift = _gain_and_shift(norm_weight, norm_bias, cols, WIDTH)
    if OVERLAP:
        gdc_wait()
    part = tl.load(x + row * WIDTH + cols, mask=inside, other=0.0).to(tl.float32)
    to = out + row * width_out + outs
    if ADD:
        before = tl.load(to, mask=out_in, other=0.0)
    if NORM:
        if not RMS:
            part = tl.where(inside, part - tl.sum(part, 0) / WIDTH, 0.0)
        part = part * (1.0 / tl.sqrt(tl.sum(part * part, 0) / WIDTH + eps)) * gain + shift
    acc += tl.sum(w.to(tl.float32) * part[None, :], 1)
    if ACT is not None:
        acc = _activated(acc, ACT)
    if ADD:
        acc += before
    tl.store(to, acc.to(out.dtype.element_ty), mask=out_in)


@triton.jit
def _weights(weight, outs, cols, width_out, WIDTH: tl.constexpr):
    """A tile of weights as the right operand: (shares, columns a share, outputs)."""
    rows = weight + outs.to(tl.int64)[None, None, :] * WIDTH
    mask = (outs < width_out)[None, None, :] & (cols < WIDTH)[:, :, None]
    return tl.load(rows + cols[:, :, None], mask=mask, other=0.0)


@triton.jit
def _held(w):
    """The same weights, which the compiler puts into shared memory here and no earlier: what is loaded before this is
    on its way while they are waited for."""
    PACK: tl.constexpr = 32 // w.dtype.primitive_bitwidth
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [w], dtype=w.dtype, is_pure=False, pack=PACK)


@triton.jit
def _columns(PARTS: tl.constexpr, WIDTH: tl.constexpr):
    return tl.arange(0, PARTS)[:, None] * (WIDTH // PARTS) + tl.arange(0, WIDTH // PARTS)[None, :]


@triton.jit
def _inputs(x, rows, cols, batch, WIDTH: tl.constexpr):
    """A tile of inputs: (rows, groups, columns a group); groups are so small that a thread holds all of a column's,
    and a row's sum crosses few threads."""
    mask = (rows < batch)[:, None, None] & (cols < WIDTH)[None, :, :]
    return tl.load(x + rows.to(tl.int64)[:, None, None] * WIDTH + cols[None, :, :], mask=mask, other=0.0)


@triton.jit
def _row_sums(tile):
    return tl.sum(tl.sum(tile, 1, keep_dims=True), 2, keep_dims=True)


@triton.jit
def _shared_out(tile, BM: tl.constexpr, SHARES: tl.constexpr, BK: tl.constexpr):
    """A tile of inputs as the left operand: (shares, rows, columns a share)."""
    return tl.permute(tl.reshape(tile, (BM, SHARES, BK // SHARES)), (1, 0, 2))


@triton.jit
def _normed(part, mean, rstd, gain, shift):
    return (part - mean) * rstd * gain[None, :, :] + shift[None, :, :]


@triton.jit
def _product_in_steps(x, norm_weight, norm_bias, weight, rows, outs, cols, share_cols, batch, width_out, eps,
                      WIDTH: tl.constexpr, NORM: tl.constexpr, RMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                      BK: tl.constexpr, SHARES: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """The product of each share, (shares, rows, outputs), where a row is too wide to be held at once."""
    if NORM:
        mean = tl.zeros((BM, 1, 1), tl.float32)
        if not RMS:
            for k in tl.range(0, WIDTH, BK):
                mean += _row_sums(_inputs(x, rows, k + cols, batch, WIDTH)) / WIDTH
        spread = tl.zeros((BM, 1, 1), tl.float32)
        for k in tl.range(0, WIDTH, BK):
            off = _inputs(x, rows, k + cols, batch, WIDTH)
            if not RMS:
                off = tl.where((k + cols < WIDTH)[None, :, :], off - mean, 0.0)
            spread += _row_sums(off * off) / WIDTH
        rstd = 1.0 / tl.sqrt(spread + eps)
    acc = tl.zeros((SHARES, BM, BN), tl.float32)
    for k in tl.range(0, WIDTH, BK, num_stages=STAGES):
        part = _inputs(x, rows, k + cols, batch, WIDTH)
        if NORM:
            gain, shift = _gain_and_shift(norm_weight, norm_bias, k + cols, WIDTH)
            part = _normed(part, mean, rstd, gain, shift)
        w = _weights(weight, outs, k + share_cols, width_out, WIDTH)
        part = _shared_out(part.to(weight.dtype.element_ty), BM, SHARES, BK)
        acc = tl.dot(part, w, acc, input_precision=FP32_PRODUCTS)
    return acc


@triton.jit
def step_linear(x, norm_weight, norm_bias, weight, bias, out, batch, width_out, eps, WIDTH: tl.constexpr,
                NORM: tl.constexpr, RMS: tl.constexpr, ACT: tl.constexpr, ADD: tl.constexpr, BM: tl.constexpr,
                BN: tl.constexpr, BK: tl.constexpr, SHARES: tl.constexpr, STAGES: tl.constexpr,
                OVERLAP: tl.constexpr):  # fmt: skip
    """out = f(g(x) W^T + bias): g is a norm (NORM; of the mean square alone if RMS) or nothing; f is the activation
    ACT, an addition to ``out`` (ADD) or nothing. Each output is written by one program, whose warps share the columns
    of x and W."""
    if OVERLAP:
        gdc_launch_dependents()
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    outs = tl.program_id(0) * BN + tl.arange(0, BN)
    row_in, out_in = rows < batch, outs < width_out
    dtype: tl.constexpr = weight.dtype.element_ty
    GROUP: tl.constexpr = min(BK, max(16, 128 * SHARES // BM))  # four numbers a thread where warps are as many
    cols, share_cols = _columns(BK // GROUP, BK), _columns(SHARES, BK)
    keep = row_in[:, None] & out_in[None, :]
    to = out + rows.to(tl.int64)[:, None] * width_out + outs[None, :]
    total = tl.zeros((BM, BN), tl.float32)
    if bias is not None:
        total += tl.load(bias + outs, mask=out_in, other=0.0).to(tl.float32)[None, :]
    if WIDTH <= BK and OVERLAP:
        w = _weights(weight, outs, share_cols, width_out, WIDTH)
    if WIDTH <= BK and NORM:
        gain, shift = _gain_and_shift(norm_weight, norm_bias, cols, WIDTH)
    if OVERLAP:
        gdc_wait()
    if ADD:
        before = tl.load(to, mask=keep, other=0.0)
    if WIDTH <= BK:
        part = _inputs(x, rows, cols, batch, WIDTH)
        w = _held(w) if OVERLAP else _weights(weight, outs, share_cols, width_out, WIDTH)
        if NORM:
            mean = 0.0 if RMS else _row_sums(part) / WIDTH
            off = part if RMS else tl.where((cols < WIDTH)[None, :, :], part - mean, 0.0)
            rstd = 1.0 / tl.sqrt(_row_sums(off * off) / WIDTH + eps)
            part = _normed(part, mean, rstd, gain, shift)
        acc = tl.dot(_shared_out(part.to(dtype), BM, SHARES, BK), w, input_precision=FP32_PRODUCTS)
    else:
        acc = _product_in_steps(
            x, norm_weight, norm_bias, weight, rows, outs, cols, share_cols, batch, width_out, eps, WIDTH, NORM, RMS,
            BM, BN, BK, SHARES, STAGES,
        )  # fmt: skip
    total += tl.sum(acc, 0)
    if ACT is not None:
        total = _activated(total, ACT)
    if ADD:
        total += before
    tl.store(to, total.to(out.dtype.element_ty), mask=keep)


def embed(
    tokens: torch.Tensor, token_table: torch.Tensor, position_table: torch.Tensor, coordinates: torch.Tensor,
    position: torch.Tensor, out: torch.Tensor, length: int, gpu: Gpu = LEAST,
) -> None:  # fmt: skip
    """Launch ``embed_step``. It waits for all before it, so that the kernels after it may read the position at once.

    Args:
        tokens: (B, 1 + length) int64 symbols; column t is the input of position t.
        token_table: (symbols, width).
        position_table: (places, width), the tables of all coordinates.
        coordinates: (kinds, length) rows of ``position_table``.
        position: one integer on the device.
        out: (B, width), overwritten.
        length: of the sequences.
        gpu: what it runs on.
    """
    batch, width = out.shape
    embed_step[(batch,)](
        tokens, token_table, position_table, coordinates, position, out, width, length, KINDS=len(coordinates),
        BLOCK=triton.next_power_of_2(width), num_warps=2, OVERLAP=gpu.overlap,
    )  # fmt: skip


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, *,
    norm: Norm | None = None, act: Activation | None = None, add: bool = False,
    gpu: Gpu = LEAST, tile: Tiling | None = None,
) -> None:  # fmt: skip
    """Launch ``step_linear`` or ``step_vector``.

    Args:
        x: (B, K).
        weight: (N, K), contiguous, in the activation type.
        bias: (N,) or None.
        out: (B, N), overwritten, or added to with ``add``.
        norm: of x, before the product.
        act: of the result.
        add: add the result to ``out`` instead.
        gpu: what it runs on.
        tile: from ``tiling`` by default.
    """
    batch, (width_out, width) = len(x), weight.shape
    tile = tile or tiling(batch, width_out, width, weight.element_size(), norm is not None, gpu.deep)
    gain, shift, rms = norm or (None, None, False)
    eps = 0.0 if norm is None else EPS
    arguments: tuple[Any, ...] = (x, gain, shift, weight, bias, out)
    options: dict[str, Any] = {"WIDTH": width, "NORM": norm is not None, "RMS": rms, "ACT": act, "ADD": add}
    options |= {"BN": tile.outputs, "num_warps": tile.warps} | overlapping(gpu.overlap)
    programs = triton.cdiv(width_out, tile.outputs)
    if tile.rows == 1:
        step_vector[(programs, batch)](*arguments, width_out, eps, PADDED=tile.depth, **options)
        return
    shares = min(tile.warps, tile.depth // 16)  # 16: the least depth that tensor cores take
    step_linear[(programs, triton.cdiv(batch, tile.rows))](
        *arguments, batch, width_out, eps, BM=tile.rows, BK=tile.depth, SHARES=shares, STAGES=tile.stages, **options
    )
