"""Any key set on a GPU: our kernels over lists of tiles and FlexAttention against float64, `make test-gpu`.

Key set x grouped queries x documents x dtype. The bound comes from data: at most twice the error that PyTorch's own
attention makes in the same number format on the same kept pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from src.attention.backends import Backend, attend
from src.attention.key_sets import Dense, Fixed, KeySet, Strided
from src.attention.other_key_sets import Axial, BigBird, Local, Logarithmic, WindowAndFirst
from src.attention.tiled.layout import Size
from src.attention.tiled.plan import Choice
from src.attention.tiled_operator import tiled_attention
from src.attention.triton import tuning

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@dataclass(frozen=True)
class Triangle(KeySet):
    """A user's own set, with nothing but ``sees``: keys at distances of triangular numbers' last digits."""

    window: int = 40

    def sees(self, i: Any, j: Any) -> Any:
        return (i - j < self.window) | ((i + 3 * j) % 7 == 0)


LAYERS: dict[str, tuple[KeySet, ...]] = {
    "local": (Local(100),) * 4,
    "dilated": (Local(40, 3),) * 4,
    "longformer": (WindowAndFirst(96, 24),) * 4,
    "bigbird": (BigBird(64, 2, 1, 2),) * 4,
    "axial": (Axial(96),) * 4,
    "logarithmic": (Logarithmic(16),) * 4,
    "own": (Triangle(),) * 4,
    "fixed": (Fixed(128, 32),) * 4,
    "strided": (Strided(128),) * 4,
    "mixed": (Local(70), Dense(), WindowAndFirst(50, 10), Triangle()),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def inputs(n: int, shared: int, qk: int, v: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and the gradient of the output, as parts of one projection."""
    generator = torch.Generator("cuda").manual_seed(1)
    one = torch.randn(2, n, 4 * qk + shared * (qk + v), device="cuda", generator=generator).to(dtype)
    parts = one.split([4 * qk, shared * qk, shared * v], -1)
    heads = (4, shared, shared)
    made = [x.unflatten(-1, (h, -1)).transpose(1, 2).requires_grad_() for x, h in zip(parts, heads, strict=True)]
    return [*made, torch.randn(2, 4, n, v, device="cuda", generator=generator).to(dtype)]


def documents_of(n: int) -> Tensor:
    """Documents of uneven lengths, others in each sequence."""
    generator = torch.Generator("cuda").manual_seed(2)
    return (torch.rand(2, n, device="cuda", generator=generator) < 0.01).cumsum(1)


def seen(layer: tuple[KeySet, ...], n: int, documents: Tensor | None) -> Tensor:
    i = torch.arange(n, device="cuda")
    mask = torch.stack([torch.as_tensor(keys.sees(i[:, None], i[None, :])) for keys in layer]).tril()[None]
    return mask if documents is None else mask & (documents[:, None, :, None] == documents[:, None, None, :])


def by_pytorch(given: list[Tensor], mask: Tensor, dtype: torch.dtype) -> list[Tensor]:
    q, k, v, dout = (x.detach().to(dtype).requires_grad_() for x in given)
    ratio = q.shape[1] // k.shape[1]
    all_k, all_v = (x.repeat_interleave(ratio, 1) for x in (k, v))
    some = mask.any(-1)[..., None]
    if dtype == torch.float64:
        scores = (q @ all_k.mT) * q.shape[-1] ** -0.5
        out = torch.softmax(scores.masked_fill(~mask, -1e300), -1) @ all_v * some
    else:
        out = torch.nn.functional.scaled_dot_product_attention(q, all_k, all_v, attn_mask=mask | ~some) * some
    return [out, *torch.autograd.grad(out, (q, k, v), dout)]


def run(given: list[Tensor], layer: tuple[KeySet, ...], backend: str, documents: Tensor | None) -> Tensor:
    q, k, v = given
    if backend == "lists":  # the paper's sets as well
        return tiled_attention(q, k, v, layer, "triton", q.shape[-1] ** -0.5)
    return attend(q, k, v, layer, cast("Backend", backend), documents=documents)


def error(found: Tensor, true: Tensor) -> float:
    return float((found.detach().double() - true.detach()).norm() / true.detach().norm().clamp_min(1e-30))


