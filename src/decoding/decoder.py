"""A trained network that goes on one byte at a time, each layer with the cache that its pattern needs."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from src.attention.backends import attend, triton_problem
from src.attention.decode import LayerCache
from src.attention.key_sets import PAPER, Dense
from src.models.options import EPS, Activation, BlockOptions
from src.models.residual_block import activated
from src.models.rotary import turn
from src.models.sparse_transformer import SparseTransformer

DecodeBackend = Literal["auto", "triton", "torch"]
PREFILL_POSITIONS = 1 << 17  # of all sequences that go through the network at once: bounds the memory of a prefill


class Norm(NamedTuple):
    """Layer norm with its weight and bias (width,), each of which may be absent, or RMS norm without weights."""

    weight: Tensor | None
    bias: Tensor | None
    rms: bool = False

    def of(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``x``, in its dtype."""
        if self.rms:
            return F.rms_norm(x, x.shape[-1:], eps=EPS)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, EPS)


class Weights:
    """One residual block's weights: matrices in the activation type, norms in the type of the residual stream."""

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        parts = cast(Any, block)
        self.layer = parts.attention.layer
        self.heads: tuple[int, int, int] = parts.attention.heads
        self.widths: tuple[int, int, int] = parts.attention.widths
        self.backend = parts.attention.backend
        self.qk_norm: float | None = parts.attention.qk_norm
        self.activation: Activation = parts.feed_forward.activation
        self.attention_norm = _norm(parts.attention_norm, parts.options)
        self.feed_forward_norm = _norm(parts.feed_forward_norm, parts.options)
        self.project_in = _linear(parts.attention.project_in, dtype)
        self.project_out = _linear(parts.attention.project_out, dtype)
        self.expand = _linear(parts.feed_forward.expand, dtype)
        self.contract = _linear(parts.feed_forward.contract, dtype)
        self.head_widths = (self.widths[0] // self.heads[0], self.widths[2] // self.heads[2])
        """Of queries and keys, and of values."""
        self.scale = 1.0 / math.sqrt(self.head_widths[0])

    def queries_keys_values(self, normed: Tensor, table: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Project ``normed`` (..., N, width) to (..., N, H, d_head) each; queries and keys are turned.

        Keys and values have fewer heads where ``model.kv_heads`` says so.

        Args:
            normed: output of the norm before attention. (B, width) does too where all are at one position.
            table: rotary positions (2, N or 1, d_head / 2), or None.
        """
        parts = F.linear(normed, *self.project_in).split(self.widths, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)) for part, heads in zip(parts, self.heads, strict=True))
        return turn(q, table, self.qk_norm), turn(k, table, self.qk_norm), v


class Decoder:
    """Steps through sequences with caches; equal to the whole forward pass to rounding.

    The weights are taken as they are now: a model that trains on needs a new decoder. Dropout is off.

    Args:
        model: the network.
        batch: sequences side by side.
        length: longest sequence, in bytes; the model's context by default.
        dtype: of activations and caches; that of the weights by default. The residual stream keeps the weights' type.
        backend: ``triton`` on a GPU alone, ``torch`` anywhere; ``auto`` takes the first where it can run.

    Raises:
        ValueError: a length beyond the context, or a backend that cannot run.
    """

    def __init__(
        self,
        model: SparseTransformer,
        batch: int,
        length: int | None = None,
        dtype: torch.dtype | None = None,
        backend: DecodeBackend = "auto",
    ) -> None:
        self.length = model.context if length is None else length
        if not 1 <= self.length <= model.context:
            raise ValueError(f"length must be from 1 to the context of {model.context}, found {length}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, found {batch}")
        self.batch = batch
        self.model = model
        weight = model.output.weight
        self.device = weight.device
        self.stream_dtype = weight.dtype
        self.dtype = weight.dtype if dtype is None else dtype
        self.weights = [Weights(block, self.dtype) for block in model.blocks]
        self.norm = _norm(model.norm, model.options)
        self.output = model.output.weight.detach().to(self.dtype)
        self.backend = resolve(backend, self)
        self.caches = [
            LayerCache(w.layer, batch, self.length, *w.head_widths, self.dtype, self.device, w.heads[1])
            for w in self.weights
        ]
        self.position = 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of all caches together."""
        return sum(cache.nbytes for cache in self.caches)

    @torch.no_grad()
    def prefill(self, prompt: Tensor) -> None:
        """Run the first P bytes through the network at once and fill the caches; ``position`` is P afterwards.

        Args:
            prompt: (B or 1, P) bytes of any integer dtype on the decoder's device; one row serves all sequences.

        Raises:
            ValueError: more bytes than the caches hold.
        """
        rows, count = prompt.shape
        if count > self.length:
            raise ValueError(f"a prompt may have at most {self.length} bytes, found {count}")
        if rows not in (1, self.batch):
            raise ValueError(f"a prompt must have 1 or {self.batch} rows, found {rows}")
        self.position = count
        if count == 0:
            return
        portion = max(1, PREFILL_POSITIONS // count)
        for first in range(0, rows, portion):
            into = slice(None) if rows == 1 else slice(first, first + portion)
            self._prefill(prompt[first : first + portion], into)

    def _prefill(self, prompt: Tensor, rows: slice) -> None:
        with torch.autocast(self.device.type, enabled=False):
            hidden = self.model.embedding(prompt)
            table = self._turns(0, prompt.shape[1])
            for weights, cache in zip(self.weights, self.caches, strict=True):
                found = weights.queries_keys_values(self._normed(hidden, weights.attention_norm), table)
                q, k, v = (part.transpose(1, 2) for part in found)
                cache.fill(k, v, rows)  # turned keys: later steps turn none but their own
                out = attend(q, k, v, weights.layer, weights.backend, weights.scale)
                hidden = hidden + F.linear(out.transpose(1, 2).flatten(2), *weights.project_out)
                hidden = hidden + self._feed_forward(hidden, weights)

    @torch.no_grad()
    def step(self, byte: Tensor | None) -> Tensor:
        """Predict the byte at ``position`` from all before it, and move on by one.

        Args:
            byte: (B,) the byte at ``position - 1``; None at position 0.

        Returns:
            (B, 256) logits, float32 at least.

        Raises:
            IndexError: a position beyond ``length``.
        """
        if self.position >= self.length:
            raise IndexError(f"the decoder is for {self.length} positions, and all are done")
        embedding = self.model.embedding
        start = torch.full((self.batch,), embedding.start, device=self.device)
        symbol = start if self.position == 0 else cast(Tensor, byte).long()
        with torch.autocast(self.device.type, enabled=False):
            hidden: Tensor = embedding.token(symbol)
            for table, at in zip(embedding.position, embedding.coordinates[:, self.position], strict=True):
                hidden = hidden + table(at)
            turns = self._turns(self.position, self.position + 1)
            for weights, cache in zip(self.weights, self.caches, strict=True):
                hidden = self._block(hidden, weights, cache, turns)
            logits = F.linear(self._normed(hidden, self.norm), self.output)
        self.position += 1
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _turns(self, first: int, last: int) -> Tensor | None:
        """Rotary positions ``first`` to ``last - 1``, if there are any."""
        return None if self.model.rotary is None else self.model.rotary(first, last)

    def _block(self, hidden: Tensor, weights: Weights, cache: LayerCache, table: Tensor | None) -> Tensor:
        q, k, v = weights.queries_keys_values(self._normed(hidden, weights.attention_norm), table)
        out = cache.attend(q, k, v, self.position, weights.scale)
        hidden = hidden + F.linear(out.flatten(1), *weights.project_out)
        return hidden + self._feed_forward(hidden, weights)

    def _feed_forward(self, hidden: Tensor, weights: Weights) -> Tensor:
        inner = F.linear(self._normed(hidden, weights.feed_forward_norm), *weights.expand)
        return F.linear(activated(inner, weights.activation), *weights.contract)

    def _normed(self, hidden: Tensor, norm: Norm) -> Tensor:
        return norm.of(hidden).to(self.dtype)


def resolve(name: DecodeBackend, decoder: Decoder) -> str:
    """Say which backend a decoder takes: ``triton`` or ``torch``.

    Raises:
        ValueError: an unknown one, or ``triton`` where it cannot run.
    """
    if name not in get_args(DecodeBackend):
        raise ValueError(f"backend must be one of {', '.join(get_args(DecodeBackend))}, found {name!r}")
    problem = triton_problem(decoder.device)
    if problem is None and decoder.dtype == torch.float64:
        problem = "the Triton kernels take bf16, fp16 or fp32, found torch.float64"
    if problem is None and any(not isinstance(keys, (Dense, *PAPER)) for w in decoder.weights for keys in w.layer):
        problem = "the decoding kernels take the paper's key sets alone"
    if name == "triton" and problem is not None:
        raise ValueError(f"backend triton is not available: {problem}; use torch or auto")
    if name == "auto":
        return "triton" if problem is None and decoder.device.type == "cuda" else "torch"
    return name


def _norm(norm: nn.Module, options: BlockOptions) -> Norm:
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    return Norm(_detached(weight), _detached(bias), options.norm == "rms")


def _linear(linear: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return linear.weight.detach().to(dtype), _detached(linear.bias, dtype)


def _detached(weight: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    return None if weight is None else weight.detach().to(dtype or weight.dtype)
