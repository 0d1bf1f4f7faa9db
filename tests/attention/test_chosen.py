"""Patterns of other papers and of users, by name and options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.attention import Fixed, KeySet, Pattern
from src.attention.backends import attend
from src.attention.chosen import chosen
from src.attention.custom import Custom
from src.attention.decode import LayerCache
from src.attention.draw import draw_pattern
from src.attention.other_key_sets import Axial, BigBird, Local, Logarithmic, WindowAndFirst
from src.config.composing import composed

FEW = st.integers(1, 12)
SETS = st.one_of(
    st.builds(Local, FEW, st.integers(1, 4)),
    st.builds(WindowAndFirst, FEW, FEW),
    st.builds(BigBird, st.integers(1, 6), st.integers(1, 3), st.integers(0, 2), st.integers(0, 3), st.integers(0, 9)),
    st.builds(Axial, FEW),
    st.builds(Logarithmic, FEW),
)
READY = ("local", "longformer", "sinks", "bigbird", "axial", "logarithmic", "mix")
SOURCE = """
class Stripes:
    def __init__(self, window, every=7):
        self.window, self.every = window, every

    def sees(self, i, j):
        return (i - j < self.window) | (j % self.every == 0)

class ByHead:
    turns = 2

    def layer(self, heads, block):
        return [Stripes(1 + block % 2 + head) for head in range(heads)]
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_patterns.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_patterns", raising=False)
    return "my_patterns"


@given(keys=SETS, n=st.integers(1, 70))
@settings(max_examples=80, deadline=None)
def test_closed_forms_and_ranges_are_right(keys: KeySet, n: int) -> None:
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    seen = keys.sees(i, j)
    assert not (seen & (j > i)).any() and seen.diagonal().all()
    assert keys.pairs(n) == int(seen.sum())
    for start in range(0, n, 9):
        inside = torch.zeros(n, dtype=torch.bool)
        for first, last in keys.key_ranges(start, min(n, start + 9)):
            assert not inside[first:last].any()
            inside[first:last] = True
        assert not (seen[start : start + 9] & ~inside).any()


@pytest.mark.parametrize("name", READY)
def test_every_ready_made_pattern_is_a_choice_and_is_drawn(name: str) -> None:
    config = composed([f"attention={name}", "model.heads=4", "data.context=256"])
    pattern = chosen(name, config.attention.options)
    layer = pattern.layer(4)
    q, k, v = (torch.randn(1, 4, 150, 8, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(attend(q, k, v, layer), attend(q, k, v, layer, "reference"), atol=1e-12, rtol=0)
    assert draw_pattern(pattern, 4, 200).axes[0].get_title()


def test_a_class_of_a_user_is_a_pattern(mine: str) -> None:
    pattern = chosen(f"{mine}:Stripes", {"window": 3})
    (keys, _) = pattern.layer(2)
    assert isinstance(keys, Custom) and keys.name == "stripes"
    i, j = torch.arange(30)[:, None], torch.arange(30)[None, :]
    wanted = (j <= i) & ((i - j < 3) | (j % 7 == 0))
    assert torch.equal(keys.sees(i, j), wanted)  # never a key behind the query
    assert keys.pairs(30) == int(wanted.sum())
    assert KeySet.read(keys.code) == keys


def test_a_class_may_give_each_head_and_block_its_own(mine: str) -> None:
    pattern = chosen(f"{mine}:ByHead", {})
    assert pattern.turns == 2
    windows = [[keys._object.window for keys in pattern.layer(2, block)] for block in range(2)]  # type: ignore[attr-defined]
    assert windows == [[1, 2], [2, 3]]


def test_a_mix_takes_turns_by_block_and_shares_heads() -> None:
    options = {"blocks": ["local", ["fixed", "near"]], "local": {"window": 4}, "fixed": {"stride": 8, "summary": 2},
               "near": {"pattern": "sinks", "window": 3, "first": 1}}  # fmt: skip
    pattern = chosen("mix", options)
    assert [type(keys) for keys in pattern.layer(4, 2)] == [Local] * 4
    assert [type(keys) for keys in pattern.layer(4, 3)] == [Fixed, Fixed, WindowAndFirst, WindowAndFirst]
    assert pattern.pairs(20, 4, 4) == sum(keys.pairs(20) for block in range(4) for keys in pattern.layer(4, block))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("foo", {}, r"pattern must be one of dense, strided, fixed, local, .* or package.module:Class, found 'foo'"),
        ("no_such:Class", {}, "no_such cannot be imported .*; is its folder in PYTHONPATH"),
        ("math:pi", {}, r"must be a class with sees\(i, j\) or layer\(heads, block\)"),
        ("math:Nothing", {}, "math has no Nothing"),
        ("my_patterns:Stripes", {}, "missing a required argument: 'window'.*it takes: window, every"),
        ("bigbird", {"blok": 3}, "options.blok is not known to bigbird; it takes: block, window, first, random, seed"),
        ("local", {}, "options.window is missing; local takes: window, dilation"),
        ("local", {"window": 0}, "options.window must be at least 1, found 0"),
        ("local", {"window": "far"}, "options.window must be an integer, found 'far'"),
        ("mix", {}, "options.blocks must be a list of names"),
        ("mix", {"blocks": ["local"], "local": {"window": 3}, "fixed": {}}, "options.fixed is in no block"),
        ("mix", {"blocks": ["local"]}, "options.local: options.window is missing"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(mine: str, name: str, options: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        chosen(name, options)


@pytest.mark.parametrize("name", ["local", "longformer", "bigbird", "logarithmic", "mix"])
def test_decoding_step_by_step_is_the_whole_sequence(name: str) -> None:
    config = composed([f"attention={name}", "model.heads=4"])
    options = dict(config.attention.options)
    if name == "bigbird":
        options["block"] = 5
    layer = chosen(name, options).layer(4, 1)
    n = 60
    q, k, v = (torch.randn(2, 4, n, 8, dtype=torch.float64) for _ in range(3))
    whole = attend(q, k, v, layer, "reference")
    cache = LayerCache(layer, 2, n, 8, 8, torch.float64, torch.device("cpu"))
    cache.fill(k[:, :, :20], v[:, :, :20])
    for t in range(20, n):
        torch.testing.assert_close(cache.attend(q[:, :, t], k[:, :, t], v[:, :, t], t, 8**-0.5), whole[:, :, t])


def test_options_of_the_papers_patterns_are_keys() -> None:
    from src.config.checks import attention_pattern
    from src.errors import UserError

    with pytest.raises(UserError, match=r"attention\.options must be empty for attention.pattern=fixed"):
        composed(["attention=fixed", "attention.options.window=3"])
    assert isinstance(attention_pattern(composed(["attention=fixed"]).attention), Pattern)
