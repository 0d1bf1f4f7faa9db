"""The one door to attention: ``attend(q, k, v, layer, backend)``."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from src.attention.factorized import factorized_attention
from src.attention.key_sets import PAPER, Dense, KeySet
from src.attention.reference import reference_attention
from src.attention.tiled_operator import tiled_attention
from src.attention.triton import problem

Backend = Literal["auto", "triton", "torch", "flex", "reference"]

# On recent GPUs cuDNN's attention is the fastest of PyTorch's; whatever it cannot do falls to the next.
_DENSE_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class Span(NamedTuple):
    """Which positions the queries have, and where they may look.

    Args:
        offset: position of the first query; the first key has position 0.
        first: (B, Nq) int32, the first key that each query may see; None: any.
    """

    offset: int = 0
    first: Tensor | None = None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: tuple[KeySet, ...],
    backend: Backend = "auto",
    scale: float | None = None,
    *,
    offset: int | None = None,
    documents: Tensor | None = None,
    first: Tensor | None = None,
) -> Tensor:
    """Let every head attend to its key set (sections 4.3 and 5.1).

    Args:
        q: (B, H, Nq, D) queries, any strides; fp16, bf16, fp32 or fp64.
        k: (B, Hkv, Nk, D) keys, same dtype. Hkv divides H: H / Hkv neighbouring heads share keys and values
            (grouped-query attention, Ainslie et al. 2023).
        v: (B, Hkv, Nk, Dv) values, same dtype.
        layer: the key set of every head of the queries, from `Pattern.layer`.
        backend: ``auto`` takes the fastest one that is there, see `resolve_backend`; one asked for by name is that
            one or an error. Dense heads go to PyTorch's scaled_dot_product_attention unless ``reference`` is asked for.
        scale: factor of the scores; 1/sqrt(D) by default.
        offset: position of the first query, for queries behind a cache of keys, or a prompt in pieces; the first key
            has position 0. By default the last query has the position of the last key.
        documents: (B, Nk) integers that do not fall along a row: the document of each position. No query sees a key of
            another document than its own. None: there is one.
        first: (B, Nq) int32, in place of ``documents`` where it is known: the first key that each query may see.

    Returns:
        (B, H, Nq, Dv) in the dtype of the inputs, laid out in memory as (B, Nq, H, Dv) by the sparse backends. Rows
        without keys are 0 and pass on no gradient.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that is not available.
    """
    offset = k.shape[2] - q.shape[2] if offset is None and k.dim() == q.dim() == 4 else offset or 0
    _check(q, k, v, layer, offset)
    if first is not None and first.shape != (q.shape[0], q.shape[2]):
        raise ValueError(f"first must be {(q.shape[0], q.shape[2])}, found {tuple(first.shape)}")
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    span = Span(offset, first if documents is None else _first_keys(documents, k, offset, q.shape[2]))
    taken = resolve_backend(backend, layer, q.device, documents=span.first is not None)
    nothing = q.is_meta or 0 in (*q.shape, *v.shape)  # no numbers, or none to compute: the shape is what is wanted
    if taken == "reference" or nothing:
        return reference_attention(q, k, v, layer, scale, *span)
    if taken == "flex":
        from src.attention.flex import flex_attention  # late: it compiles

        return flex_attention(q, k, v, layer, scale, *span)
    return _by_kind(q, k, v, layer, taken, scale, span)


def resolve_backend(name: Backend, layer: tuple[KeySet, ...], device: torch.device, documents: bool = False) -> str:
    """Say which backend is taken, so that the caller can log what ``auto`` means here.

    Args:
        name: the backend asked for.
        layer: the key set of every head.
        device: where the tensors live.
        documents: whether attention stays within documents, which dense heads do not leave to PyTorch.

    Returns:
        ``sdpa`` where every head is dense (but for ``reference`` and ``flex``); else ``triton``, ``torch``, ``flex`` or
        ``reference``.

    Raises:
        ValueError: an unknown backend, or ``triton`` or ``flex`` where it cannot run.
    """
    if name not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, found {name!r}")
    if name == "reference":
        return "reference"
    if name == "flex":
        if device.type != "cuda":
            raise ValueError(f"backend flex is not available: it is compiled for GPUs, found {device}; use auto")
        return "flex"
    dense = all(isinstance(keys, Dense) for keys in layer)
    if name == "triton" and (reason := triton_problem(device)) is not None:
        raise ValueError(f"backend triton is not available: {reason}; use torch or auto")
    if dense and not documents:
        return "sdpa"
    if name == "auto":
        return "triton" if device.type == "cuda" and triton_problem(device) is None else "torch"
    return name


@torch.compiler.assume_constant_result
@cache
def triton_problem(device: torch.device) -> str | None:
    """Say why the Triton kernels cannot run on a device, or None if they can; Triton itself is not imported."""
    return problem(device)


def _check(q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], offset: int) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    alike = q.dim() == k.dim() == v.dim() == 4 and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    if not alike or v.shape[:-1] != k.shape[:-1]:
        raise ValueError(f"q must be (B, H, Nq, D), k (B, Hkv, Nk, D) and v (B, Hkv, Nk, Dv), found {shapes}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"the heads of k must divide those of q ({q.shape[1]}), found {k.shape[1]}")
    if len(layer) != q.shape[1]:
        raise ValueError(f"layer must have one key set a head, found {len(layer)} for {q.shape[1]} heads")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise ValueError(f"q, k and v must have one floating dtype, found {q.dtype}, {k.dtype}, {v.dtype}")
    if offset < 0:
        raise ValueError(f"offset must be at least 0, found {offset}; {q.shape[2]} queries, {k.shape[2]} keys")


def _first_keys(documents: Tensor, k: Tensor, offset: int, queries: int) -> Tensor:
    """Where the document of each query begins, (B, Nq) int32."""
    if documents.shape != (k.shape[0], k.shape[2]) or documents.is_floating_point():
        raise ValueError(
            f"documents must be integers of shape {(k.shape[0], k.shape[2])}, "
            f"found {documents.dtype} of shape {tuple(documents.shape)}"
        )
    if offset + queries > k.shape[2]:
        raise ValueError(f"with documents every query has a key, found position {offset + queries - 1} behind the last")
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    place = torch.arange(documents.shape[1], device=documents.device, dtype=torch.int32)
    return torch.where(begins, place, 0).cummax(1).values[:, offset : offset + queries].int()


def _by_kind(
    q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], taken: str, scale: float, span: Span
) -> Tensor:
    """Dense heads, heads with the paper's sets and others: each kind in one call, then back into their places."""
    whole = span.first is None and span.offset == 0 and q.shape[2] == k.shape[2]
    kinds = [_kind(keys) if whole else "tiled" for keys in layer]
    if all(kind == kinds[0] for kind in kinds):
        return _one_kind(q, k, v, layer, kinds[0], taken, scale, span)
    if k.shape[1] != q.shape[1]:
        k, v = _for_each_head(q, k, v)
    heads: dict[int, Tensor] = {}
    for kind in ("dense", "sparse", "tiled"):
        own = [h for h, found in enumerate(kinds) if found == kind]
        if own:
            part = tuple(layer[h] for h in own)
            tensors = _heads(q, own), _heads(k, own), _heads(v, own)
            out = _one_kind(*tensors, part, kind, taken, scale, span)
            heads |= zip(own, out.unbind(1), strict=True)
    return torch.stack([heads[h] for h in range(len(layer))], dim=2).transpose(1, 2)


