"""The Triton kernels against float64, on the CPU through Triton's interpreter, in fp32 and fp16."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")

from src.attention.key_sets import KeySet, Summary, Window
from src.attention.patterns import Pattern, shared_layer
from src.attention.reference import reference_attention
from src.attention.triton import passes, problem, sparse_attention, sparse_attention_packed
from src.attention.triton.tuning import Config

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there: see tests/gpu")

SMALL = Config(16, 16, 4, 1)
AT_ONCE = Config(64, 16, 4, 1, per=2)  # a short column in one program, two columns a program
UNEVEN = Config(32, 16, 4, 1)


@pytest.fixture(autouse=True)
def _poisoned_results(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Results start as NaN, so that an element that no kernel writes shows."""
    assert problem("cpu") is None
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(torch.nan))
    yield


def draw(
    layer: tuple[KeySet, ...], n: int, qk: int, v: int, dtype: torch.dtype, batch: int = 1, kv_heads: int | None = None
) -> list[torch.Tensor]:
    """Views of one fused projection, and a gradient of the output."""
    heads, shared = len(layer), kv_heads or len(layer)
    fused = torch.randn(batch, n, heads * qk + shared * (qk + v)).to(dtype)
    parts = fused.split([heads * qk, shared * qk, shared * v], -1)
    counts = (heads, shared, shared)
    q, k, values = (
        x.unflatten(-1, (count, -1)).transpose(1, 2).requires_grad_() for x, count in zip(parts, counts, strict=True)
    )
    return [q, k, values, torch.randn(batch, heads, n, v).to(dtype)]


def run(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, layer: tuple[KeySet, ...]
) -> list[torch.Tensor]:
    out = sparse_attention(q, k, v, layer)
    return [out, *torch.autograd.grad(out, (q, k, v), dout)]


def check(
    layer: tuple[KeySet, ...], n: int, qk: int = 16, v: int = 16, dtype: torch.dtype = torch.float32, batch: int = 1,
    kv_heads: int | None = None,
) -> None:  # fmt: skip
    """Compare values and gradients with the definition in float64."""
    q, k, v_, dout = draw(layer, n, qk, v, dtype, batch, kv_heads)
    found = run(q, k, v_, dout, layer)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v_)]
    out = reference_attention(*exact, layer, qk**-0.5)
    true = [out, *torch.autograd.grad(out, exact, dout.double())]
    bound = 1e-5 if dtype == torch.float32 else 4e-3
    for name, x, y in zip(("out", "dq", "dk", "dv"), found, true, strict=True):
        assert not x.isnan().any(), f"{name} has elements that no kernel wrote"
        assert (x.double() - y).norm() <= bound * (y.norm() + 0.1), name


