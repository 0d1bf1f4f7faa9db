"""One query against the cache gives what the whole sequence gives, for every pattern, mode and length."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.attention import Column, Dense, Fixed, OwnBlock, Pattern, Strided, Summary, Window
from src.attention.decode import LayerCache, head_layout
from src.attention.other_key_sets import Local, Logarithmic
from src.attention.patterns import shared_layer
from src.attention.reference import reference_attention

HEADS = 4
SETS = [Dense(), Window(5), Column(5), Strided(5), OwnBlock(6), Summary(6, 2), Summary(6, 2, 2), Fixed(6, 3, 1)]
OTHERS = [Local(4), Local(4, dilation=3), Logarithmic(3)]
PATTERNS = [Pattern("dense")] + [
    Pattern(name, 6, 2, mode, distinct)
    for name, mode, distinct in itertools.product(
        ("strided", "fixed"), ("merged", "interleaved", "multihead"), (True, False)
    )
    if name == "fixed" or distinct
]


def draw(n: int, dtype: torch.dtype = torch.float64, kv_heads: int = HEADS) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values of unlike widths, two sequences."""
    return tuple(
        torch.randn(2, heads, n, width, dtype=dtype) for heads, width in ((HEADS, 4), (kv_heads, 4), (kv_heads, 8))
    )


def decoded(layer, q, k, v, prefilled: int, n: int | None = None) -> torch.Tensor:
    """Positions from ``prefilled`` on, one by one."""
    length = q.shape[2]
    cache = LayerCache(layer, 2, n or length, 4, 8, q.dtype, q.device, k.shape[1])
    for x in (cache.keys, cache.values):
        x.fill_(3e4)  # a slot that is read before it is written shows at once
    cache.fill(k[:, :, :prefilled], v[:, :, :prefilled])
    steps = [cache.attend(q[:, :, t], k[:, :, t], v[:, :, t], t, 0.5) for t in range(prefilled, length)]
    return torch.stack(steps, dim=2)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_decoding_is_the_whole_sequence_position_by_position(pattern, block):
    layer = pattern.layer(HEADS, block)
    q, k, v = draw(29)
    wanted = reference_attention(q, k, v, layer, 0.5)
    for prefilled in (0, 1, 5, 6, 7, 17, 18, 28):
        torch.testing.assert_close(decoded(layer, q, k, v, prefilled), wanted[:, :, prefilled:])


@settings(deadline=None, max_examples=60)
@given(
    keys=st.sampled_from(SETS), n=st.integers(1, 40), spare=st.integers(0, 13), share=st.floats(0, 1, exclude_max=True)
)
def test_any_length_and_prompt(keys, n, spare, share):
    """The cache may be made for more positions than are decoded."""
    layer = (keys,) * HEADS
    q, k, v = draw(n)
    prefilled = int(share * n)
    wanted = reference_attention(q, k, v, layer, 0.5)[:, :, prefilled:]
    torch.testing.assert_close(decoded(layer, q, k, v, prefilled, n + spare), wanted)


