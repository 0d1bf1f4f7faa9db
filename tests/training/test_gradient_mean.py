"""The mean of gradients over processes: two of them over gloo, against float64."""

import pytest
import torch

from src.training.gradient_mean import GradientMean, grouped, same_start
from src.training.strategies import DataParallel
from tests.subprocesses import in_processes

SHAPES = ((7, 5), (3,), (64, 2), (1,), (40,))


def gradients(rank):
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def parameters(values):
    return [torch.nn.Parameter(value.clone()) for value in values]


def means(rank):
    found = {}
    for name, dtype, piece in (("one piece", None, 1000), ("pieces", None, 50), ("fp16", torch.float16, 50)):
        mine = parameters(gradients(rank))
        mean = GradientMean(mine, dtype, piece)
        for _ in range(2):  # the memory of a piece is used again
            for parameter, gradient in zip(mine, gradients(rank), strict=True):
                parameter.grad = gradient
            mean()
        found[name] = [parameter.grad.tolist() for parameter in mine]
    module = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(module.weight, rank + 1.0)
    same_start(module)
    return found, module.weight.tolist()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return in_processes(means, tmp_path_factory.mktemp("gradients"))


@pytest.mark.parametrize("name", ["one piece", "pieces", "fp16"])
def test_every_process_has_the_mean(both, name):
    allowed = 2**-10 if name == "fp16" else 2**-23  # of the values summed: half an ulp of each, and of the sum
    for found, _ in both:
        for mean, a, b in zip(found[name], gradients(0), gradients(1), strict=True):
            wanted = (a.double() + b.double()) / 2
            assert ((torch.tensor(mean).double() - wanted).abs() <= allowed * (a.abs() + b.abs()).double()).all()


def test_half_precision_is_what_travels(both):
    for found, _ in both:
        assert found["fp16"] != found["pieces"]
        assert all(torch.equal(t, t.half().float()) for t in map(torch.tensor, found["fp16"]))


def test_every_process_starts_as_the_first_one(both):
    assert [weight for _, weight in both] == [[[1.0, 1.0], [1.0, 1.0]]] * 2


@pytest.mark.parametrize("most, sizes", [(1000, [[35, 3, 128, 1, 40]]), (50, [[35, 3], [128], [1, 40]])])
def test_pieces_hold_neighbours(most, sizes):
    groups = grouped(parameters(gradients(0)), most)
    assert [[parameter.numel() for parameter in group] for group in groups] == sizes


def test_pieces_have_one_dtype():
    mixed = parameters([torch.zeros(2), torch.zeros(2, dtype=torch.float16), torch.zeros(2)])
    assert [len(group) for group in grouped(mixed, 1000)] == [1, 1, 1]


def test_only_the_last_micro_batch_of_a_step_is_exchanged():
    strategy, exchanges = DataParallel(), []
    strategy._mean = lambda: exchanges.append("mean")
    with strategy.block_backward_sync():
        strategy.post_backward(torch.zeros(()))
    assert exchanges == []
    strategy.post_backward(torch.zeros(()))
    assert exchanges == ["mean"]
