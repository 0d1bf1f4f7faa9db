"""Bits per byte: right under uneven batches and several processes."""

import math

import pytest
import torch

from src.training.bits_per_byte import BitsPerByte
from tests.subprocesses import in_processes


def test_uneven_batches_weigh_by_their_bytes():
    metric = BitsPerByte()
    metric.update(torch.full((3, 10), math.log(2)))
    metric.update(torch.full((1, 5), 4 * math.log(2)))
    assert metric.compute().item() == pytest.approx((30 * 1 + 5 * 4) / 35)


def test_only_scored_bytes_count():
    metric = BitsPerByte()
    nats = torch.tensor([[1.0, 2.0, 100.0], [3.0, 100.0, 100.0]])
    metric.update(nats, torch.tensor([[True, True, False], [True, False, False]]))
    assert metric.compute().item() == pytest.approx(2 / math.log(2))
    assert int(metric.count) == 3


def test_sums_stay_exact_over_many_bytes():
    """Float32 sums of ten million equal costs drift in the fifth digit; ours must not."""
    metric = BitsPerByte()
    for _ in range(100):
        metric.update(torch.full((100_000,), 0.7, dtype=torch.float32))
    expected = float(torch.tensor(0.7, dtype=torch.float32).double()) / math.log(2)
    assert metric.compute().item() == pytest.approx(expected, rel=1e-12)


def score(rank: int) -> float:
    metric = BitsPerByte()
    metric.update(torch.full((10,), math.log(2)) if rank == 0 else torch.full((30,), 5 * math.log(2)))
    return metric.compute().item()


def test_several_processes_give_the_figure_of_one(tmp_path):
    assert in_processes(score, tmp_path) == pytest.approx([(10 + 150) / 40] * 2)
