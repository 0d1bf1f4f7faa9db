"""Patterns against the formulas of the paper, written here a second time as plain sets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.attention import (
    Column,
    Dense,
    Fixed,
    KeySet,
    OwnBlock,
    Pattern,
    Strided,
    Summary,
    Window,
    head_groups,
)
from src.attention.patterns import shared_layer


def previous(i: int, stride: int) -> set[int]:
    return set(range(max(0, i - stride), i + 1))


def every(i: int, stride: int) -> set[int]:
    return {j for j in range(i + 1) if (i - j) % stride == 0}


def same_block(i: int, stride: int) -> set[int]:
    return {j for j in range(i + 1) if j // stride == i // stride}


def cells(i: int, stride: int, summary: int, sub_block: int) -> set[int]:
    last = stride - sub_block * summary
    return {j for j in range(i + 1) if last - summary <= j % stride < last}


def expected(keys: KeySet, i: int) -> set[int]:
    match keys:
        case Dense():
            return set(range(i + 1))
        case Window(stride):
            return previous(i, stride)
        case Column(stride):
            return every(i, stride)
        case Strided(stride):
            return previous(i, stride) | every(i, stride)
        case OwnBlock(stride):
            return same_block(i, stride)
        case Summary(stride, summary, sub_block):
            return cells(i, stride, summary, sub_block)
        case Fixed(stride, summary, sub_block):
            return same_block(i, stride) | cells(i, stride, summary, sub_block)
    raise AssertionError(keys)


@st.composite
def key_sets(draw: st.DrawFn) -> KeySet:
    summary = draw(st.integers(1, 6))
    choices = draw(st.integers(1, 5))
    stride, sub_block = summary * choices, draw(st.integers(0, choices - 1))
    return draw(
        st.sampled_from(
            [
                Dense(),
                Window(stride),
                Column(stride),
                Strided(stride),
                OwnBlock(stride),
                Summary(stride, summary, sub_block),
                Fixed(stride, summary, sub_block),
            ]
        )
    )


@given(key_sets(), st.integers(1, 70))
def test_a_set_is_the_papers_formula_and_counts_itself(keys: KeySet, n: int) -> None:
    rows = [expected(keys, i) for i in range(n)]
    assert [{j for j in range(n) if keys.sees(i, j)} for i in range(n)] == rows
    assert keys.pairs(n) == sum(len(row) for row in rows)


@given(key_sets(), st.integers(1, 40))
def test_membership_of_tensors_is_that_of_integers(keys: KeySet, n: int) -> None:
    i = torch.arange(n)
    by_tensor = keys.sees(i[:, None], i[None, :])
    assert by_tensor.tolist() == [[bool(keys.sees(a, b)) for b in range(n)] for a in range(n)]


def test_the_papers_enwik8_counts() -> None:
    n = 12_288
    assert Pattern("dense").pairs(n, 1, 1) == n * (n + 1) // 2
    assert round(Fixed(128, 32).pairs(n) / n) in (1_584, 1_585)  # 64.5 of the own block, 1,520 summary cells
    assert round(Strided(128).pairs(n) / n) == 175


def test_a_million_positions_are_counted_in_closed_form() -> None:
    n = 1 << 20
    assert Column(1024).pairs(n) == 1024 * (1024 * 1025 // 2)
    assert Strided(1024).pairs(n) < 2 * n * 1024


def test_merged_uses_the_union_in_every_head_and_block() -> None:
    for block in range(3):
        assert Pattern("strided", 8).layer(2, block) == (Strided(8),) * 2
        assert Pattern("fixed", 8, 4, distinct=False).layer(2, block) == (Fixed(8, 4, 0),) * 2


def test_interleaved_follows_the_ratio() -> None:
    pattern = Pattern("strided", 8, mode="interleaved", interleave=(2, 3))
    kinds = [pattern.layer(1, block)[0].name for block in range(10)]
    assert kinds == ["window", "window", "column", "column", "column"] * 2
    assert pattern.pairs(50, 1, 10) == 4 * Window(8).pairs(50) + 6 * Column(8).pairs(50)


@pytest.mark.parametrize(("heads", "first"), [(2, 1), (3, 2), (8, 4)])
def test_multihead_gives_the_first_half_rounded_up_to_the_first_set(heads: int, first: int) -> None:
    kinds = [keys.name for keys in Pattern("fixed", 8, 4, "multihead").layer(heads)]
    assert kinds == ["own block"] * first + ["summary"] * (heads - first)


def test_distinct_heads_take_their_own_cells_counted_from_the_end() -> None:
    layer = Pattern("fixed", 8, 2).layer(5)
    assert [keys.first_cell for keys in layer if isinstance(keys, Fixed)] == [6, 4, 2, 0, 6]
    shared = Pattern("fixed", 8, 2, distinct=False).layer(5)
    assert [keys.first_cell for keys in shared if isinstance(keys, Fixed)] == [6] * 5


def test_summary_heads_may_see_nothing_at_first() -> None:
    assert not any(Summary(8, 2).sees(5, j) for j in range(6))
    assert Summary(8, 2).pairs(6) == 0


def test_head_groups_cut_a_layer_where_the_kind_changes() -> None:
    first, second = head_groups(Pattern("fixed", 8, 2, "multihead").layer(5))
    assert (first.start, first.stop, first.first, first.first_cells) == (0, 3, OwnBlock(8), ())
    assert (second.start, second.stop, second.first_cells) == (3, 5, (0, 6))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "spiral"}, "name must be one of dense, strided, fixed, found 'spiral'"),
        ({"name": "fixed", "mode": "mixed"}, "mode must be one of merged"),
        ({"name": "strided", "stride": 0}, "stride must be at least 1, found 0"),
        ({"name": "fixed", "stride": 128, "summary": 200}, r"summary must divide stride \(128\), found 200"),
        ({"name": "fixed", "stride": 128, "summary": 24}, "summary must divide"),
        ({"name": "strided", "interleave": (0, 1)}, "interleave must be two counts"),
    ],
)
def test_impossible_patterns_are_refused_in_a_sentence(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Pattern(**arguments)  # type: ignore[arg-type]


def test_layers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="heads must be at least 2, found 1"):
        Pattern("strided", mode="multihead").layer(1)
    with pytest.raises(ValueError, match="heads must be at least 1, found 0"):
        Pattern("strided").layer(0)
    with pytest.raises(ValueError, match="sub_block must be from 0 to 3, found 4"):
        Fixed(128, 32, 4)


def test_heads_that_share_keys_see_alike_where_they_can() -> None:
    pattern = Pattern("fixed", 8, 2)
    for kv_heads in (None, 8):
        assert shared_layer(pattern, 8, kv_heads) == pattern.layer(8)
    shared = shared_layer(pattern, 8, 4)
    assert shared == tuple(Fixed(8, 2, head // 2) for head in range(8))
    assert sorted(map(repr, shared)) == sorted(map(repr, pattern.layer(8)))
    heads = Pattern("strided", 8, mode="multihead")
    assert shared_layer(heads, 4, 2, block=1) == heads.layer(4, 1)
