"""Muon's kernels on a GPU: against plain PyTorch, without waiting for the GPU, and bit for bit again."""

import copy

import pytest
import torch
from torch import nn

from src.optimizers import muon
from src.optimizers.muon import Muon

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

SHAPES = [(384, 128), (128, 512), (512, 128), (131, 77), (5, 300), (128,)]


def build(**options):
    generator = torch.Generator().manual_seed(1)
    moved = [nn.Parameter(torch.randn(shape, generator=generator).cuda()) for shape in SHAPES]
    fused = {"params": moved[:1], "muon": True, "rows": (128, 128, 128), "lr": 0.05, "weight_decay": 0.1}
    rest = {"params": moved[1:-1], "muon": True, "lr": 0.02, "nesterov": False}
    return Muon([fused, rest, {"params": moved[-1:]}], fused=True, **options), moved


def step(optimizer, moved, number, bad=False):
    generator = torch.Generator().manual_seed(10 + number)
    for parameter in moved:
        parameter.grad = torch.randn(parameter.shape, generator=generator).cuda()
        if bad:
            parameter.grad.view(-1)[0] = float("nan")
    optimizer.found_inf = torch.full((), float(bad), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def trained(**options):
    optimizer, moved = build(**options)
    for number in range(4):
        step(optimizer, moved, number)
    return [parameter.detach() for parameter in moved]


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_kernels_do_what_pytorch_does(monkeypatch, dtype, allowed):
    found, before = trained(dtype=dtype), build()[1]
    monkeypatch.setattr(muon, "_has_kernels", lambda device: False)
    for ours, theirs, start in zip(found, trained(dtype=dtype), before, strict=True):
        assert (ours - theirs).norm() <= allowed * (theirs - start).norm()


def test_bf16_is_as_near_to_float32_as_it_can_be():
    for half, whole, start in zip(trained(), trained(dtype=torch.float32), build()[1], strict=True):
        assert (half - whole).norm() <= 0.03 * (whole - start).norm()


def test_a_step_again_is_the_same_to_the_last_bit():
    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(a, b) for a, b in zip(trained(), trained(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_step_that_is_not_finite_changes_nothing():
    optimizer, moved = build()
    step(optimizer, moved, 0, bad=True)
    assert all(torch.equal(a, b) for a, b in zip(moved, build()[1], strict=True))
    step(optimizer, moved, 0)
    before = copy.deepcopy([*moved, *(value for state in optimizer.state.values() for value in state.values())])
    step(optimizer, moved, 1, bad=True)
    after = [*moved, *(value for state in optimizer.state.values() for value in state.values())]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
