"""The forward and backward pass over one layer: which kernels run, over which heads, on which grids.

Everything between q, k, v and the gradients happens in the kernels of ``block``, ``window`` and ``column``; here are
only shapes and launches. Tensors may be any strided views; the results are written into tensors the caller gives.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from src.attention.key_sets import Column, Fixed, KeySet, Strided, Summary, Window
from src.attention.patterns import head_groups
from src.attention.triton import block, column, window
from src.attention.triton.steps import View
from src.attention.triton.tuning import Config, find

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDEST = 128  # widest head the kernels hold in registers
LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Run:
    """Neighbouring heads that one launch serves: head h of the run has sub-block (first_sub + floor(h / repeat) *
    sub_step) mod l/c."""

    start: int
    stop: int
    keys: KeySet
    first_sub: int = 0
    sub_step: int = 0
    repeat: int = 1


@cache
def runs(layer: tuple[KeySet, ...]) -> tuple[Run, ...]:
    """Split a layer's heads into launches, as few as its summary sub-blocks allow (one for the paper's patterns)."""
    found: list[Run] = []
    for group in head_groups(layer):
        if isinstance(group.first, Fixed | Summary):
            found.extend(_sub_block_runs(group.start, group.keys))
        else:
            found.append(Run(group.start, group.stop, group.first))
    return tuple(found)


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    layer: tuple[KeySet, ...], scale: float,
) -> None:  # fmt: skip
    """Write the attention output and its log-sum-exp.

    Args:
        q: (B, H, N, Dqk); k: (B, Hkv, N, Dqk); v: (B, Hkv, N, Dv); any strides, one dtype (bf16, fp16 or fp32). Hkv
            divides H, and neighbouring heads of queries share keys and values.
        out: (B, H, N, Dv), any strides, overwritten.
        lse: (B, H, N) float32, overwritten; base 2, plus infinity for a query that sees nothing.
        layer: the key set of each head; none of them ``Dense``.
        scale: softmax scale, positive.
    """
    if out.numel() == 0:
        return
    with on(q.device):
        for run in runs(layer):
            given = [_of_run(t, run, layer) for t in (q, k, v, out, lse)]
            job = _Job(given[0], given[2], run, q.shape[1] // k.shape[1], scale * LOG2E)
            tensors: list[View | None] = [view(t) for t in given]
            if isinstance(run.keys, Window | Strided):
                join = isinstance(run.keys, Strided)
                if join:
                    job.column(column.column_forward, "column_forward", tensors, strict=True)
                job.window(window.window_forward, "window_forward", tensors, join)
            elif isinstance(run.keys, Column):
                job.column(column.column_forward, "column_forward", tensors, strict=False)
            else:
                job.block_queries("block_forward", [*tensors, None, None, None], grad=False)


def backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, dout: torch.Tensor,
    dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, layer: tuple[KeySet, ...], scale: float,
) -> None:  # fmt: skip
    """Write the gradients of q, k and v, every element by one program in a fixed order: no two runs differ.

    Args:
        q, k, v, out, lse, layer, scale: as given to and written by ``forward``.
        dout: gradient of ``out``, any strides, 0 included.
        dq, dk, dv: any strides, shaped as q, k and v; overwritten. Of shared keys and values each head of queries
            first has gradients of its own, in float32 (B, H, N, D).
    """
    if q.numel() == 0:
        return
    delta = torch.empty_like(lse)
    ratio = q.shape[1] // k.shape[1]
    each = [dk, dv] if ratio == 1 else [_for_each_head(x, q.shape[1]) for x in (k, v)]
    with on(q.device):
        for run in runs(layer):
            given = [_of_run(t, run, layer) for t in (q, k, v, out, lse, dout, delta, dq, *each)]
            job = _Job(given[0], given[2], run, ratio, scale * LOG2E)
            views: list[View | None] = [view(t) for t in given]
            if isinstance(run.keys, Window | Strided):
                join = isinstance(run.keys, Strided)
                if join:
                    job.column(column.column_backward, "column_backward", views, strict=True)
                else:
                    views[6] = None
                job.window(window.window_backward, "window_backward", views, join)
            elif isinstance(run.keys, Column):
                views[6] = None
                job.column(column.column_backward, "column_backward", views, strict=False)
            else:
                q_, k_, v_, _, lse_, dout_, delta_, _, dk_, dv_ = views
                job.block_queries("block_backward_queries", views[:8], grad=True)
                job.block_keys("block_backward_keys", [q_, k_, v_, lse_, dout_, delta_, dk_, dv_])
    if ratio > 1:
        for shared, own in zip((dk, dv), each, strict=True):
            shared.copy_(own.unflatten(1, (-1, ratio)).sum(2))


class _Job:
    """The launches of one run of heads."""

    def __init__(self, q: torch.Tensor, v: torch.Tensor, run: Run, ratio: int, scale: float) -> None:
        self.run = run
        self.batch, self.heads, self.n, self.qk = q.shape
        self.v = v.shape[-1]
        self.sizes = {"RATIO": ratio, "SHIFT": run.start % ratio, "QK": self.qk, "V": self.v}
        self.scale = scale
        self.device = q.device
        self.dtype = q.dtype
        self.heads_first = q.stride(1) < q.stride(2)
        self.stride: int = getattr(run.keys, "stride", 0)
        self.summary: int = getattr(run.keys, "summary", 0)
        self.own = not isinstance(run.keys, Summary)

    def column(self, kernel: Any, name: str, tensors: list[View | None], strict: bool) -> None:
        rows = -(-self.n // self.stride)
        config = self._config(name, rows=rows)
        tiles = -(-rows // config.BM)
        launch(
            name, kernel, self.batch * self.heads * -(-self.stride // config.per) * tiles, config,
            (*tensors, self.n, self.scale, self.heads, tiles),
            {"STRICT": strict, "HEADS_FIRST": self.heads_first, "STRIDE": self.stride}
            | {"PER": config.per, "TILES": -(-rows // config.BN) if tiles == 1 else 0} | self.sizes,
        )  # fmt: skip

    def window(self, kernel: Any, name: str, tensors: list[View | None], join: bool) -> None:
        config = self._config(name)
        groups = self.batch * self.heads
        launch(
            name, kernel, groups * -(-self.n // config.BM), config,
            (*tensors, self.n, self.scale, self.heads, groups),
            {"JOIN": join, "REACH": self.stride + (0 if join else 1)} | self.sizes,
        )  # fmt: skip

    def block_queries(self, name: str, tensors: list[View | None], grad: bool) -> None:
        config = self._config(name)
        groups = self.batch * self.heads
        launch(
            name, block.block_queries, groups * -(-self.n // config.BM), config,
            (*tensors, self.n, self.scale, self.heads, groups, self.run.first_sub, self.run.sub_step),
            {"GRAD": grad} | self._block_sizes,
        )  # fmt: skip

    def block_keys(self, name: str, tensors: list[View | None]) -> None:
        config = self._config(name)
        groups = self.batch * self.heads
        blocks, rest = divmod(self.n, self.stride)
        # a head of any sub-block has at most this many cells; programs beyond a head's own last cell store nothing
        cell_tiles = -(-(blocks * self.summary + min(rest, self.summary)) // config.BN)
        tiles = cell_tiles + -(-self.n // config.BN)
        launch(
            name, block.block_keys, groups * tiles, config,
            (*tensors, self.n, self.scale, self.heads, groups, self.run.first_sub, self.run.sub_step, cell_tiles),
            self._block_sizes,
        )  # fmt: skip

    @property
    def _block_sizes(self) -> dict[str, Any]:
        of_pattern = {"OWN": self.own, "STRIDE": self.stride, "SUMMARY": self.summary, "REPEAT": self.run.repeat}
        return of_pattern | self.sizes

    def _config(self, name: str, rows: int = 0) -> Config:
        return find(name, self.device, self.dtype, self.qk, self.v, self.stride, rows)


def launch(
    name: str, kernel: Any, programs: int, config: Config, arguments: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Launch one kernel. Tuning and the compile tests put their own function in this one's place."""
    kernel[(programs,)](*arguments, **constants, **options(config))


