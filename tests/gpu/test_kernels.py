"""The Triton kernels on a GPU: every pattern, mode and odd shape against float64, `make test-gpu`.

The error bound comes from data: at most twice the error that PyTorch's own attention makes in the same number format
on the same kept pairs.
"""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch

from src.attention.key_sets import KeySet
from src.attention.patterns import Pattern, shared_layer
from src.attention.triton import problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

CASES = [
    Pattern(name, stride, summary, mode)
    for name, mode, (stride, summary) in product(
        ("strided", "fixed"),
        ("merged", "interleaved", "multihead"),
        ((32, 8), (96, 32), (128, 32), (128, 128), (256, 16), (1024, 64)),
    )
]


def tensors(
    n: int, heads: int, qk: int, v: int, dtype: torch.dtype, seed: int = 0, kv_heads: int | None = None
) -> list[torch.Tensor]:
    """Strided q, k, v and a gradient of the output, as a fused projection gives them."""
    generator = torch.Generator("cuda").manual_seed(seed)
    shared = kv_heads or heads
    fused = torch.randn(2, n, heads * qk + shared * (qk + v), device="cuda", generator=generator).to(dtype)
    parts = zip(fused.split([heads * qk, shared * qk, shared * v], -1), (heads, shared, shared), strict=True)
    q, k, value = (x.unflatten(-1, (count, -1)).transpose(1, 2).requires_grad_() for x, count in parts)
    return [q, k, value, torch.randn(2, heads, n, v, device="cuda", generator=generator).to(dtype)]


def masks(layer: tuple[KeySet, ...], n: int) -> torch.Tensor:
    i = torch.arange(n, device="cuda")
    return torch.stack([keys.sees(i[:, None], i[None, :]) for keys in layer])


def exact(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, mask: torch.Tensor
) -> list[torch.Tensor]:
    """Output and gradients in float64; a row that sees nothing gives 0."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    each_k, each_v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (q @ each_k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    p = torch.softmax(scores.masked_fill(~mask, -1e300), -1) * mask
    out = p @ each_v
    return [out, *torch.autograd.grad(out, (q, k, v), dout.double())]


def pytorch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, mask: torch.Tensor
) -> list[torch.Tensor]:
    """PyTorch's own fused attention with the mask, in the inputs' number format."""
    seen = mask.any(-1)[:, :, None]
    each = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, *each, attn_mask=(mask | ~seen)) * seen
    return [out, *torch.autograd.grad(out, (q, k, v), dout)]


def ours(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, layer: tuple[KeySet, ...]
) -> list[torch.Tensor]:
    from src.attention.triton import sparse_attention

    out = sparse_attention(q, k, v, layer)
    return [out, *torch.autograd.grad(out, (q, k, v), dout)]


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    return ((found.double() - true).norm() / true.norm().clamp_min(1e-30)).item()


def check(
    pattern: Pattern, n: int, heads: int, qk: int, v: int, dtype: torch.dtype, block: int = 0,
    kv_heads: int | None = None,
) -> None:  # fmt: skip
    layer = shared_layer(pattern, heads, kv_heads, block)
    given = tensors(n, heads, qk, v, dtype, kv_heads=kv_heads)
    mask = masks(layer, n)
    true = exact(*given, mask)
    if dtype == torch.float32:
        bounds = [1e-5] * 4
    else:
        bounds = [2 * error(x, y) for x, y in zip(pytorch(*given, mask), true, strict=True)]
    found = ours(*given, layer)
    for name, x, y, bound in zip(("out", "dq", "dk", "dv"), found, true, bounds, strict=True):
        assert not x.isnan().any(), f"{name} has NaN"
        if y.norm() < 1e-9:  # every query sees at most itself: the exact gradient is 0
            assert float(x.abs().max()) < 1e-2
        else:
            assert error(x, y) <= bound, f"{name}: {error(x, y):.2e}, allowed {bound:.2e}"


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results start as NaN, so that an element that no kernel writes shows."""
    assert problem("cuda") is None
    new_empty = torch.Tensor.new_empty

    def poisoned(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return new_empty(self, *args, **kwargs).fill_(float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("pattern", CASES, ids=lambda p: f"{p.name}-{p.mode}-{p.stride}-{p.summary}")
def test_patterns(pattern: Pattern, dtype: torch.dtype) -> None:
    check(pattern, 1100, 3, 64, 64, dtype)
    if pattern.mode == "interleaved":
        check(pattern, 1100, 3, 64, 64, dtype, block=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("mode", ["merged", "multihead"])
@pytest.mark.parametrize("name", ["strided", "fixed"])
def test_heads_that_share_keys(name: str, mode: str, kv_heads: int, dtype: torch.dtype) -> None:
    check(Pattern(name, 128, 32, mode), 1100, 8, 64, 64, dtype, kv_heads=kv_heads)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 31, 128, 513, 1536])
@pytest.mark.parametrize("widths", [(32, 32), (64, 128), (128, 128), (128, 32), (48, 80)], ids=str)
@pytest.mark.parametrize("name", ["strided", "fixed"])
def test_shapes(name: str, widths: tuple[int, int], n: int) -> None:
    check(Pattern(name, 128, 32), n, 2, *widths, torch.bfloat16)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["strided", "fixed"])
