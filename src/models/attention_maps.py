"""What a trained network attends to: the attention weights of a few queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from src.attention import KeySet
from src.attention.learned import Learned
from src.models.residual_block import ResidualBlock
from src.models.sparse_transformer import SparseTransformer


@torch.no_grad()
def attention_weights(
    model: SparseTransformer, x: Tensor, queries: Tensor, documents: Tensor | None = None
) -> list[Tensor]:
    """Compute the attention weights of some positions in every block and head, from the network's own q and k.

    Position t predicts byte t and holds byte t - 1 (the start symbol at 0); so does key position j. Memory and time are
    O(N) a query; no (N, N) matrix is made. The network is put in evaluation mode for the time of the call.

    Args:
        model: the network.
        x: (N,) bytes of any integer dtype.
        queries: (Q,) int64 positions below N.
        documents: (N,) int32, the position at which the document of each position begins; None: ``x`` is one.

    Returns:
        One float32 tensor (H, Q, N) a block: rows sum to 1 and are 0 outside the head's key set; a row without any key
        is all 0.
    """
    training = model.training
    model.eval()
    try:
        first = None if documents is None else documents[None].to(x.device)
        hidden = model.embedding(x[None], first)
        table = None if model.rotary is None else model.rotary(0, len(x))
        weights = []
        for block in model.blocks:
            assert isinstance(block, ResidualBlock)
            weights.append(_block_weights(block, hidden, queries.to(x.device), table, first))
            # not block(...): its hooks would call for FSDP2's other ranks
            hidden = block.forward(hidden, table=table, first=first)
    finally:
        model.train(training)
    return weights


def learned_attention(
    model: SparseTransformer, x: Tensor, query: int, blocks: Sequence[int], heads: Sequence[int],
    documents: Tensor | None = None,
) -> Learned:  # fmt: skip
    """Compute what some blocks and heads attend to when byte ``query`` is predicted, for ``draw_learned``.

    Args:
        model: the network.
        x: (N,) bytes of any integer dtype, on any device; only those before ``query`` matter.
        query: position below N.
        blocks: numbers of the residual blocks, from 0.
        heads: numbers of the heads, from 0.
        documents: (N,) int32, as in ``attention_weights``.
    """
    documents = None if documents is None else documents[: query + 1]
    found = attention_weights(model, x[: query + 1].to(model.output.weight.device), torch.tensor([query]), documents)
    weights = torch.stack([found[block][list(heads), 0] for block in blocks])
    names = []
    for block in blocks:
        layer = cast(ResidualBlock, model.blocks[block]).attention.layer
        names.append([layer[head].name for head in heads])
    return Learned(query, weights.cpu().numpy(), blocks, heads, names)


def _block_weights(
    block: ResidualBlock, hidden: Tensor, queries: Tensor, table: Tensor | None, first: Tensor | None
) -> Tensor:
    attention = block.attention
    q, k, _ = attention.queries_keys_values(block.attention_norm(hidden), table)
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)  # heads that share keys
    scores = torch.einsum("qhd,nhd->hqn", q[0, queries].float(), k[0].float()) / math.sqrt(q.shape[-1])
    first = torch.zeros_like(queries) if first is None else first[0, queries]
    return torch.stack([_softmax(s, keys, queries, first) for s, keys in zip(scores, attention.layer, strict=True)])


def _softmax(scores: Tensor, keys: KeySet, queries: Tensor, first: Tensor) -> Tensor:
    """Softmax over the key set of each query from its first key on: ``scores`` and the result are (Q, N)."""
    j = torch.arange(scores.shape[-1], device=scores.device)[None, :]
    seen = keys.sees(queries[:, None], j) & (j <= queries[:, None]) & (j >= first[:, None])
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0.0)
