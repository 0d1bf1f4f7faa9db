# mypy: disable-error-code="no-untyped-def"
"""One new query a head against the cache of ``src.attention.decode``: stores its key and value, reads its pattern row.

A program serves one head of one sequence, or one of SPLITS shares of its row. RATIO neighbouring heads share a
key and a value (grouped-query attention). The position is read from memory, so a CUDA graph of the launch serves every
position. Products and softmax are fp32 (section 5.6). With OVERLAP a kernel starts while the one before still runs, and
waits for it before it reads the projection; the position is older.
Queries and keys are normalised and turned to their position as they are read: the cache holds turned keys.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from src.attention.decode.layout import LayerLayout
from src.attention.triton.passes import LOG2E
from src.attention.triton.steps import LOWEST, padded

PROGRAMS = 512  # of attention that fill a GPU: below, a head's row is shared out
SHARE = 256  # keys at least in a share of a row
MOST_SHARES = 32
LONE, FEW = 16, 128  # programs that have a multiprocessor each to themselves take larger tiles


class KeyTile(NamedTuple):
    """How a program goes through its keys."""

    keys: int  # at once
    stages: int
    warps: int


def row_shares(rows: int, reads: int) -> int:
    """Say into how many shares a row is split: ``rows`` heads of all sequences, each reading up to ``reads`` keys."""
    return max(1, min(PROGRAMS // rows, reads // SHARE, MOST_SHARES))


def key_tile(width: int, size: int, programs: int) -> KeyTile:
    """Choose the tile for keys and values of ``width`` numbers of ``size`` bytes together, read by so many programs."""
    if width <= 128 and size == 2 and LONE < programs <= FEW:
        return KeyTile(128, 3, 8)
    return KeyTile(64 if width <= 128 else 32, 3, 4)


@triton.jit
def _turned(x, cols, inside, cosine, sine, D: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr,
            ROTARY: tl.constexpr):  # fmt: skip
    """One head's query or key as attention takes it, float32, from ``x`` as it was projected."""
    own = tl.load(x + cols, mask=inside, other=0.0).to(tl.float32)
    if ROTARY:  # column i is in one plane with i + D/2, which another thread holds: it is loaded once more
        other = tl.load(x + (cols + D // 2) % D, mask=inside, other=0.0).to(tl.float32)
    if NORM is not None:
        rstd = NORM / tl.sqrt(tl.sum(own * own, 0) / D + EPS)
        own = own * rstd
        if ROTARY:
            other = other * rstd
    return own * cosine + other * sine if ROTARY else own


@triton.jit
def decode_attention(  # noqa: PLR0915
                     qkv, keys, values, partial, lse, out, table, position, cosines, sines, slots, scale,
                     HEADS: tl.constexpr, RATIO: tl.constexpr, SPLITS: tl.constexpr, QK: tl.constexpr, V: tl.constexpr,
                     BN: tl.constexpr, STAGES: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr,
                     OVERLAP: tl.constexpr):  # fmt: skip
    """Write (batch, head, split) partial outputs and their base-2 log-sum-exp, LOWEST for a share without keys; with a
    single share the output itself."""
    if OVERLAP:
        gdc_launch_dependents()
    program = tl.program_id(0)
    split = program % SPLITS
    head = program // SPLITS % HEADS
    batch = program // (SPLITS * HEADS)
    t = tl.load(position).to(tl.int32)
    row = table + head * 8
    kind, offset, capacity, stride = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    reach, columns, summary, first_cell = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    # the slots that are read, own key apart, and those that are written: HeadLayout.reads and .writes
    block = t // stride
    place = t % stride
    cell = place - first_cell
    in_cell = (cell >= 0) & (cell < summary)
    blocks_end = tl.where(kind == 2, stride, 0) + summary * block
    low = tl.where(kind == 0, tl.maximum(t - reach + 1, 0), tl.where(kind == 2, stride - place, 0))
    high = tl.where(kind == 0, t, tl.where(kind == 1, tl.minimum(t, reach), blocks_end))
    high = tl.where(kind == 3, blocks_end + tl.minimum(tl.maximum(cell, 0), summary), high)
    run = high - low
    count = run + tl.where(kind == 0, columns * block, 0)
    own = tl.where(kind == 0, t, tl.where(kind == 1, t % tl.maximum(reach, 1), stride - 1 - place))
    own = tl.where(kind == 3, tl.where(in_cell, blocks_end + cell, -1), own)
    second = tl.where((kind == 2) & in_cell & (blocks_end + cell < capacity), blocks_end + cell, -1)

    qk_cols, v_cols = tl.arange(0, padded(QK)), tl.arange(0, padded(V))
    qk_in, v_in = qk_cols < QK, v_cols < V
    new = qkv + batch.to(tl.int64) * (HEADS * QK + HEADS // RATIO * (QK + V))
    ROTARY: tl.constexpr = cosines is not None
    cosine, sine = 1.0, 0.0
    if ROTARY:
        plane = t.to(tl.int64) * (QK // 2) + qk_cols % (QK // 2)
        cosine = tl.load(cosines + plane, mask=qk_in, other=0.0)
        sine = tl.load(sines + plane, mask=qk_in, other=0.0)
        sine = tl.where(qk_cols < QK // 2, -sine, sine)
    if OVERLAP:
        gdc_wait()
    query = _turned(new + head * QK, qk_cols, qk_in, cosine, sine, QK, NORM, EPS, ROTARY) * scale
    first_row = batch.to(tl.int64) * slots + offset
    top = tl.full((BN,), LOWEST, tl.float32)
    total = tl.zeros((BN,), tl.float32)
    acc = tl.zeros((BN, padded(V)), tl.float32)
    # every row of the tile has a softmax of its own, so that nothing crosses threads until the loop is over
    for start in tl.range(split * BN, count, SPLITS * BN, num_stages=STAGES):
        r = start + tl.arange(0, BN)
        slot = tl.where(r < run, low + r, place + stride * (r - run))
        valid = (r < count) & (slot != own)
        rows = first_row + slot
        k = tl.load(keys + rows[:, None] * QK + qk_cols[None, :], mask=valid[:, None] & qk_in[None, :], other=0.0)
        v = tl.load(values + rows[:, None] * V + v_cols[None, :], mask=valid[:, None] & v_in[None, :], other=0.0)
        score = tl.where(valid, tl.sum(k.to(tl.float32) * query[None, :], 1), float("-inf"))
        new_top = tl.maximum(top, score)
        p = tl.exp2(score - new_top)
        shrink = tl.exp2(top - new_top)
        total = total * shrink + p
        acc = acc * shrink[:, None] + p[:, None] * v.to(tl.float32)
        top = new_top
    whole_top = tl.max(top, 0)
    sees_own = (split == 0) & (own >= 0)
    new_key = new + HEADS * QK + head // RATIO * QK
    new_value = new + (HEADS + HEADS // RATIO) * QK + head // RATIO * V
    if ROTARY or NORM is not None:  # rounded as the cache will hold it
        k_new = _turned(new_key, qk_cols, qk_in, cosine, sine, QK, NORM, EPS, ROTARY)
        k_new = k_new.to(keys.dtype.element_ty)
    else:
        k_new = tl.load(new_key + qk_cols, mask=qk_in, other=0.0)
    v_new = tl.load(new_value + v_cols, mask=v_in, other=0.0)
    own_score = tl.where(sees_own, tl.sum(k_new.to(tl.float32) * query, 0), LOWEST)
    whole_top = tl.maximum(whole_top, own_score)
    share = tl.exp2(top - whole_top)
    own_p = tl.where(sees_own, tl.exp2(own_score - whole_top), 0.0)
    mass = tl.sum(total * share, 0) + own_p
    some = tl.where(mass > 0, mass, 1.0)
    result = (tl.sum(acc * share[:, None], 0) + own_p * v_new.to(tl.float32)) / some
    place_out = (batch * HEADS + head).to(tl.int64) * SPLITS + split
    if SPLITS == 1:
        tl.store(out + place_out * V + v_cols, result.to(out.dtype.element_ty), mask=v_in)
    else:
        tl.store(partial + place_out * V + v_cols, result, mask=v_in)
        tl.store(lse + place_out, tl.where(mass > 0, whole_top + tl.log2(some), LOWEST))
    if split == 0:  # heads that share keys and slots all write the same
        if own >= 0:
            tl.store(keys + (first_row + own) * QK + qk_cols, k_new, mask=qk_in)
            tl.store(values + (first_row + own) * V + v_cols, v_new, mask=v_in)
        if second >= 0:
            tl.store(keys + (first_row + second) * QK + qk_cols, k_new, mask=qk_in)
            tl.store(values + (first_row + second) * V + v_cols, v_new, mask=v_in)


@triton.jit
def decode_join(partial, lse, out, SPLITS: tl.constexpr, SPLITS_PADDED: tl.constexpr, V: tl.constexpr,
                OVERLAP: tl.constexpr):  # fmt: skip
    """Join the shares of one head of one sequence by their log-sum-exp."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    program = tl.program_id(0).to(tl.int64)
    share, cols = tl.arange(0, SPLITS_PADDED), tl.arange(0, padded(V))
    at = program * SPLITS + share
    inside = (share < SPLITS)[:, None] & (cols < V)[None, :]
    weight = tl.load(lse + at, mask=share < SPLITS, other=LOWEST)
    weight = tl.exp2(weight - tl.max(weight, 0))  # a row without any key has equal weights and shares of 0
    rows = tl.load(partial + at[:, None] * V + cols[None, :], mask=inside, other=0.0)
    joined = tl.sum(rows * weight[:, None], 0) / tl.sum(tl.where(share < SPLITS, weight, 0.0), 0)
    tl.store(out + program * V + cols, joined.to(out.dtype.element_ty), mask=cols < V)


def head_table(layout: LayerLayout, device: torch.device) -> torch.Tensor:
    """Describe a layer's heads to the kernel: (H, 8) int32."""
    rows = [
        [head.kind, offset, head.capacity, head.stride, head.reach, int(head.columns), head.summary, head.first_cell]
        for head, offset in zip(layout.heads, layout.offsets, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.int32, device=device)


def launch(
    qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, partial: torch.Tensor, lse: torch.Tensor,
    out: torch.Tensor, table: torch.Tensor, position: torch.Tensor, scale: float, *,
    turns: torch.Tensor | None = None, norm: float | None = None, eps: float = 0.0, overlap: bool = False,
    tile: KeyTile | None = None,
) -> None:  # fmt: skip
    """Decode one position of every sequence and head.

    Args:
        qkv: (B, H * Dqk + Hkv * (Dqk + Dv)) the fused projection of the position, contiguous; bf16, fp16 or fp32.
        keys: (B, slots, Dqk) cache, contiguous; the position's keys are stored.
        values: (B, slots, Dv) likewise.
        partial: (B, H, S, Dv) float32, room for the output of each of S shares of the row.
        lse: (B, H, S) float32, room for their log-sum-exp.
        out: (B, H * Dv), overwritten, in any floating dtype.
        table: from ``head_table``.
        position: one integer on the device, which no kernel right before may have written if launches overlap.
        scale: of the scores.
        turns: rotary positions, float32 (2, more than the position, Dqk / 2) with rows side by side.
        norm: root mean square that each head's queries and keys are given before they turn, or None.
        eps: of that norm.
        overlap: start before the kernel before has ended (compute capability 9.0 at least).
        tile: from ``key_tile`` by default.
    """
    batch, heads, splits, v = partial.shape
    qk = keys.shape[-1]
    kv_heads = (qkv.shape[-1] - heads * qk) // (qk + v)
    tile = tile or key_tile(qk + v, keys.element_size(), batch * heads * splits)
    cosines, sines = (None, None) if turns is None else turns
    arguments: tuple[Any, ...] = (qkv, keys, values, partial, lse, out, table, position, cosines, sines)
    decode_attention[(batch * heads * splits,)](
        *arguments, keys.shape[1], scale * LOG2E, HEADS=heads, RATIO=heads // kv_heads, SPLITS=splits, QK=qk, V=v,
        BN=tile.keys, STAGES=tile.stages, NORM=norm, EPS=eps, num_warps=tile.warps, **overlapping(overlap),
    )  # fmt: skip
    if splits > 1:
        join(partial, lse, out, overlap=overlap)


def join(partial: torch.Tensor, lse: torch.Tensor, out: torch.Tensor, *, overlap: bool = False) -> None:
    """Join the shares of all rows: the second part of ``launch``, and its arguments."""
    batch, heads, splits, v = partial.shape
    decode_join[(batch * heads,)](
        partial, lse, out, SPLITS=splits, SPLITS_PADDED=triton.next_power_of_2(splits), V=v, num_warps=2,
        **overlapping(overlap),
    )  # fmt: skip


def overlapping(overlap: bool) -> dict[str, Any]:
    """Options of a launch that may overlap the kernel before it."""
    return {"OVERLAP": True, "launch_pdl": True} if overlap else {"OVERLAP": False}
