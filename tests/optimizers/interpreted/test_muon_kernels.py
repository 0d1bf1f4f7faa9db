"""Muon's kernels against plain PyTorch: whole matrices and rows of them, transposed or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from src.optimizers import matrices as plain
from src.optimizers import muon, muon_kernels
from src.optimizers.matrices import Matrix
from src.optimizers.muon import Muon

GROUPS = [
    {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": True, "ns_steps": 5},
    {"lr": 0.5, "weight_decay": 0.0, "momentum": 0.6, "nesterov": False, "ns_steps": 5},
]
ODD, EVEN = [(37, 81), (81, 37), (37, 81)], [(64, 128), (128, 64), (64, 128)]


def matrices(shapes, shares):
    """One for each shape and one more; with ``shares`` only some rows of the first two, amid what is here."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for number, (rows, cols) in enumerate([*shapes, shapes[0]]):
        start, first, count = (16, 32, rows - 33) if shares and number < 2 else (0, 0, rows)
        tensors = torch.randn(3, start + rows, cols, generator=generator).unbind()
        found.append(Matrix(GROUPS[number > 1], rows, cols, *tensors, start, count, first, None))
    if shares:
        found.append(Matrix(GROUPS[0], *shapes[0], *(torch.zeros(0, shapes[0][1]),) * 3, 0, 0, 70, None))
    return found


def stack_for(some, dtype=torch.float32):
    return torch.full((len(some) + 1, *sorted((some[0].rows, some[0].cols))), -7.0, dtype=dtype)


def launches(some):
    return list(muon_kernels.launches(some))


def states(some):
    return [tensor for matrix in some for tensor in (matrix.weight, matrix.momentum)]


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("shapes", [ODD, EVEN], ids=["odd", "even"])
@pytest.mark.parametrize("scalars", [(None, None), (torch.zeros(()), torch.tensor(8.0))], ids=["plain", "scaled"])
def test_kernels_do_what_pytorch_does(shapes, shares, scalars):
    ours, theirs = matrices(shapes, shares), matrices(shapes, shares)
    found, wanted = stack_for(ours), stack_for(theirs)
    muon_kernels.write(launches(ours), found, *scalars)
    plain.write(theirs, wanted, *scalars)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert (found[-1] == -7).all() and (found[:3] != -7).any()
    muon_kernels.apply(launches(ours), found, scalars[0])
    plain.apply(theirs, wanted, scalars[0])
    for a, b in zip(states(ours), states(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_stack_in_half_precision(dtype):
    ours, theirs = matrices(ODD, False), matrices(ODD, False)
    found, wanted = stack_for(ours, dtype), stack_for(theirs, dtype)
    muon_kernels.write(launches(ours), found, None, None)
    plain.write(theirs, wanted, None, None)
    ulp = torch.finfo(dtype).eps  # the interpreter cuts bf16 off, where a GPU rounds
    torch.testing.assert_close(found, wanted, rtol=ulp, atol=1e-6)
    muon_kernels.apply(launches(ours), wanted, None)
    plain.apply(theirs, wanted, None)
    for a, b in zip(states(ours), states(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_step_that_is_not_finite_touches_nothing():
    ours = matrices(ODD, True)
    for matrix in ours:
        matrix.grad.fill_(float("nan"))
    before, found = [tensor.clone() for tensor in states(ours)], stack_for(ours)
    muon_kernels.write(launches(ours), found, torch.ones(()), None)
    assert (found == -7).all()
    muon_kernels.apply(launches(ours), found.fill_(float("nan")), torch.ones(()))
    assert all(torch.equal(a, b) for a, b in zip(states(ours), before, strict=True))


def test_whole_steps(monkeypatch):
    def train():
        torch.manual_seed(2)
        moved = [nn.Parameter(torch.randn(shape)) for shape in ((30, 20), (20, 50), (50, 20))]
        fused = {"params": moved[:1], "muon": True, "rows": (8, 8, 14), "lr": 0.1}
        optimizer = Muon([fused, {"params": moved[1:], "muon": True, "lr": 0.02, "weight_decay": 0.3}])
        for _ in range(3):
            for parameter in moved:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        return [parameter.detach() for parameter in moved]

    wanted, count = train(), []
    monkeypatch.setattr(muon, "_has_kernels", lambda device: True)
    monkeypatch.setattr(muon_kernels, "apply", lambda *some, apply=muon_kernels.apply: count.append(apply(*some)))
    for a, b in zip(train(), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert len(count) == 3 * 3  # batches: (8, 20), (14, 20), (20, 50)


def test_rows_that_are_elsewhere_start_nothing():
    assert len(launches(matrices(ODD, True))) == 3 and launches(matrices(ODD, True)[-1:]) == []