# pattern, n, heads, configuration: lengths that no tile or stride divides, and tiles that span blocks
CASES = [
    ("strided", 5, 1, 61, 2, SMALL),
    ("strided", 32, 1, 70, 1, AT_ONCE),
    ("strided", 8, 1, 150, 1, UNEVEN),
    pytest.param("strided", 96, 1, 130, 1, Config(32, 16, 4, 1, per=4), marks=pytest.mark.slow),
    ("fixed", 32, 8, 100, 3, SMALL),
    ("fixed", 96, 32, 130, 3, UNEVEN),
    ("fixed", 12, 4, 77, 2, UNEVEN),
    pytest.param("fixed", 64, 64, 150, 2, Config(16, 64, 4, 1), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
    "mode",
    ["merged", "interleaved", pytest.param("multihead", marks=pytest.mark.slow)],  # sets of the one before
)
@pytest.mark.parametrize(("name", "stride", "summary", "n", "heads", "config"), CASES)
def test_every_pattern_and_mode(
    monkeypatch: pytest.MonkeyPatch, name: str, stride: int, summary: int, n: int, heads: int, config: Config, mode: str
) -> None:
    monkeypatch.setattr(passes, "find", lambda *_: config)
    pattern = Pattern(name, stride, summary, mode)  # type: ignore[arg-type]
    for block in (0, 1) if mode == "interleaved" else (0,):
        check(pattern.layer(max(heads, 2) if mode == "multihead" else heads, block), n)


# a program of the strided kernels is a column of a head: few columns, as the interpreter's time goes by programs
FEW_PROGRAMS = [Pattern("strided", 4), Pattern("fixed", 16, 4)]


@pytest.mark.parametrize("pattern", FEW_PROGRAMS, ids=str)
def test_fp16_and_uneven_widths(pattern: Pattern) -> None:
    check(pattern.layer(2), 50, 24, 48, torch.float16, batch=2)


def test_one_position_and_shorter_than_the_stride() -> None:
    for n in (1, 9):
        check(Pattern("strided", 16).layer(1), n)
        check(Pattern("fixed", 16, 4).layer(2), n)


def test_a_query_that_sees_nothing_gives_zero() -> None:
    layer = (Summary(16, 4),)
    q, k, v, dout = draw(layer, 40, 16, 16, torch.float32)
    out, dq, *_ = run(q, k, v, dout, layer)
    assert out[:, :, :12].eq(0).all() and dq[:, :, :12].eq(0).all()
    assert out[:, :, 12:].ne(0).any(-1).all()


def test_any_mixture_of_heads() -> None:
    check((Summary(16, 4, 1), Summary(16, 4, 1), Summary(16, 4, 3), Window(5), Summary(16, 4, 0)), 45)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize(
    "pattern",
    [Pattern("strided", 4), Pattern("fixed", 16, 4), Pattern("strided", 4, mode="multihead"),
     Pattern("fixed", 16, 4, mode="multihead")],
    ids=str,
)  # fmt: skip
def test_heads_that_share_keys(pattern: Pattern, kv_heads: int) -> None:
    check(pattern.layer(4), 37, v=24, kv_heads=kv_heads)


def test_heads_of_unlike_sets_that_share_keys() -> None:
    """Launches that begin and end amid the heads of a key, and sub-blocks that repeat."""
    three = (Summary(16, 4, 1), Summary(16, 4, 1), Summary(16, 4, 3), Window(5), Window(5), Summary(16, 4, 0))
    check(three, 45, kv_heads=2)
    check(three, 45, kv_heads=3)
    layer = shared_layer(Pattern("fixed", 16, 4), 8, 4)
    assert [(run.start, run.stop, run.sub_step, run.repeat) for run in passes.runs(layer)] == [(0, 8, 1, 2)]
    check(layer, 37, kv_heads=4)


def test_shared_keys_in_fp16_have_gradients_summed_in_float32() -> None:
    check(Pattern("fixed", 16, 4).layer(4), 40, dtype=torch.float16, batch=2, kv_heads=1)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("pattern", FEW_PROGRAMS, ids=str)
def test_packed_writes_one_gradient(pattern: Pattern, kv_heads: int) -> None:
    layer = pattern.layer(2)
    q, k, v, dout = draw(layer, 40, 16, 32, torch.float32, kv_heads=kv_heads)
    fused = torch.cat([x.detach().transpose(1, 2).flatten(2) for x in (q, k, v)], -1).requires_grad_()
    out = sparse_attention_packed(fused, layer, 16, 32)
    (grad,) = torch.autograd.grad(out, fused, dout.transpose(1, 2).flatten(2))
    true = run(q, k, v, dout, layer)
    assert torch.equal(out, true[0].transpose(1, 2).flatten(2))
    assert torch.equal(grad, torch.cat([x.transpose(1, 2).flatten(2) for x in true[1:]], -1))


@pytest.mark.parametrize("pattern", FEW_PROGRAMS, ids=str)
def test_expanded_gradient(pattern: Pattern) -> None:
    layer = pattern.layer(1)
    q, k, v, dout = draw(layer, 40, 16, 16, torch.float32)
    for x, y in zip(
        run(q, k, v, torch.ones(()).expand(dout.shape), layer), run(q, k, v, torch.ones_like(dout), layer), strict=True
    ):
        assert torch.equal(x, y)
