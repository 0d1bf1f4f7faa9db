"""Attention over lists of tiles: any key set, queries behind a cache, documents, shared keys, by PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from src.attention import Column, Dense, Fixed, KeySet, OwnBlock, Strided, Summary, Window
from src.attention.backends import attend
from src.attention.tiled import parts
from src.attention.tiled.layout import Size, layout
from src.attention.tiled.loop import rows
from src.attention.tiled.masks import packed, unpacked
from src.attention.tiled.plan import Choice, plan, tables

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scattered(KeySet):
    """Pairs that follow no rule."""

    seed: int
    share: int = 5

    def sees(self, i: Any, j: Any) -> Any:
        return (i * 7919 + j * 104_729 + self.seed) % self.share == 0


@dataclass(frozen=True)
class Near(KeySet):
    """The last keys and the first ones: keys with ranges."""

    window: int
    first: int

    def sees(self, i: Any, j: Any) -> Any:
        return (i - j < self.window) | (j < self.first)

    def key_ranges(self, start: int, stop: int) -> list[tuple[int, int]]:
        return [(0, self.first), (max(self.first, start - self.window + 1), stop)]


KEY_SETS = st.one_of(
    st.builds(Scattered, st.integers(0, 1000), st.integers(1, 40)),
    st.builds(Near, st.integers(1, 40), st.integers(0, 9)),
    st.sampled_from(
        [Dense(), Window(7), Column(5), Strided(6), OwnBlock(9), Summary(8, 2, 1), Fixed(8, 4), Fixed(3, 1)]
    ),
)
SIZES = st.builds(Size, st.sampled_from([1, 4, 16]), st.sampled_from([32, 64]))


def kept(keys: KeySet, queries: int, length: int, offset: int) -> torch.Tensor:
    i, j = torch.arange(offset, offset + queries)[:, None], torch.arange(length)[None, :]
    return keys.sees(i, j) & (j <= i)


@given(keys=KEY_SETS, queries=st.integers(1, 90), length=st.integers(1, 150), offset=st.integers(0, 90), size=SIZES)
@settings(max_examples=60, deadline=None)
def test_a_layout_holds_every_kept_pair_once(keys: KeySet, queries: int, length: int, offset: int, size: Size) -> None:
    found = layout(keys, queries, length, offset, size, CPU)
    places = found.order[found.order < length]
    assert sorted(places.tolist()) == list(range(length))
    pairs = torch.zeros(queries, length, dtype=torch.int64)
    for row in rows(found, queries, length):
        pairs[row.queries] += torch.zeros_like(pairs[row.queries]).index_add_(1, row.keys, row.kept.long())
    assert torch.equal(pairs, kept(keys, queries, length, offset).long())


@given(keys=KEY_SETS, n=st.integers(1, 150), size=SIZES)
@settings(max_examples=30, deadline=None)
def test_both_sides_list_the_same_tiles(keys: KeySet, n: int, size: Size) -> None:
    found = layout(keys, n, n, 0, size, CPU)
    pairs = []
    for lists in (found.by_query, found.by_key):
        own = torch.repeat_interleave(torch.arange(len(lists.full)), lists.start.diff().long())
        pairs.append(sorted(zip(own.tolist(), lists.tiles.tolist(), lists.masks.tolist(), strict=True)))
        for tile, full in enumerate(lists.full.tolist()):
            masks = lists.masks[lists.start[tile] : lists.start[tile + 1]]
            assert (masks[:full] == -1).all() and (masks[full:] >= 0).all()
    assert pairs[0] == sorted((query, key, mask) for key, query, mask in pairs[1])


@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 100)), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_masks_are_packed_into_words_and_back(shape: tuple[int, int, int], seed: int) -> None:
    bits = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    words, columns = packed(bits), shape[-1]
    assert words.dtype == torch.int32 and words.shape == (*shape[:-1], -(-columns // 32))
    assert torch.equal(unpacked(words)[..., :columns], bits) and not unpacked(words)[..., columns:].any()


@given(layer=st.lists(KEY_SETS, min_size=1, max_size=3), n=st.integers(1, 150), size=SIZES)
@settings(max_examples=30, deadline=None)
def test_masks_of_keys_are_those_of_queries_transposed(layer: list[KeySet], n: int, size: Size) -> None:
    found = tables(plan(tuple(layer), n, n, 0, CPU, (Choice(size),)))
    of_queries, of_keys = unpacked(found.masks), unpacked(found.masks_of_keys)
    assert torch.equal(of_keys[..., : size.queries], of_queries.transpose(1, 2))
    assert not of_keys[..., size.queries :].any()


@pytest.mark.parametrize(
    ("keys", "in_order"),
    [(Window(7), True), (Near(5, 32), True), (Near(5, 9), False), (Fixed(32, 8), False)],
    ids=["no hubs", "hubs that fill their tile", "hubs that do not", "hubs from everywhere"],
)
def test_keys_are_in_order_where_no_hubs_are_moved(keys: KeySet, in_order: bool) -> None:
    assert tables(plan((keys,), 1000, 1000, 0, CPU, (Choice(Size(32, 32)),))).in_order is in_order


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=6), min_size=1, max_size=3), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_parts_have_every_entry_once(lengths: list[list[int]], shortest: int) -> None:
    most = max(map(len, lengths))
    rows = torch.tensor([own + [0] * (most - len(own)) for own in lengths])
    start = torch.nn.functional.pad(rows.cumsum(1), (1, 0)) + (rows.sum(1).cumsum(0) - rows.sum(1))[:, None]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parts, "SHORTEST", shortest)
        found = parts.parted(start.int(), 4)
    for own, some, sums in zip(start, found.parts.tolist(), found.sums.tolist(), strict=True):
        for tile in range(most):
            filling = found.shares - 1 if found.shares else None
            mine = sorted(one[1:] for one in some if one[0] == tile and one[3] != filling)
            entries = [entry for begin, end, _ in mine for entry in range(begin, end)]
            assert entries == list(range(int(own[tile]), int(own[tile + 1])))
            shares = sorted(one[2] for one in mine)
            added = [range(first, first + count) for at, first, count in sums if at == tile and count]
            assert shares == (list(added[0]) if added else [-1])


def test_keys_that_many_see_stand_together_and_equal_masks_are_stored_once() -> None:
    found = layout(Fixed(32, 8), 2048, 2048, 0, Size(32, 32), CPU)
    cells = sum(2048 // 32 * 8 // 32 for _ in range(1))
    assert all(position % 32 >= 24 for position in found.order[: (cells - 2) * 32].tolist())
    dense = layout(Dense(), 2048, 2048, 0, Size(32, 32), CPU)
    assert len(dense.masks) == 1 and dense.entries == 64 * 65 // 2
    assert found.entries < 0.4 * dense.entries  # a quarter of the keys are cells


def test_the_size_that_costs_least_is_chosen() -> None:
    small, large = Choice(Size(32, 32)), Choice(Size(64, 64), full=0.4, masked=0.4, query=20.0)
    for keys, chosen in ((Window(32), small), (Dense(), large)):  # few scores a query, and many
        assert plan((keys,), 512, 512, 0, CPU, (large, small)).size == chosen.size
    assert plan((Window(32),), 512, 512, 0, CPU, (large._replace(query=0.0), small)).size == large.size


def test_memory_grows_with_what_is_kept() -> None:
    sizes = [layout(Near(64, 4), n, n, 0, Size(64, 64), CPU) for n in (2048, 4096)]
    numbers = [sum(x.numel() for x in (s.order, *vars(s.by_query).values(), *vars(s.by_key).values())) for s in sizes]
    assert numbers[1] < 2.2 * numbers[0] and len(sizes[1].masks) == len(sizes[0].masks)


CASES = {  # heads, heads of the keys, queries, keys, offset
    "whole": (4, 4, 70, 70, 0),
    "shared keys": (4, 2, 70, 70, 0),
    "behind a cache": (4, 1, 30, 100, 70),
    "in the middle": (2, 2, 33, 64, 20),
    "one query": (2, 1, 1, 41, 40),
}
LAYERS = {
    "own": (Scattered(3), Near(9, 3), Scattered(3), Scattered(8, 11)),
    "paper": (Fixed(16, 4), Strided(8), Dense(), Fixed(16, 4, 2)),
    "mixed": (Near(9, 3), Dense(), Window(5), Scattered(1)),
}


@pytest.mark.parametrize("documents", [False, True], ids=["", "documents"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_definition(case: str, layer: str, documents: bool) -> None:
    heads, shared, queries, length, offset = CASES[case]
    torch.manual_seed(1)
    q = torch.randn(2, heads, queries, 6, dtype=torch.float64, requires_grad=True)
    k = torch.randn(2, shared, length, 6, dtype=torch.float64, requires_grad=True)
    v = torch.randn(2, shared, length, 5, dtype=torch.float64, requires_grad=True)
    number = torch.randint(0, 2, (2, length)).cumsum(1) // 9 if documents else None
    keys = LAYERS[layer][:heads]
    found, wanted = (
        attend(q, k, v, keys, backend, offset=offset, documents=number) for backend in ("torch", "reference")
    )
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    upstream = torch.randn_like(found)
    for ours, theirs in zip(*(torch.autograd.grad(x, (q, k, v), upstream) for x in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_documents_do_not_see_each_other() -> None:
    q, k, v = (torch.randn(1, 2, 60, 8) for _ in range(3))
    whole = attend(q, k, v, (Fixed(16, 4), Dense()), documents=torch.tensor([[4] * 25 + [5] * 35]))
    parts = [attend(q[:, :, s], k[:, :, s], v[:, :, s], (Dense(), Dense())) for s in (slice(25), slice(25, 60))]
    torch.testing.assert_close(whole[:, 1], torch.cat(parts, 2)[:, 1])


def test_pieces_of_a_prompt_are_the_whole() -> None:
    layer = (Fixed(16, 4), Strided(8), Scattered(2), Dense())
    q, k, v = (torch.randn(1, 4, 90, 8, dtype=torch.float64) for _ in range(3))
    whole = attend(q, k, v, layer)
    pieces = [attend(q[:, :, a:b], k[:, :, :b], v[:, :, :b], layer) for a, b in ((0, 40), (40, 41), (41, 90))]
    torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=1e-12, rtol=0)


def test_the_operator_compiles_and_counts_kept_pairs() -> None:
    layer = (Scattered(3), Near(9, 3))
    q, k, v = (torch.randn(1, 2, 70, 8, requires_grad=True) for _ in range(3))
    code = "\n".join(keys.code for keys in layer)
    arguments = (q, k, v, None, code, "torch", 0.3, 0)
    torch.library.opcheck(torch.ops.sparse_transformer.tiled_attention.default, arguments)
    plain = attend(q, k, v, layer)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")(q, k, v, layer)
    assert torch.equal(plain, compiled)
    with FlopCounterMode(display=False) as counter:
        attend(q, k, v, layer).sum().backward()
    assert counter.get_total_flops() == 7 * 2 * 8 * sum(keys.pairs(70) for keys in layer)


def test_a_code_makes_the_key_set_again() -> None:
    from src.attention import key_sets

    code = Fixed(16, 4, 2).code
    key_sets._KNOWN.pop(code)
    assert KeySet.read(code) == Fixed(16, 4, 2)


def test_pairs_without_a_closed_form_are_counted() -> None:
    for keys in (Scattered(3), Near(9, 3)):
        assert keys.pairs(83) == int(kept(keys, 83, 83, 0).sum())


def test_wrong_shapes_are_refused() -> None:
    q, k, v = (torch.randn(1, 2, 9, 4) for _ in range(3))
    layer = (Dense(), Dense())
    with pytest.raises(ValueError, match=r"the heads of k must divide those of q \(2\), found 3"):
        attend(q, torch.randn(1, 3, 9, 4), torch.randn(1, 3, 9, 4), layer)
    with pytest.raises(ValueError, match="offset must be at least 0, found -1; 9 queries, 8 keys"):
        attend(q, k[:, :, :8], v[:, :, :8], layer)
    with pytest.raises(ValueError, match=r"documents must be integers of shape \(1, 9\), found torch.int64"):
        attend(q, k, v, layer, documents=torch.zeros(1, 8, dtype=torch.int64))