@settings(deadline=None, max_examples=80)
@given(
    layer=st.lists(st.sampled_from([*SETS, *OTHERS]), min_size=HEADS, max_size=HEADS),
    kv_heads=st.sampled_from([1, 2]), n=st.integers(1, 40), share=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_any_heads_may_share_keys(layer, kv_heads, n, share):
    q, k, v = draw(n, kv_heads=kv_heads)
    prefilled = int(share * n)
    wanted = reference_attention(q, k, v, tuple(layer), 0.5)[:, :, prefilled:]
    torch.testing.assert_close(decoded(tuple(layer), q, k, v, prefilled), wanted)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_that_share_keys_share_their_memory(kv_heads):
    """Fewer bytes by the ratio; heads of unlike sub-blocks keep the cells of each, so equal ones are put together."""

    def kept(pattern: Pattern, kv_heads: int | None = None) -> int:
        layer = shared_layer(pattern, HEADS, kv_heads)
        return LayerCache(layer, 2, 96, 4, 8, torch.float16, torch.device("cpu"), kv_heads).nbytes

    for pattern in PATTERNS:
        if pattern.mode != "multihead" and not (pattern.name == "fixed" and pattern.distinct):
            assert kept(pattern) == kept(pattern, kv_heads) * HEADS // kv_heads, pattern
    two_kinds = Pattern("fixed", 6, 3)  # and two sub-blocks
    assert kept(two_kinds) == kept(two_kinds, kv_heads) * HEADS // max(2, kv_heads)
    assert kept(Pattern("dense"), kv_heads) == 2 * kv_heads * 96 * (4 + 8) * 2


@given(keys=st.sampled_from(SETS), n=st.integers(1, 60))
def test_reads_are_the_key_set_and_slots_never_mix(keys, n):
    """Follow which position each slot holds: a query reads just the positions it sees, each once."""
    head = head_layout(keys, n)
    holds: dict[int, int] = {}
    for t in range(n):
        for slot in head.writes(t):
            assert 0 <= slot < head.capacity
            holds[slot] = t
        reads = head.reads(t)
        found = [holds[slot] for slot in (*reads.run, *reads.column)]
        assert sorted(found) == [j for j in range(t + 1) if keys.sees(t, j)]


@given(keys=st.sampled_from(SETS), n=st.integers(1, 60), share=st.floats(0, 1))
def test_filling_at_once_is_writing_one_by_one(keys, n, share):
    head, done = head_layout(keys, n), int(share * n)
    holds: dict[int, int] = {}
    for t in range(done):
        holds.update(dict.fromkeys(head.writes(t), t))
    positions, slots = head.kept(done)
    at_once = dict(zip(slots.tolist(), positions.tolist(), strict=True))
    assert at_once.items() <= holds.items()
    for t in range(done, n):  # and what was left out is never read before it is written again
        for layout in (holds, at_once):
            layout.update(dict.fromkeys(head.writes(t), t))
        reads = head.reads(t)
        assert all(at_once[slot] == holds[slot] for slot in (*reads.run, *reads.column))


def test_the_cache_keeps_only_what_can_be_reached():
    """At the paper's enwik8 shape: a dense head keeps 12,288 positions, a fixed one 3.8 times fewer."""
    sizes = {keys.name: head_layout(keys, 12_288).capacity for keys in (Dense(), Strided(128), Fixed(128, 32))}
    assert sizes == {"dense": 12_288, "strided": 12_288, "fixed": 128 + 95 * 32}
    assert head_layout(Window(128), 12_288).capacity == 129
    assert head_layout(OwnBlock(128), 12_288).capacity == 128
    assert head_layout(Summary(128, 32), 12_288).capacity == 96 * 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_short_types_are_computed_in_fp32(dtype):
    """Products of 300 * 300 * 4 are beyond fp16; the only error left is that of rounding the result once."""
    layer = (Strided(5),) * HEADS
    q, k, v = (x * scale for x, scale in zip(draw(23, torch.float32), (300, 300, 1), strict=True))
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    wanted = reference_attention(q.double(), k.double(), v.double(), layer, 0.5)
    found = decoded(layer, q, k, v, 0).double()
    assert ((found - wanted).abs() <= torch.finfo(dtype).eps / 2 * wanted.abs() + 1e-3).all()


def test_cost_of_a_step_does_not_grow_with_the_sequence():
    """Bytes that one late step of strided attention allocates: those of the pattern row, not of 16,384 positions."""
    cache = LayerCache((Strided(128),), 1, 16_384, 8, 8, torch.float32, torch.device("cpu"))
    q, k, v = (torch.randn(1, 1, 8) for _ in range(3))
    with torch.profiler.profile(profile_memory=True) as profile:
        cache.attend(q, k, v, 16_383, 0.5)
    assert max(event.cpu_memory_usage for event in profile.events()) <= 256 * 8 * 4


def test_a_position_beyond_the_cache_is_refused():
    cache = LayerCache((Dense(),), 1, 4, 8, 8, torch.float32, torch.device("cpu"))
    with pytest.raises(IndexError, match="positions 0 to 3, found 4"):
        cache.attend(*(torch.zeros(1, 1, 8) for _ in range(3)), 4, 1.0)
