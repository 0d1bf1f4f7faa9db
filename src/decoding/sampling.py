"""Generation, byte by byte, with caches (``src.decoding.decoder``)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.decoding.cuda_graph import GraphedDecoder
from src.decoding.decoder import DecodeBackend, Decoder
from src.models.sparse_transformer import SparseTransformer

Tick = Callable[[int], None]
TICK_EVERY = 32  # bytes between two looks at the clock where steps are graphs


@dataclass(frozen=True)
class Draw:
    """How a byte is drawn from the model's distribution.

    Args:
        temperature: logits are divided by it; 1.0 is the model's own distribution, 0 always takes the likeliest byte.
        top_k: only the k likeliest bytes; None for all.
        top_p: of those, the fewest likeliest that together have at least this probability; 1.0 for all.
        seed: row b of a batch draws with numbers of its own, a function of (seed, b) alone.

    Raises:
        ValueError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, found {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, found {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, found {self.top_p}")

    def uniforms(self, rows: int, count: int) -> Tensor:
        """All random numbers of a generation, drawn beforehand: (rows, count) float32 in [0, 1), on the CPU."""
        drawn = [np.random.default_rng([self.seed, row]).random(count, dtype=np.float32) for row in range(rows)]
        return torch.from_numpy(np.stack(drawn))

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Draw one byte a row by inverting the distribution function; nothing here waits for the device.

        Args:
            logits: (B, 256), float32 or float64.
            uniform: (B,) in [0, 1).

        Returns:
            (B,) int64.
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        probability = torch.softmax(logits / self.temperature, dim=-1)
        order = None
        if self.top_k is not None or self.top_p < 1:
            probability, order = probability.sort(dim=-1, descending=True, stable=True)
            probability = self._filtered(probability)
        total = probability.cumsum(-1)
        # at or below: a byte of probability 0 is never drawn, not even by u = 0
        drawn = (total <= uniform[:, None].to(total.dtype) * total[:, -1:]).sum(-1)
        # rounding of the sums must not lead beyond the last byte that may be drawn
        drawn = drawn.clamp(max=255) if order is None else torch.minimum(drawn, (probability > 0).sum(-1) - 1)
        return drawn if order is None else order.gather(-1, drawn[:, None])[:, 0]

    def _filtered(self, probability: Tensor) -> Tensor:
        if self.top_k is not None:
            rank = torch.arange(probability.shape[-1], device=probability.device)
            probability = probability.masked_fill(rank >= self.top_k, 0.0)
            probability = probability / probability.sum(-1, keepdim=True)
        before = probability.cumsum(-1) - probability
        return probability.masked_fill(before >= self.top_p, 0.0)


@torch.no_grad()
def generate(
    model: SparseTransformer,
    prompt: Tensor,
    count: int,
    draw: Draw | None = None,
    *,
    dtype: torch.dtype | None = None,
    backend: DecodeBackend = "auto",
    seconds: float | None = None,
    tick: Tick | None = None,
) -> Tensor:
    """Draw bytes behind each prompt.

    Args:
        model: in whatever mode it is; dropout is off, and neither it nor PyTorch's random state changes.
        prompt: (B, P) bytes of any integer dtype, P may be 0.
        count: bytes to draw for each row; P + count must not exceed the model's context.
        draw: how; from the model's own distribution by default.
        dtype: of activations and caches, see ``Decoder``.
        backend: see ``Decoder``.
        seconds: stop after about so long, with fewer bytes; None for no limit.
        tick: told after each byte how many have been drawn for each row.

    Returns:
        (B, P + count) uint8 on the prompt's device, or fewer columns where time ran out.

    Raises:
        ValueError: more bytes than the context holds.
    """
    rows, given = prompt.shape
    if given + count > model.context:
        raise ValueError(f"prompt and sample must fit the context of {model.context}, found {given} + {count} bytes")
    draw = draw or Draw()
    x = torch.cat([prompt.to(torch.uint8), prompt.new_zeros((rows, count), dtype=torch.uint8)], dim=1)
    if not count:
        return x
    uniforms = draw.uniforms(rows, count).to(x.device)
    stop = None if seconds is None else time.monotonic() + seconds
    decoder = Decoder(model, rows, given + count, dtype, backend)
    decoder.prefill(x[:, :given])
    if decoder.backend == "triton":
        return _by_graph(decoder, x, given, draw, uniforms, stop, tick)
    for position in range(given, given + count):
        logits = decoder.step(x[:, position - 1] if position else None)
        x[:, position] = draw(logits, uniforms[:, position - given]).to(torch.uint8)
        if tick is not None:
            tick(position + 1 - given)
        if stop is not None and time.monotonic() > stop:
            return x[:, : position + 1]
    return x


def graphed(decoder: Decoder, x: Tensor, given: int, draw: Draw, uniforms: Tensor) -> GraphedDecoder:
    """Bind the drawing of bytes to a step that runs on the device alone.

    Args:
        decoder: after its prefill of the first ``given`` bytes.
        x: (B, N) bytes with N the decoder's length; those from ``given`` on are yet to be drawn.
        given: bytes of the prompt.
        draw: how a byte is drawn.
        uniforms: (B, N - given) on the device.
    """
    tokens = torch.cat([x.new_full((len(x), 1), 0, dtype=torch.int64), x.long()], dim=1)
    tokens[:, 0] = decoder.model.embedding.start
    return GraphedDecoder(
        decoder, tokens, lambda logits, position: draw(logits, uniforms.index_select(1, position - given)[:, 0])
    )


def _by_graph(
    decoder: Decoder, x: Tensor, given: int, draw: Draw, uniforms: Tensor, stop: float | None, tick: Tick | None
) -> Tensor:
    """Draw without waiting for the GPU but every so many bytes, to tell how far it is."""
    step = graphed(decoder, x, given, draw, uniforms)
    count = x.shape[1] - given
    for done in range(1, count + 1):
        step.step()
        if done % TICK_EVERY == 0 or done == count:
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            if tick is not None:
                tick(done)
            if stop is not None and time.monotonic() > stop:
                break
    return step.tokens[:, 1 : 1 + given + done].to(torch.uint8)


def as_text(sample: Tensor) -> str:
    """Read bytes as UTF-8; what is no valid UTF-8 shows as the replacement character."""
    return bytes(sample.tolist()).decode("utf-8", errors="replace")