def _heads(x: Tensor, own: list[int]) -> Tensor:
    """Some heads, by slices: a list as an index would be copied to the GPU, which no CUDA graph can hold."""
    firsts = [h for h in own if h - 1 not in own]
    lasts = [h + 1 for h in own if h + 1 not in own]
    parts = [x[:, first:last] for first, last in zip(firsts, lasts, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _kind(keys: KeySet) -> str:
    return "dense" if isinstance(keys, Dense) else "sparse" if isinstance(keys, PAPER) else "tiled"


def _one_kind(
    q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], kind: str, taken: str, scale: float, span: Span
) -> Tensor:
    if kind == "dense":
        return _dense(q, k, v, scale)
    computed: Literal["triton", "torch"] = "triton" if taken == "triton" else "torch"
    if taken == "sdpa":  # dense heads behind a cache
        computed = "triton" if q.device.type == "cuda" and triton_problem(q.device) is None else "torch"
    if kind == "tiled":
        return tiled_attention(q, k, v, layer, computed, scale, *span)
    if computed == "triton":
        from src.attention.triton import sparse_attention

        out: Tensor = sparse_attention(q, k, v, layer, scale)
        return out
    return factorized_attention(q, k, v, layer, scale)


def _for_each_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat shared keys and values for every head of the queries."""
    ratio = q.shape[1] // k.shape[1]
    return k.repeat_interleave(ratio, 1), v.repeat_interleave(ratio, 1)


def _dense(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    shared = k.shape[1] != q.shape[1]
    if q.device.type != "cuda":
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=shared)
    if shared and q.dtype not in (torch.float16, torch.bfloat16):  # O(n²) otherwise: of others only cuDNN and flash can
        k, v = _for_each_head(q, k, v)
        shared = False
    with sdpa_kernel(_DENSE_ORDER, set_priority=True):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=shared)
