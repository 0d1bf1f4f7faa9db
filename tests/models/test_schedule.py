"""Warm-up, cosine, and which parameters decay (section 6)."""

import itertools

import pytest
import torch
from torch import nn

from src.attention import Pattern
from src.models.schedule import decay_groups, warmup_cosine
from src.models.sparse_transformer import SparseTransformer


def test_warmup_is_linear_and_reaches_the_peak():
    factors = [warmup_cosine(step, warmup_steps=5, max_steps=20) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_falls_from_one_to_zero_through_a_half():
    factors = [warmup_cosine(step, warmup_steps=10, max_steps=110) for step in range(10, 111)]
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0)
    assert all(a > b for a, b in itertools.pairwise(factors))


def test_past_the_end_the_rate_stays_zero():
    assert warmup_cosine(500, warmup_steps=10, max_steps=110) == pytest.approx(0)


def test_no_warmup_starts_at_the_peak():
    assert warmup_cosine(0, warmup_steps=0, max_steps=10) == 1


def test_every_parameter_is_in_one_group_and_only_matrices_decay():
    model = SparseTransformer(pattern=Pattern("strided", 8), context=32, depth=1, width=16, heads=2, row=8)
    decayed, kept = decay_groups(model, 0.01)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.01, 0.0)
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    assert {id(p) for p in decayed["params"]} == linear
    together = [*decayed["params"], *kept["params"]]
    assert len(together) == len(set(map(id, together))) == len(list(model.parameters()))
    assert torch.numel(together[0]) > 0
