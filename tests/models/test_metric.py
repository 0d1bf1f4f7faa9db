"""Bits per byte: right under uneven batches and several processes."""

import math
import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist

from src.models.metric import BitsPerByte


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


def _score(rank: int, port: int, queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    metric = BitsPerByte()
    metric.update(torch.full((10,), math.log(2)) if rank == 0 else torch.full((30,), 5 * math.log(2)))
    queue.put(metric.compute().item())
    dist.destroy_process_group()


def test_several_processes_give_the_figure_of_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_score, args=(rank, port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    figures = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert figures == pytest.approx([(10 + 150) / 40] * 2)
