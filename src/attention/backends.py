"""The one door to attention: ``attend(q, k, v, layer, backend)``."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from src.attention.factorized import factorized_attention
from src.attention.key_sets import Dense, KeySet
from src.attention.reference import reference_attention
from src.attention.triton import problem

Backend = Literal["auto", "triton", "torch", "reference"]

# On recent GPUs cuDNN's attention is the fastest of PyTorch's; whatever it cannot do falls to the next.
_DENSE_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: tuple[KeySet, ...],
    backend: Backend = "auto",
    scale: float | None = None,
) -> Tensor:
    """Let every head attend to its key set (sections 4.3 and 5.1).

    Args:
        q: (B, H, N, D) queries, any strides; fp16, bf16, fp32 or fp64.
        k: (B, H, N, D) keys, same dtype.
        v: (B, H, N, Dv) values, same dtype.
        layer: the key set of every head, from `Pattern.layer`.
        backend: ``auto`` takes the fastest one that is there, see `resolve_backend`; one asked for by name is that
            one or an error. Dense heads go to PyTorch's scaled_dot_product_attention unless ``reference`` is asked for.
        scale: factor of the scores; 1/sqrt(D) by default.

    Returns:
        (B, H, N, Dv) in the dtype of the inputs, laid out in memory as (B, N, H, Dv) by the sparse backends. Rows
        without keys are 0 and pass on no gradient.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that is not available.
    """
    _check(q, k, v, layer)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    taken = resolve_backend(backend, layer, q.device)
    nothing = q.is_meta or 0 in (*q.shape, *v.shape)  # no numbers, or none to compute: the shape is what is wanted
    if taken == "reference" or nothing:
        return reference_attention(q, k, v, layer, scale)
    dense = [isinstance(keys, Dense) for keys in layer]
    if all(dense):
        return _dense(q, k, v, scale)
    if not any(dense):
        return _sparse(q, k, v, layer, taken, scale)
    return _mixed(q, k, v, layer, taken, scale)


def resolve_backend(name: Backend, layer: tuple[KeySet, ...], device: torch.device) -> str:
    """Say which backend is taken, so that the caller can log what ``auto`` means here.

    Args:
        name: the backend asked for.
        layer: the key set of every head.
        device: where the tensors live.

    Returns:
        ``sdpa`` where every head is dense (but for ``reference``); else ``triton``, ``torch`` or ``reference``.

    Raises:
        ValueError: an unknown backend, or ``triton`` where it cannot run.
    """
    if name not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, found {name!r}")
    if name == "reference":
        return "reference"
    dense = all(isinstance(keys, Dense) for keys in layer)
    if name == "triton" and (reason := triton_problem(device)) is not None:
        raise ValueError(f"backend triton is not available: {reason}; use torch or auto")
    if dense:
        return "sdpa"
    if name == "auto":
        return "triton" if device.type == "cuda" and triton_problem(device) is None else "torch"
    return name


@torch.compiler.assume_constant_result
@cache
def triton_problem(device: torch.device) -> str | None:
    """Say why the Triton kernels cannot run on a device, or None if they can; Triton itself is not imported."""
    return problem(device)


def _check(q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...]) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.dim() != 4 or k.shape != q.shape or v.shape[:-1] != q.shape[:-1]:
        raise ValueError(f"q and k must be (B, H, N, D) and v (B, H, N, Dv), found {shapes}")
    if len(layer) != q.shape[1]:
        raise ValueError(f"layer must have one key set a head, found {len(layer)} for {q.shape[1]} heads")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise ValueError(f"q, k and v must have one floating dtype, found {q.dtype}, {k.dtype}, {v.dtype}")


def _dense(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    if q.device.type != "cuda":
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    with sdpa_kernel(_DENSE_ORDER, set_priority=True):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def _sparse(q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], taken: str, scale: float) -> Tensor:
    if taken == "triton":
        from src.attention.triton import sparse_attention

        out: Tensor = sparse_attention(q, k, v, layer, scale)
        return out
    return factorized_attention(q, k, v, layer, scale)


def _mixed(q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], taken: str, scale: float) -> Tensor:
    """Dense and sparse heads side by side: each kind in one call, then back into their places."""
    dense = [h for h, keys in enumerate(layer) if isinstance(keys, Dense)]
    sparse = [h for h, keys in enumerate(layer) if not isinstance(keys, Dense)]
    parts = (
        _dense(q[:, dense], k[:, dense], v[:, dense], scale),
        _sparse(q[:, sparse], k[:, sparse], v[:, sparse], tuple(layer[h] for h in sparse), taken, scale),
    )
    heads = dict(zip(dense + sparse, (head for part in parts for head in part.unbind(1)), strict=True))
    return torch.stack([heads[h] for h in range(len(layer))], dim=2).transpose(1, 2)