def options(config: Config) -> dict[str, Any]:
    """A configuration as the keyword arguments of a launch."""
    limit = {"maxnreg": config.registers} if config.registers else {}
    return {
        "BM": config.BM, "BN": config.BN, "num_warps": config.warps, "num_stages": config.stages,
        "enable_fp_fusion": True,
    } | limit  # fmt: skip


def _of_run(x: torch.Tensor, run: Run, layer: tuple[KeySet, ...]) -> torch.Tensor:
    """The heads of (B, H or Hkv, ...) that a run has to do with."""
    if run.stop - run.start == len(layer):
        return x
    ratio = len(layer) // x.shape[1]
    return x[:, run.start // ratio : (run.stop - 1) // ratio + 1]


def _for_each_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Room for what each head of queries makes of shared keys or values, float32 (B, H, N, D)."""
    batch, _, n, width = x.shape
    return x.new_empty(batch, n, heads, width, dtype=torch.float32).transpose(1, 2)


def _sub_block_runs(start: int, keys: tuple[KeySet, ...]) -> list[Run]:
    """Split heads of one summary kind where their sub-blocks stop being an arithmetic sequence of equal repeats."""
    found: list[Run] = []
    subs = [getattr(one, "sub_block", 0) for one in keys]
    repeat = next((h for h, sub in enumerate(subs) if sub != subs[0]), 1)
    if len(subs) % repeat or subs != [sub for sub in subs[::repeat] for _ in range(repeat)]:
        repeat = 1
    subs = subs[::repeat]
    choices = keys[0].stride // keys[0].summary  # type: ignore[attr-defined]
    first = 0
    for end in range(1, len(subs) + 1):
        step = (subs[first + 1] - subs[first]) % choices if first + 1 < len(subs) else 0
        if end < len(subs) and subs[end] == (subs[first] + (end - first) * step) % choices:
            continue
        step = step if end - first > 1 else 0
        found.append(Run(start + first * repeat, start + end * repeat, keys[first * repeat], subs[first], step, repeat))
        first = end
    return found


def check_type(dtype: torch.dtype, width: int) -> None:
    """Refuse what no kernel of attention takes.

    Args:
        dtype: of queries, keys and values.
        width: of the widest head among them.

    Raises:
        ValueError: another dtype, or a wider head.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"the Triton kernels take bf16, fp16 or fp32, found {dtype}")
    if width > WIDEST:
        raise ValueError(f"a head may be at most {WIDEST} wide for Triton, found {width}; use more heads")


def view(tensor: torch.Tensor) -> View:
    """Give a kernel a tensor with its strides."""
    strides = tensor.stride()
    return View(tensor, *strides, *(() if tensor.dim() == 4 else (0,)))


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Launch on a GPU that may not be the present one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