def check(
    layer: tuple[KeySet, ...], backend: str, shared: int, packed: bool, dtype: torch.dtype,
    n: int = 700, qk: int = 64, v: int = 64, apart: bool = False,
) -> None:  # fmt: skip
    given = inputs(n, shared, qk, v, dtype)
    if apart:
        given = [x.detach().contiguous().requires_grad_() for x in given]
    documents = documents_of(n) if packed else None
    mask = seen(layer, n, documents)
    true = by_pytorch(given, mask, torch.float64)
    peer = by_pytorch(given, mask, dtype)
    out = run(given[:3], layer, backend, documents)
    found = [out, *torch.autograd.grad(out, given[:3], given[3])]
    for name, ours, theirs, wanted in zip(("out", "dq", "dk", "dv"), found, peer, true, strict=True):
        bound = 2e-5 if dtype == torch.float32 else 2 * error(theirs, wanted)
        assert not ours.isnan().any(), f"{name} has NaN"
        if wanted.norm() < 1e-9:  # every query sees itself alone: the exact gradient is 0
            assert float(ours.detach().abs().max()) < 1e-2
            continue
        assert error(ours, wanted) <= bound, f"{name}: {error(ours, wanted):.2e}, allowed {bound:.2e}"


@pytest.fixture
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results start as NaN, so that an element that no kernel writes shows."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poisoned(x: Tensor) -> Tensor:
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poisoned(new_empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))


@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shared", "packed"), list(product((4, 2, 1), (False, True))))
@pytest.mark.parametrize("layer", LAYERS)
def test_kernels(layer: str, shared: int, packed: bool, dtype: str) -> None:
    check(LAYERS[layer], "triton", shared, packed, DTYPES[dtype])


@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize(("n", "qk", "v"), [(1, 64, 64), (65, 32, 32), (300, 64, 128), (513, 128, 128), (257, 48, 80)])
def test_odd_shapes(n: int, qk: int, v: int) -> None:
    check(LAYERS["longformer"], "triton", 2, False, torch.bfloat16, n, qk, v)
    check(LAYERS["own"], "triton", 2, True, torch.float32, n, qk, v)


@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("size", [(16, 32), (32, 64), (64, 32), (64, 64), (128, 64), (128, 128)])
def test_every_size_of_tiles(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "tiled_sizes", lambda *_: (Choice(Size(*size)),))
    for layer in ("fixed", "longformer", "own"):
        check(LAYERS[layer], "lists", 4, False, torch.bfloat16)
        check(LAYERS[layer], "triton", 1, True, torch.float16)


@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("layer", ["local", "longformer", "mixed"])
def test_heads_apart_in_memory(layer: str) -> None:
    check(LAYERS[layer], "triton", 2, False, torch.bfloat16, apart=True)


@pytest.mark.parametrize("packed", [False, True])
def test_the_same_bits_every_time_and_from_a_graph(packed: bool) -> None:
    *given, dout = inputs(700, 2, 64, 64, torch.bfloat16)
    documents = documents_of(700) if packed else None

    def run() -> list[Tensor]:
        q, k, v = (x.detach().requires_grad_() for x in given)  # of the stream that captures
        out = attend(q, k, v, LAYERS["mixed"], "triton", documents=documents)
        return [out, *torch.autograd.grad(out, (q, k, v), dout)]

    once = [x.clone() for x in run()]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(2):
        graph.replay()
        assert all(torch.equal(x, y) for x, y in zip(captured, once, strict=True))


def test_queries_behind_a_cache() -> None:
    q, k, v, _ = inputs(700, 2, 64, 64, torch.float32)
    for layer in (LAYERS["local"], LAYERS["mixed"], LAYERS["fixed"]):
        whole = attend(q, k, v, layer, "triton")
        part = attend(q[:, :, 300:450], k[:, :, :450], v[:, :, :450], layer, "triton", offset=300)
        assert error(part, whole[:, :, 300:450].double()) < 1e-5


@pytest.mark.parametrize(("shared", "packed"), [(4, False), (2, False), (4, True), (1, True)])
@pytest.mark.parametrize("layer", ["local", "bigbird", "fixed", "mixed", "own"])
def test_flex(layer: str, shared: int, packed: bool) -> None:
    check(LAYERS[layer], "flex", shared, packed, torch.bfloat16)
