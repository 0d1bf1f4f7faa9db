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
    check(pattern.layer(HEADS, block), splits)


@pytest.mark.parametrize(
    ("pattern", "kv_heads", "splits"),
    [
        (Pattern("dense"), 1, 3), (Pattern("strided", 6), 2, 1), (Pattern("fixed", 6, 2), 1, 1),
        (Pattern("fixed", 6, 2, distinct=False), 2, 3), (Pattern("fixed", 6, 2, "multihead"), 1, 1),
    ],
    ids=str,
)  # fmt: skip
def test_heads_that_share_keys(pattern, kv_heads, splits):
    check(pattern.layer(HEADS), splits, kv_heads)


def check(layer, splits, kv_heads=HEADS):
    torch.manual_seed(0)
    n, qk, v = 100, 20, 24
    caches = [LayerCache(layer, 2, n, qk, v, torch.float32, torch.device("cpu"), kv_heads) for _ in range(2)]
    table = head_table(caches[0].layout, torch.device("cpu"))
    before = 71  # and 8 positions: the beginnings of two blocks, and two columns twice
    k, value = torch.randn(2, kv_heads, before, qk), torch.randn(2, kv_heads, before, v)
    for cache in caches:
        cache.fill(k, value)
    for t in range(before, before + 8):
        qkv = torch.randn(2, HEADS * qk + kv_heads * (qk + v))
        own, *shared = qkv.split([HEADS * qk, kv_heads * qk, kv_heads * v], -1)
        q, (new_k, new_v) = own.unflatten(-1, (HEADS, -1)), (x.unflatten(-1, (kv_heads, -1)) for x in shared)
        wanted = caches[0].attend(q, new_k, new_v, t, 0.3)
        partial, lse = torch.full((2, HEADS, splits, v), torch.nan), torch.full((2, HEADS, splits), torch.nan)
        out = torch.full((2, HEADS * v), torch.nan)
        launch(qkv, caches[1].keys, caches[1].values, partial, lse, out, table, torch.tensor([t]), 0.3)
        torch.testing.assert_close(out.view(2, HEADS, v), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(caches[0].keys, caches[1].keys)
    assert torch.equal(caches[0].values, caches[1].values)
