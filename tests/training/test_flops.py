"""FLOPs counted on paper are those that PyTorch counts as it runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from src.attention import Pattern
from src.models.sparse_transformer import SparseTransformer
from src.optimizers.build import OptimizerSettings
from src.training.flops import RunFlops, TrainingFlops, training_flops

SHAPES = [
    {"depth": 2, "width": 32, "heads": 4},
    {"depth": 3, "width": 16, "heads": 2, "half_size_qk": True, "half_size_ff": True},
    {"depth": 2, "width": 32, "heads": 4, "kv_heads": 1, "half_size_qk": True},
]


def counted(pattern: Pattern, context: int, shape: dict, backend: str) -> int:
    """What PyTorch sees in forward and backward of two sequences, without recomputation."""
    model = SparseTransformer(pattern=pattern, context=context, **shape, backend=backend, row=8)
    torch.nn.init.normal_(model.output.weight)
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(256, (2, context))).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_pairs_are_what_runs(shape):
    """The reference computes every pair of the n * n table, so its count is ours with n * n pairs a head."""
    n = 24
    ours = training_flops(Pattern("dense"), context=n, sequences=2, **shape)
    table = ours.dense_attention * n * n // (n * (n + 1) // 2)
    assert counted(Pattern("fixed", 8, 2), n, shape, "reference") == ours.products + table


@pytest.mark.parametrize("name", ["strided", "fixed"])
def test_no_backend_can_do_with_less_than_the_kept_pairs(name):
    pattern, shape = Pattern(name, 16, 4), SHAPES[0]
    ours = training_flops(pattern, context=256, sequences=2, **shape)
    assert ours.attention < ours.dense_attention
    assert counted(pattern, 256, shape, "torch") >= ours.kept


def test_kept_pairs_of_the_paper_s_enwik8_model():
    """1,584 keys a query instead of 6,144 (12,289 / 2): the ratio of attention is that of the pairs."""
    shape = {"context": 12_288, "depth": 30, "width": 512, "heads": 8}
    ours = training_flops(Pattern("fixed", 128, 32), **shape)
    assert ours.dense_attention / ours.attention == pytest.approx(6144.5 / 1584, rel=1e-3)
    assert ours.products == 6 * 12_288 * (30 * 12 * 512 * 512 + 512 * 256)
    assert ours.dense_equivalent - ours.kept == ours.dense_attention - ours.attention


@pytest.mark.parametrize(("first", "last", "short"), [(0, 10, 10), (0, 20, 10), (5, 15, 5), (10, 30, 0), (8, 11, 2)])
def test_a_run_needs_less_while_attention_stays_within_pieces(first, last, short):
    """Mean of steps ``first <= step < last``, of which ``short`` are among the first ten."""
    run = RunFlops(TrainingFlops(10, 100, 1000), TrainingFlops(10, 5, 7), short_steps=10)
    full = last - first - short
    assert run.mean(first, last) == pytest.approx(
        ((15 * short + 110 * full) / (short + full), (17 * short + 1010 * full) / (short + full))
    )
    assert RunFlops(run.full).mean(first, last) == (110, 1010)


@pytest.mark.parametrize("shape", SHAPES)
def test_muons_products_are_what_its_step_runs(shape):
    model = SparseTransformer(pattern=Pattern("fixed", 8, 2), context=24, **shape, row=8)
    optimizer = OptimizerSettings(name="muon").optimizer(model)
    model(torch.randint(256, (2, 24))).sum().backward()
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    ours = training_flops(Pattern("dense"), context=24, **shape, muon=True)
    assert counter.get_total_flops() == ours.muon > 0
    assert training_flops(Pattern("dense"), context=24, **shape).muon == 0
