"""Check attention results of any length against float64, with no n*n memory.

Up to 16k positions one head is computed whole, a slice of queries at a time. Beyond that 256 sampled queries check the
output and dq, and 256 sampled keys dk and dv; the normaliser of every query comes from slices as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scripts.bench.attention_rows import Problem
from src.attention.key_sets import KeySet

WHOLE = 16_384  # up to this length every row is checked
SAMPLES = 256
SLICE = 2**27  # scores in memory at a time


def worst_error(p: Problem, out: Tensor, gradients: tuple[Tensor, ...]) -> float:
    """Largest relative error of output, dq, dk and dv, in the last head of the last sequence; infinite for NaN."""
    head = p.heads - 1
    found = [x[-1, head].double() for x in _separate(p, out, gradients)]
    q, k, v, dout = (x[-1, head].detach().double() for x in (p.q, p.k, p.values, p.dout))
    if p.n <= WHOLE:
        errors = [_error(x, y) for x, y in zip(found, _whole(q, k, v, dout, p.layer[head]), strict=True)]
    else:
        errors = _sampled(found, q, k, v, dout, p.layer[head])
    return max(float("inf") if math.isnan(error) else error for error in errors)


def _separate(p: Problem, out: Tensor, gradients: tuple[Tensor, ...]) -> list[Tensor]:
    """Output, dq, dk and dv as (batch, heads, n, width), also of a packed call."""
    if len(gradients) == 3:
        return [out, *gradients]
    widths = [p.heads * p.qk, p.heads * p.qk, p.heads * p.v]
    parts = [out, *gradients[0].split(widths, -1)]
    return [x.unflatten(-1, (p.heads, -1)).transpose(1, 2) for x in parts]


def _error(found: Tensor, true: Tensor) -> float:
    return ((found - true).norm() / true.norm()).item()


def _slices(n: int) -> list[Tensor]:
    return list(torch.arange(n, device="cuda").split(max(1, SLICE // n)))


def _probabilities(q: Tensor, k: Tensor, i: Tensor, keys: KeySet) -> tuple[Tensor, Tensor]:
    """Probabilities of the queries at ``i``, and their log-sum-exp."""
    j = torch.arange(len(k), device="cuda")
    scores = (q[i] @ k.T * q.shape[-1] ** -0.5).masked_fill(~keys.sees(i[:, None], j[None, :]), -torch.inf)
    lse = scores.logsumexp(-1)
    return torch.exp(scores - lse[:, None]), lse


def _whole(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, keys: KeySet) -> list[Tensor]:
    out, dq, dk, dv = torch.empty_like(v), torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for i in _slices(len(q)):
        p, _ = _probabilities(q, k, i, keys)
        out[i] = p @ v
        dp = dout[i] @ v.T
        ds = p * (dp - (out[i] * dout[i]).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        dq[i] = ds @ k
        dk += ds.T @ q[i]
        dv += p.T @ dout[i]
    return [out, dq, dk, dv]


def _sampled(found: list[Tensor], q: Tensor, k: Tensor, v: Tensor, dout: Tensor, keys: KeySet) -> list[float]:
    n, scale = len(q), q.shape[-1] ** -0.5
    picked = torch.randperm(n, device="cuda")[:SAMPLES]
    p, _ = _probabilities(q, k, picked, keys)
    out = p @ v
    dp = dout[picked] @ v.T
    dq = (p * (dp - (out * dout[picked]).sum(-1, keepdim=True)) * scale) @ k
    dk, dv = torch.zeros_like(k[:SAMPLES]), torch.zeros_like(v[:SAMPLES])
    for i in _slices(n):  # every query may see a picked key, so every query's normaliser and delta is needed
        whole, _ = _probabilities(q, k, i, keys)
        delta = ((whole @ v) * dout[i]).sum(-1, keepdim=True)
        p = whole[:, picked]
        ds = p * (dout[i] @ v[picked].T - delta) * scale
        dk += ds.T @ q[i]
        dv += p.T @ dout[i]
    true = [out, dq, dk, dv]
    return [_error(x[picked], y) for x, y in zip(found, true, strict=True)]
