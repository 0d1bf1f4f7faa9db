"""The ``torch`` backend as PyTorch operators: ``torch.ops.sparse_transformer.factorized`` and its backward pass.

They have fake implementations, autograd formulas and rules for ``vmap``: ``torch.compile`` meets no graph break, and
``torch.export`` keeps one node a layer that can be trained. The autograd formulas of operators do not work under
``torch.func``, so outside of compilers the same formulas are called as ``autograd.Function``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from src.attention.factorized import function
from src.attention.factorized.layer_code import read_layer, write_layer
from src.attention.key_sets import KeySet

_ONCE = "backend torch has first derivatives in reverse mode only; {} needs backend=reference"


def factorized_attention(q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], scale: float) -> Tensor:
    """Compute sparse attention in O(pairs) time and O(n) memory beyond its inputs (sections 4.3 and 5.5).

    Args:
        q: (B, H, N, D) queries, any strides; fp16, bf16 (computed in fp32), fp32 or fp64.
        k: (B, Hkv, N, D) keys, likewise; Hkv divides H, and neighbouring heads of queries share keys and values.
        v: (B, Hkv, N, Dv) values, likewise.
        layer: the key set of every head, any but `Dense`.
        scale: factor of the scores.

    Returns:
        (B, H, N, Dv) in the dtype of ``v``, laid out in memory as (B, N, H, Dv). Rows without keys are 0.

    Raises:
        ValueError: a key set that has no factorization.
        RuntimeError: forward-mode derivatives, or derivatives of the gradient.
    """
    call = torch.ops.sparse_transformer.factorized if torch.compiler.is_compiling() else _Forward.apply
    out: Tensor = call(q, k, v, *write_layer(layer), scale)[0]
    return out


@torch.library.custom_op("sparse_transformer::factorized", mutates_args=())
def _factorized(q: Tensor, k: Tensor, v: Tensor, names: str, numbers: list[int], scale: float) -> tuple[Tensor, Tensor]:
    out, lse = _results(q, v)
    function.forward(q, k, v, read_layer(names, numbers), scale, out, lse)
    return out, lse


@torch.library.custom_op("sparse_transformer::factorized_backward", mutates_args=())
def _factorized_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    names: str,
    numbers: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _gradients(q, k, v)
    function.backward(d_out, q, k, v, out, lse, read_layer(names, numbers), scale, gradients)
    return gradients


@_factorized.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _results(q, v)


@_factorized_backward.register_fake
def _(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(q, k, v)


@register_flop_formula(torch.ops.sparse_transformer.factorized)
def _forward_flops(q: Any, k: Any, v: Any, names: str, numbers: list[int], *_: Any, **__: Any) -> int:
    return _flops(q, names, numbers, q[3] + v[3])


@register_flop_formula(torch.ops.sparse_transformer.factorized_backward)
def _backward_flops(
    d_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, names: str, numbers: list[int], *_: Any, **__: Any
) -> int:
    return _flops(q, names, numbers, 3 * q[3] + 2 * v[3])


def _flops(q: Any, names: str, numbers: list[int], width: int) -> int:
    """Two operations a kept pair and column; tiles on the diagonal compute somewhat more."""
    return 2 * q[0] * width * sum(keys.pairs(q[2]) for keys in read_layer(names, numbers))


def _results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, n, _ = q.shape
    out = v.new_empty((batch, n, heads, v.shape[-1])).transpose(1, 2)
    return out, q.new_empty((batch, heads, n, 1), dtype=function.compute_dtype(q))


def _gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.layer = inputs  # names, numbers, scale
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    call = torch.ops.sparse_transformer.factorized_backward if torch.compiler.is_compiling() else _Backward.apply
    return (*call(d_out, *ctx.saved_tensors, *ctx.layer), None, None, None)


def _refuse_second(ctx: Any, *_: Any) -> None:
    raise RuntimeError(_ONCE.format("a derivative of the gradient (create_graph=True)"))


def _refuse_tangents(ctx: Any, *_: Any) -> None:
    raise RuntimeError(_ONCE.format("forward mode (jvp, jacfwd)"))


_factorized.register_autograd(_backward, setup_context=_save)
_factorized_backward.register_autograd(_refuse_second)


class _Forward(torch.autograd.Function):
    """The forward pass where nothing compiles."""

    generate_vmap_rule = True
    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)
    jvp = staticmethod(_refuse_tangents)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.sparse_transformer.factorized(*inputs)
        return out, lse


class _Backward(torch.autograd.Function):
    """The backward pass where nothing compiles."""

    generate_vmap_rule = True
    backward = staticmethod(_refuse_second)
    jvp = staticmethod(_refuse_tangents)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = torch.ops.sparse_transformer.factorized_backward(*inputs)
        return dq, dk, dv

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep nothing: there is no second derivative."""


@_factorized.register_vmap
def _(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> Any:
    return _in_one_batch(torch.ops.sparse_transformer.factorized, info.batch_size, dims, inputs)


@_factorized_backward.register_vmap
def _(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> Any:
    return _in_one_batch(torch.ops.sparse_transformer.factorized_backward, info.batch_size, dims, inputs)


def _in_one_batch(op: Any, size: int, dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> Any:
    """Run an operator on (size * B, H, N, width), and give (size, B, H, N, width)."""

    def whole(x: Any, dim: int | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        return (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)

    outputs = op(*(whole(x, dim) for x, dim in zip(inputs, dims, strict=True)))
    return tuple(x.unflatten(0, (size, -1)) for x in outputs), (0,) * len(outputs)
