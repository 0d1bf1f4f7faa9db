"""A decoding step whose position lives on the device, so that one CUDA graph serves every byte of a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from src.decoding.decoder import Decoder
from src.decoding.tiles import gpu_of
from src.models.options import EPS


class GraphedDecoder:
    """Steps of a ``Decoder`` by Triton kernels; nothing in a step waits for the device.

    Args:
        decoder: whose weights and caches are used, after its prefill.
        tokens: (B, 1 + N) int64 with N the decoder's length: the start symbol and the bytes; row t is the input of
            position t.
        choose: draws (B,) bytes from (B, 256) float32 logits and the position, a (1,) int64 tensor.

    Attributes:
        stride: positions from a step to the next; above 1 to measure, since no byte is drawn for those left out.
    """

    def __init__(self, decoder: Decoder, tokens: Tensor, choose: Callable[[Tensor, Tensor], Tensor]) -> None:
        # late, as everything that needs Triton: it exists for Linux only
        from src.attention.triton.decode import head_table, row_shares

        self.decoder, self.tokens, self.choose = decoder, tokens, choose
        device, batch, model = decoder.device, decoder.batch, decoder.model
        self.gpu, self.stride = gpu_of(device), 1
        self.position = torch.tensor([decoder.position], device=device)
        embedding = model.embedding
        self.token_table = embedding.token.weight.detach()
        tables = [table.weight.detach() for table in cast(Any, embedding.position)]
        self.position_table = torch.cat(tables) if tables else self.token_table[:0]
        first = torch.tensor([0, *map(len, tables)][: len(tables)], dtype=torch.int64, device=device).cumsum(0)
        self.coordinates = (embedding.coordinates[:, : decoder.length] + first[:, None]).contiguous()
        self.turns = None if model.rotary is None else model.rotary.table.float()
        width = self.token_table.shape[1]
        self.hidden = torch.empty(batch, width, device=device)
        self.logits = torch.empty(batch, model.output.out_features, device=device)
        self.tables = [head_table(cache.layout, device) for cache in decoder.caches]
        weights = decoder.weights[0]
        heads, (_, v_width) = len(weights.layer), weights.head_widths
        self.shares = [row_shares(batch * heads, cache.layout.most_reads(decoder.length)) for cache in decoder.caches]
        shares = batch * heads * max(self.shares)
        self.partial = torch.empty(shares * v_width, device=device)
        self.lse = torch.empty(shares, device=device)
        self.attended = torch.empty(batch, heads * v_width, dtype=decoder.dtype, device=device)
        self.qkv = torch.empty(batch, sum(weights.widths), dtype=decoder.dtype, device=device)
        self.inner = torch.empty(batch, len(weights.expand[0]), dtype=decoder.dtype, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def predict(self) -> Tensor:
        """Logits of ``position``, (B, 256) float32, always in the same memory."""
        from src.decoding.kernels import embed, linear

        decoder, hidden, gpu = self.decoder, self.hidden, self.gpu
        embed(
            self.tokens, self.token_table, self.position_table, self.coordinates, self.position, hidden,
            decoder.length, gpu,
        )  # fmt: skip
        for layer, weights in enumerate(decoder.weights):
            linear(hidden, *weights.project_in, self.qkv, norm=weights.attention_norm, gpu=gpu)
            self.attend(layer)
            linear(self.attended, *weights.project_out, hidden, add=True, gpu=gpu)
            linear(hidden, *weights.expand, self.inner, norm=weights.feed_forward_norm, act=weights.activation, gpu=gpu)
            linear(self.inner, *weights.contract, hidden, add=True, gpu=gpu)
        linear(hidden, decoder.output, None, self.logits, norm=decoder.norm, gpu=gpu)
        return self.logits

    def attend(self, layer: int) -> None:
        """Attend in one layer, from ``qkv`` into ``attended``."""
        from src.attention.triton.decode import launch

        weights, cache, shares = self.decoder.weights[layer], self.decoder.caches[layer], self.shares[layer]
        rows = self.decoder.batch * len(weights.layer) * shares
        lse = self.lse[:rows].view(self.decoder.batch, -1, shares)
        partial = self.partial[: rows * cache.values.shape[-1]].view(*lse.shape, -1)
        launch(
            self.qkv, cache.keys, cache.values, partial, lse, self.attended, self.tables[layer], self.position,
            weights.scale, turns=self.turns, norm=weights.qk_norm, eps=EPS,
            overlap=self.gpu.overlap,
        )  # fmt: skip

    @torch.no_grad()
    def _advance(self) -> None:
        drawn = self.choose(self.predict(), self.position)
        self.position += self.stride
        self.tokens.index_copy_(1, self.position, drawn[:, None])

    def step(self) -> None:
        """Draw the byte at ``position`` into ``tokens`` and move on; on a GPU a graph is replayed."""
        if self.decoder.position >= self.decoder.length:
            raise IndexError(f"the decoder is for {self.decoder.length} positions, and all are done")
        if self.decoder.device.type == "cuda":
            if self.graph is None:
                self.graph = self._captured()
            self.graph.replay()
        else:
            self._advance()
        self.decoder.position += self.stride

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Capture a step. The trial steps before it write at the present position alone, which the first replay does
        again."""
        start = self.position.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._advance()
                self.position.copy_(start)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        return graph
