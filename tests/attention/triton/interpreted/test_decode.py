"""The decoding kernel against the plain cache, through the interpreter."""

import pytest
import torch

from src.attention import Pattern
from src.attention.decode import LayerCache
from src.attention.triton.decode import head_table, launch

HEADS = 4
PATTERNS = [Pattern("dense")] + [
    Pattern(name, 6, 2, mode) for name in ("strided", "fixed") for mode in ("merged", "interleaved", "multihead")
]


@pytest.mark.parametrize(("block", "splits"), [(0, 3), pytest.param(1, 1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "pattern",
    [pytest.param(found, marks=pytest.mark.slow if found.mode == "interleaved" else ()) for found in PATTERNS],
    ids=str,
)
def test_decoding_kernel_equals_the_plain_cache(pattern, block, splits):
    torch.manual_seed(0)
    layer, n, qk, v = pattern.layer(HEADS, block), 100, 20, 24
    caches = [LayerCache(layer, 2, n, qk, v, torch.float32, torch.device("cpu")) for _ in range(2)]
    table = head_table(caches[0].layout, torch.device("cpu"))
    before = 71  # and 8 positions: the beginnings of two blocks, and two columns twice
    k, value = torch.randn(2, HEADS, before, qk), torch.randn(2, HEADS, before, v)
    for cache in caches:
        cache.fill(k, value)
    for t in range(before, before + 8):
        qkv = torch.randn(2, HEADS * (2 * qk + v))
        q, new_k, new_v = (x.unflatten(-1, (HEADS, -1)) for x in qkv.split([HEADS * qk, HEADS * qk, HEADS * v], -1))
        wanted = caches[0].attend(q, new_k, new_v, t, 0.3)
        partial, lse = torch.full((2, HEADS, splits, v), torch.nan), torch.full((2, HEADS, splits), torch.nan)
        out = torch.full((2, HEADS * v), torch.nan)
        launch(qkv, caches[1].keys, caches[1].values, partial, lse, out, table, torch.tensor([t]), 0.3)
        torch.testing.assert_close(out.view(2, HEADS, v), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(caches[0].keys, caches[1].keys)
    assert torch.equal(caches[0].values, caches[1].values)
