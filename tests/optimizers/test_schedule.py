"""Warm-up, cosine, constant and then linear, and which parameters decay (section 6)."""

import itertools

import pytest
from torch import nn

from src.attention import Pattern
from src.models.sparse_transformer import SparseTransformer
from src.optimizers.build import decay_groups, muon_matrices
from src.optimizers.schedule import Schedule

SHAPES = ("cosine", "linear")


def small(**heads: int) -> SparseTransformer:
    shape = {"context": 32, "depth": 2, "width": 16, "heads": 2, "row": 8} | heads
    return SparseTransformer(pattern=Pattern("strided", 8), half_size_qk=True, **shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_warmup_is_linear_and_reaches_the_peak(shape):
    schedule = Schedule(shape, warmup_steps=5)
    assert [schedule.factor(step, 20) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_falls_from_one_to_zero_through_a_half():
    factors = [Schedule(warmup_steps=10).factor(step, 110) for step in range(10, 111)]
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0)
    assert all(a > b for a, b in itertools.pairwise(factors))


def test_linear_is_constant_and_then_falls_in_a_straight_line():
    factors = [Schedule("linear", warmup_steps=10, decay_share=0.4).factor(step, 100) for step in range(10, 101)]
    assert set(factors[:51]) == {1.0}
    assert factors[50:] == pytest.approx([1 - step / 40 for step in range(41)])


@pytest.mark.parametrize("shape", SHAPES)
def test_past_the_end_the_rate_stays_zero(shape):
    assert Schedule(shape, warmup_steps=10).factor(500, 110) == pytest.approx(0)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_warmup_starts_at_the_peak(shape):
    assert Schedule(shape, warmup_steps=0).factor(0, 10) == 1


def test_warmup_fits_the_run_unless_steps_are_given():
    fitting, given = Schedule(warmup_share=0.15, warmup_most=5000), Schedule(warmup_steps=5000)
    assert [fitting.warmup(steps) for steps in (1, 60, 10_000, 36_621)] == [0, 9, 1500, 5000]
    assert given.warmup(60) == 5000


def test_every_parameter_is_in_one_group_and_only_matrices_decay():
    model = small()
    decayed, kept = decay_groups(model, 0.01)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.01, 0.0)
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    assert {id(p) for p in decayed["params"]} == linear
    together = [*decayed["params"], *kept["params"]]
    assert len(together) == len(set(map(id, together))) == len(list(model.parameters()))


def test_muon_takes_the_matrices_of_blocks_and_knows_what_they_consist_of():
    model = small()
    found = muon_matrices(model)
    named = {id(p): name for name, p in model.named_parameters()}
    fused = [f"blocks.{block}.attention.project_in.weight" for block in range(2)]
    assert [named[id(p)] for p in found[8, 8, 16]] == fused
    parts = ("attention.project_out", "feed_forward.expand", "feed_forward.contract")
    assert {named[id(p)] for p in found[None]} == {f"blocks.{b}.{part}.weight" for b in range(2) for part in parts}


def test_shared_keys_and_values_are_smaller_matrices_for_muon():
    model = small(heads=4, kv_heads=1)
    found = muon_matrices(model)
    assert found.keys() == {(8, 2, 4), None}
    assert {p.shape for p in found[8, 2, 4]} == {(14, 16)}
