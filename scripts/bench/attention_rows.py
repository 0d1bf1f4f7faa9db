"""The implementations that ``scripts.bench.attention`` sets side by side, each a function from a problem to a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from scripts.bench.block_mask import block_mask
from src.attention.key_sets import Fixed
from src.attention.patterns import HeadPattern

Call = Callable[[], Tensor]
FLEX_BLOCK = (128, 128)  # FlexAttention's default


class Problem:
    """Random bf16 inputs on the GPU for one pattern and shape.

    Args:
        pattern: what a query may see; the merged sets of all heads.
        batch, heads, n, qk, v: the shape; q and k are (batch, heads, n, qk), values (batch, heads, n, v).
    """

    def __init__(self, pattern: HeadPattern, batch: int, heads: int, n: int, qk: int, v: int) -> None:
        torch.manual_seed(0)
        self.batch, self.heads, self.n, self.qk, self.v = batch, heads, n, qk, v
        self.layer = pattern.layer(heads)

        def draw(width: int) -> Tensor:
            return torch.randn(batch, heads, n, width, device="cuda", dtype=torch.bfloat16)

        self.q, self.k, self.values, self.dout = draw(qk), draw(qk), draw(v), draw(v)
        self.packed_dout: Tensor | None = None  # the gradient as a packed call's output is shaped
        self.inputs: list[Tensor] = [x.requires_grad_() for x in (self.q, self.k, self.values)]

    def run(self, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Forward and backward: the output and the gradients of the inputs."""
        out = call()
        return out, torch.autograd.grad(out, self.inputs, self.dout if out.dim() == 4 else self.packed_dout)

    def pairs(self) -> int:
        """Kept (query, key) pairs of all heads and sequences."""
        return self.batch * sum(keys.pairs(self.n) for keys in self.layer)


def sdpa(backend: SDPBackend) -> Callable[[Problem], Call]:
    """Dense attention by one of PyTorch's own kernels."""

    def build(p: Problem) -> Call:
        def call() -> Tensor:
            with sdpa_kernel([backend]):
                return scaled_dot_product_attention(p.q, p.k, p.values, is_causal=True)

        return call

    return build


def flex(p: Problem, block_size: Any = None, autotune: bool = False) -> Call:
    """PyTorch's FlexAttention, compiled; ``block_size`` is (queries, keys) of its mask's blocks."""
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    keys = p.layer[0]
    if isinstance(keys, Fixed):
        first = torch.tensor([one.first_cell for one in p.layer if isinstance(one, Fixed)], device="cuda")
        stride, summary = keys.stride, keys.summary

        def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            cell = j % stride - first[h]
            return (j <= i) & ((j // stride == i // stride) | ((cell >= 0) & (cell < summary)))

        heads = p.heads
    else:

        def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return keys.sees(i, j)

        heads = 1
    blocks = block_mask(mask, heads, p.n, block_size or FLEX_BLOCK, "cuda")
    mode = "max-autotune-no-cudagraphs" if autotune else None
    compiled = torch.compile(flex_attention, fullgraph=True, mode=mode)
    options: Any = {"fwd_BLOCK_M": block_size[0], "fwd_BLOCK_N": block_size[1]} if autotune and block_size else None
    return lambda: compiled(p.q, p.k, p.values, block_mask=blocks, kernel_options=options)


def _flex_default(p: Problem) -> Call:
    return flex(p)


def _flex_best(p: Problem) -> Call | None:
    """Small key blocks, which for the fixed pattern skip most of what is not a summary cell; strided gains nothing.

    The defaults of the backward kernel do not fit such blocks, so PyTorch's own autotuning chooses among those that do;
    it knows none that fits for the forward kernel.
    """
    if not isinstance(p.layer[0], Fixed):
        return None
    return flex(p, (128, 32), autotune=True)


def _torch(p: Problem) -> Call:
    from src.attention.factorized import factorized_attention

    return lambda: factorized_attention(p.q, p.k, p.values, p.layer, p.qk**-0.5)


def _triton(p: Problem) -> Call:
    from src.attention.triton import sparse_attention

    return lambda: sparse_attention(p.q, p.k, p.values, p.layer)


def _triton_packed(p: Problem) -> Call:
    from src.attention.triton import sparse_attention_packed

    with torch.no_grad():
        fused = torch.cat([x.transpose(1, 2).flatten(2) for x in (p.q, p.k, p.values)], -1)
    p.inputs = [fused.requires_grad_()]
    p.packed_dout = p.dout.transpose(1, 2).flatten(2)
    return lambda: sparse_attention_packed(fused, p.layer, p.qk, p.v)


ROWS: dict[str, Callable[[Problem], Call | None]] = {
    "dense, SDPA cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
    "dense, SDPA FlashAttention": sdpa(SDPBackend.FLASH_ATTENTION),
    "FlexAttention, default blocks": _flex_default,
    "FlexAttention, blocks (128, 32), autotuned": _flex_best,
    "torch backend": _torch,
    "Triton": _triton,
    "Triton, packed QKV": _triton_packed,
}
