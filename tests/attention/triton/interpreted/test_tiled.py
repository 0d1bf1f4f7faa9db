"""The kernels over lists of tiles against float64, on the CPU through Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from src.attention.reference import reference_attention
from src.attention.tiled import parts
from src.attention.tiled.layout import Size
from src.attention.tiled.plan import Choice
from src.attention.tiled_operator import tiled_attention
from src.attention.triton import tuning
from tests.attention.test_tiled import CASES, LAYERS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there: see tests/gpu")


@pytest.fixture(autouse=True)
def _small_tiles_and_poisoned_results(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tuning, "tiled_sizes", lambda *_: (Choice(Size(16, 32)),))
    monkeypatch.setattr(parts, "SHORTEST", 2)  # long lists are parted
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poisoned(x: torch.Tensor) -> torch.Tensor:
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poisoned(new_empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
    yield


def check(
    case: str, layer: str, documents: bool, dtype: torch.dtype, bound: float, qk: int = 16, v: int = 24,
    apart: bool = False,
) -> None:  # fmt: skip
    heads, shared, queries, length, offset = CASES[case]
    torch.manual_seed(1)
    shapes = ((heads, queries, qk), (shared, length, qk), (shared, length, v))
    made = [torch.randn(1, n, h, d).to(dtype).transpose(1, 2) for h, n, d in shapes]
    given = [(x.contiguous() if apart else x).requires_grad_() for x in made]
    first = torch.randint(0, length, (1, queries)).sort(1).values.int() if documents else None
    keys = LAYERS[layer][:heads]
    out = tiled_attention(*given, keys, "triton", 0.3, offset, first)  # type: ignore[arg-type]
    upstream = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, given, upstream)]
    exact = [x.detach().double().requires_grad_() for x in given]
    wanted: list[Any] = [reference_attention(*exact, keys, 0.3, offset, first)]  # type: ignore[arg-type]
    wanted += torch.autograd.grad(wanted[0], exact, upstream.double())
    for ours, true in zip(found, wanted, strict=True):
        assert (ours.double() - true).abs().max() <= bound * (1 + true.abs().max())


@pytest.mark.parametrize(
    ("case", "layer", "documents", "apart"),
    [
        ("whole", "own", False, False),
        ("whole", "own", False, True),
        ("shared keys", "paper", True, False),
        ("behind a cache", "mixed", False, False),
    ],
)
def test_values_and_gradients(case: str, layer: str, documents: bool, apart: bool) -> None:
    check(case, layer, documents, torch.float32, 1e-5, apart=apart)


@pytest.mark.slow
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("case", CASES)
def test_every_case(case: str, layer: str, documents: bool) -> None:
    check(case, layer, documents, torch.float32, 1e-5)
    check(case, layer, documents, torch.float16, 4e-3, qk=8)