@pytest.mark.parametrize("mode", ["merged", "multihead"])
@pytest.mark.parametrize("widths", [(64, 64), (32, 128), (128, 128)], ids=str)
def test_fp32_is_fp32(name: str, mode: str, widths: tuple[int, int]) -> None:
    check(Pattern(name, 64, 16, mode), 700, 2, *widths, torch.float32)  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", [1, 2])
def test_random_shapes(draw: int) -> None:
    choose = random.Random(draw)
    for _ in range(6):
        stride = choose.choice([32, 64, 96, 128, 512])
        summary = choose.choice([c for c in (8, 16, 32, 64, 128) if stride % c == 0])
        name, mode = choose.choice(["strided", "fixed"]), choose.choice(["merged", "interleaved", "multihead"])
        pattern = Pattern(name, stride, summary, mode, distinct=choose.random() < 0.5)  # type: ignore[arg-type]
        check(
            pattern, choose.randint(2, 1800), choose.randint(2, 5),
            choose.choice([32, 64]), choose.choice([32, 64, 128]),
            choose.choice([torch.bfloat16, torch.float16]), block=choose.randint(0, 1),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["strided", "fixed"])
def test_two_runs_give_the_same_bits(name: str) -> None:
    layer = Pattern(name, 128, 32).layer(8)  # type: ignore[arg-type]
    given = tensors(4096, 8, 64, 64, torch.bfloat16)
    first, second = ours(*given, layer), ours(*given, layer)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["strided", "fixed"])
@pytest.mark.parametrize("mode", ["merged", "multihead"])
def test_packed_gives_the_same_bits_in_one_gradient(name: str, mode: str) -> None:
    from src.attention.triton import sparse_attention_packed

    layer = Pattern(name, 128, 32, mode).layer(4)  # type: ignore[arg-type]
    q, k, v, dout = tensors(1000, 4, 64, 32, torch.bfloat16)
    fused = torch.cat([x.detach().transpose(1, 2).flatten(2) for x in (q, k, v)], -1).requires_grad_()
    out = sparse_attention_packed(fused, layer, 64, 32)
    (grad,) = torch.autograd.grad(out, fused, dout.transpose(1, 2).flatten(2))
    true = ours(q, k, v, dout, layer)
    assert torch.equal(out, true[0].transpose(1, 2).flatten(2))
    assert torch.equal(grad, torch.cat([x.transpose(1, 2).flatten(2) for x in true[1:]], -1))


