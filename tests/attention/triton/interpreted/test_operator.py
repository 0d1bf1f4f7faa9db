"""The operator: registration, compilation, recomputation, autocast, FLOP count, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton")

from src.attention.key_sets import Dense, Fixed
from src.attention.patterns import Pattern
from src.attention.triton import sparse_attention, sparse_attention_packed
from src.attention.triton.operator import decode, encode

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there: see tests/gpu")

LAYER = Pattern("fixed", 16, 4).layer(2)


def packed() -> torch.Tensor:
    return torch.randn(1, 40, 2 * 48, requires_grad=True)


def test_opcheck() -> None:
    q, k, v = (torch.randn(1, 40, 2, 16).transpose(1, 2).requires_grad_() for _ in range(3))
    torch.library.opcheck(torch.ops.sparse_transformer.attention.default, (q, k, v, encode(LAYER), 0.25))
    torch.library.opcheck(
        torch.ops.sparse_transformer.attention_packed.default, (packed(), encode(LAYER), 16, 16, 0.25)
    )


def test_opcheck_of_shared_keys() -> None:
    q, k, v = (torch.randn(1, 40, heads, 16).transpose(1, 2).requires_grad_() for heads in (2, 1, 1))
    torch.library.opcheck(torch.ops.sparse_transformer.attention.default, (q, k, v, encode(LAYER), 0.25))
    fused = torch.randn(1, 40, 2 * 16 + 32, requires_grad=True)
    torch.library.opcheck(torch.ops.sparse_transformer.attention_packed.default, (fused, encode(LAYER), 16, 16, 0.25))


def test_compiles_without_graph_break_and_recomputes() -> None:
    fused = packed()

    def attend(x: torch.Tensor) -> torch.Tensor:
        return sparse_attention_packed(x * 1, LAYER, 16, 16)

    def gradient(out: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(out.square().sum(), fused)[0]

    plain = gradient(attend(fused))
    assert torch.equal(plain, gradient(torch.compile(attend, fullgraph=True, backend="aot_eager")(fused)))
    assert torch.equal(plain, gradient(checkpoint(attend, fused, use_reentrant=False)))


def test_autocast_casts_the_inputs() -> None:
    q, k, v = (torch.randn(1, 2, 20, 16) for _ in range(3))
    with torch.autocast("cpu", torch.float16):
        assert sparse_attention(q, k, v, LAYER).dtype == torch.float16


def test_flops_are_those_of_the_kept_pairs() -> None:
    q, k, v = (torch.randn(3, 2, 40, 16, requires_grad=True) for _ in range(3))
    pairs = 3 * sum(keys.pairs(40) for keys in LAYER)
    with FlopCounterMode(display=False) as counter:
        out = sparse_attention(q, k, v, LAYER)
    assert counter.get_total_flops() == 2 * pairs * 32
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * pairs * (3 * 16 + 2 * 16)


def test_output_is_laid_out_for_the_projection() -> None:
    q, k, v = (torch.randn(2, 2, 20, 16) for _ in range(3))
    assert sparse_attention(q, k, v, LAYER).transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    "pattern", [Pattern("strided", 7, mode="multihead"), Pattern("fixed", 96, 24), Pattern("fixed", 8, 8)]
)
def test_a_layer_survives_its_encoding(pattern: Pattern) -> None:
    layer = pattern.layer(5)
    assert decode(tuple(encode(layer))) == layer


def test_refusals_are_sentences() -> None:
    x = torch.randn(1, 2, 20, 16)
    with pytest.raises(ValueError, match="3 heads, q has 2"):
        sparse_attention(x, x, x, (Fixed(16, 4),) * 3)
    with pytest.raises(ValueError, match="dense attention is PyTorch's"):
        sparse_attention(x, x, x, (Dense(),) * 2)
    with pytest.raises(ValueError, match="float64"):
        sparse_attention(x.double(), x.double(), x.double(), LAYER)
    with pytest.raises(ValueError, match="at most 128 wide"):
        sparse_attention(*(torch.randn(1, 2, 20, 160) for _ in range(3)), LAYER)
    with pytest.raises(ValueError, match="scale must be above 0"):
        sparse_attention(x, x, x, LAYER, scale=-1.0)
    with pytest.raises(ValueError, match="qkv must be"):
        sparse_attention_packed(torch.randn(1, 20, 97), LAYER, 16, 16)
    with pytest.raises(ValueError, match="a divisor of those of q"):
        sparse_attention(torch.randn(1, 4, 20, 16), *(torch.randn(1, 3, 20, 16) for _ in range(2)), LAYER * 2)