@pytest.mark.parametrize("name", ["strided", "fixed"])
def test_expanded_gradient(name: str) -> None:
    layer = Pattern(name, 128, 32).layer(2)  # type: ignore[arg-type]
    q, k, v, dout = tensors(600, 2, 64, 64, torch.bfloat16)
    expanded = torch.ones((), dtype=torch.bfloat16, device="cuda").expand(dout.shape)
    for x, y in zip(ours(q, k, v, expanded, layer), ours(q, k, v, torch.ones_like(dout), layer), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", ["strided", "fixed"])
def test_compiles_without_graph_break_under_recomputation_and_autocast(name: str) -> None:
    from torch.utils.checkpoint import checkpoint

    from src.attention.triton import sparse_attention_packed

    layer = Pattern(name, 128, 32).layer(2)  # type: ignore[arg-type]
    torch.manual_seed(0)
    project = torch.nn.Linear(64, 2 * 96, device="cuda")
    x = torch.randn(2, 512, 64, device="cuda", requires_grad=True)

    def block(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return sparse_attention_packed(project(x), layer, 32, 32)

    plain = torch.autograd.grad(block(x).float().square().sum(), (x, project.weight))
    recomputed = torch.autograd.grad(
        checkpoint(block, x, use_reentrant=False).float().square().sum(), (x, project.weight)
    )
    compiled = torch.autograd.grad(torch.compile(block, fullgraph=True)(x).float().square().sum(), (x, project.weight))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert all(error(a, b.double()) < 1e-2 for a, b in zip(compiled, plain, strict=True))


@pytest.mark.parametrize("name", ["strided", "fixed"])
def test_opcheck(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # opcheck traces new_empty
    from src.attention.triton.operator import encode

    layer = encode(Pattern(name, 32, 8).layer(2))  # type: ignore[arg-type]
    q, k, v, _ = tensors(100, 2, 32, 32, torch.bfloat16)
    fused = torch.randn(2, 100, 192, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    torch.library.opcheck(torch.ops.sparse_transformer.attention.default, (q, k, v, layer, 0.2))
    torch.library.opcheck(torch.ops.sparse_transformer.attention_packed.default, (fused, layer, 32, 32, 0.2))


@pytest.mark.parametrize(("name", "n", "stride"), [("strided", 65_536 + 77, 256), ("fixed", 65_536 + 77, 256)])
def test_long_sequences_against_the_factorized_backend(name: str, n: int, stride: int) -> None:
    from src.attention.factorized import factorized_attention

    layer = Pattern(name, stride, 32).layer(2)  # type: ignore[arg-type]
    q, k, v, dout = tensors(n, 2, 32, 32, torch.float32)
    found = ours(q, k, v, dout, layer)
    out = factorized_attention(q, k, v, layer, 32**-0.5)
    true = [out, *torch.autograd.grad(out, (q, k, v), dout)]
    for x, y in zip(found, true, strict=True):
        assert error(x, y.double()) < 1e-5


@pytest.mark.parametrize("name", ["strided", "fixed"])
def test_a_million_positions_fit_80_gb(name: str) -> None:
    n, width = 2**20, 64
    layer = Pattern(name, 1024, 32).layer(8)  # type: ignore[arg-type]
    torch.cuda.reset_peak_memory_stats()
    q, k, v, dout = (torch.randn(1, 8, n, width, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    found = ours(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), dout, layer)
    assert torch.cuda.max_memory_allocated() < 80e9
    i, j = torch.randint(n, (64,), device="cuda"), torch.arange(n, device="cuda")
    with torch.no_grad():
        scores = (q[0, 7, i].double() @ k[0, 7].double().T) * width**-0.5
        p = torch.softmax(scores.masked_fill(~layer[7].sees(i[:, None], j[None, :]), -1e300), -1)
        out = p @ v[0, 7].double()
        dp = dout[0, 7, i].double() @ v[0, 7].double().T
        delta = (out * dout[0, 7, i].double()).sum(-1, keepdim=True)
        dq = (p * (dp - delta)) @ k[0, 7].double() * width**-0.5
    assert error(found[0][0, 7, i], out) < 1e-2
    assert error(found[1][0, 7, i], dq) < 1e-2
    assert all(x.isfinite().all() for x in found[2:])
