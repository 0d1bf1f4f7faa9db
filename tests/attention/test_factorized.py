"""The factorized backend against the oracle, in float64 to 1e-10 unless a test says otherwise."""

from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from src.attention import KeySet, Pattern, Strided, Summary, Window
from src.attention.backends import attend
from src.attention.factorized import function
from src.attention.factorized.parts import tiles_of
from src.attention.factorized.tiles import Tile

Layer = tuple[KeySet, ...]
HEADS = 4


def draw(
    n: int, width: int = 6, width_v: int = 10, batch: int = 2, dtype: torch.dtype = torch.float64, kv_heads: int = HEADS
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    shapes = [(batch, HEADS, n, width), (batch, kv_heads, n, width), (batch, kv_heads, n, width_v)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in drawn]


def both_passes(inputs: list[Tensor], layer: Layer, backend: str) -> list[Tensor]:
    out = attend(*inputs, layer, backend)  # type: ignore[arg-type]
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad(out, inputs, weights)]


def assert_equal_to_reference(inputs: list[Tensor], layer: Layer, tolerance: float = 1e-10) -> None:
    found, wanted = both_passes(inputs, layer, "torch"), both_passes(inputs, layer, "reference")
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        error = (a - b).abs().max().item()
        assert error <= tolerance, f"{name} is off by {error}"


MODES = ("merged", "interleaved", "multihead")
PATTERNS = [
    Pattern(name, 8, 2, mode, distinct, (2, 1))
    for name, mode, distinct in product(("strided", "fixed"), MODES, (True, False))
    if distinct or name == "fixed"
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: f"{p.name}-{p.mode}-{p.distinct}")
@pytest.mark.parametrize("n", [1, 3, 8, 9, 40, 61])
def test_values_and_gradients_equal_the_reference(pattern: Pattern, n: int) -> None:
    for block in range(3 if pattern.mode == "interleaved" else 1):
        assert_equal_to_reference(draw(n), pattern.layer(HEADS, block))


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: f"{p.name}-{p.mode}-{p.distinct}")
def test_the_smallest_tiles_give_the_same(pattern: Pattern, monkeypatch: pytest.MonkeyPatch) -> None:
    for budget in (1, 60):
        monkeypatch.setattr(function, "CPU_BUDGET", budget)
        assert_equal_to_reference(draw(29), pattern.layer(HEADS, 0))
        assert_equal_to_reference(draw(29), pattern.layer(HEADS, 2))


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: f"{p.name}-{p.mode}-{p.distinct}")
def test_heads_may_share_keys(pattern: Pattern, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_equal_to_reference(draw(40, kv_heads=kv_heads), pattern.layer(HEADS, 0))
    monkeypatch.setattr(function, "CPU_BUDGET", 60)  # a head after the other
    assert_equal_to_reference(draw(29, kv_heads=kv_heads), pattern.layer(HEADS, 2))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["strided", "fixed"]),
    mode=st.sampled_from(MODES),
    summary=st.integers(1, 5),
    choices=st.integers(1, 5),
    n=st.integers(1, 90),
    distinct=st.booleans(),
    block=st.integers(0, 1),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_any_pattern_equals_the_reference(name, mode, summary, choices, n, distinct, block, widths) -> None:  # type: ignore[no-untyped-def]
    pattern = Pattern(name, summary * choices, summary, mode, distinct)
    assert_equal_to_reference(draw(n, *widths), pattern.layer(HEADS, block))


def kept(tile: Tile, keys: KeySet) -> list[tuple[int, int]]:
    """The (query, key) positions of one tile, straight from its indices and its bias."""
    first = getattr(keys, "first_cell", 0)
    bias = tile.bias(torch.tensor([first]), torch.zeros(1))
    rows, columns = tile.queries.count, tile.keys.count
    hidden = torch.zeros(rows, columns)
    if bias is not None:
        hidden[:, bias[0]] = bias[1].reshape(rows, -1)

    def key(position: int) -> int:
        if not tile.gathered:
            return position
        block, cell = divmod(position, keys.summary)  # type: ignore[attr-defined]
        return block * keys.stride + first + cell  # type: ignore[attr-defined]

    return [
        (
            tile.queries.start + a * tile.queries.batch_step + r * tile.queries.step,
            key(tile.keys.start + a * tile.keys.batch_step + s * tile.keys.step),
        )
        for a in range(tile.queries.batch)
        for r in range(rows)
        for s in range(columns)
        if hidden[r, s] == 0
    ]


@settings(max_examples=80, deadline=None)
@given(
    pattern=st.sampled_from(PATTERNS),
    block=st.integers(0, 2),
    n=st.integers(1, 50),
    budget=st.integers(1, 400),
)
def test_tiles_hold_every_kept_pair_exactly_once(pattern: Pattern, block: int, n: int, budget: int) -> None:
    for keys in set(pattern.layer(HEADS, block)):
        tiles = list(tiles_of(keys, n, budget))
        pairs = Counter(pair for tile in tiles for pair in kept(tile, keys))
        assert pairs == Counter((i, j) for i in range(n) for j in range(i + 1) if keys.sees(i, j))


def test_tiles_stay_within_the_budget_and_waste_little() -> None:
    n, budget = 12_288, 1 << 19
    for keys in (Strided(128), *Pattern("fixed", 128, 32).layer(1), Window(128), Summary(128, 32)):
        scores = [tile.scores() for tile in tiles_of(keys, n, budget)]
        assert max(scores) <= budget
        assert sum(scores) <= 2.1 * keys.pairs(n)


def test_empty_rows_are_zero_with_zero_gradient() -> None:
    inputs = draw(20)
    layer = (Summary(8, 2),) * HEADS
    out, dq, dk, dv = both_passes(inputs, layer, "torch")
    assert out[:, :, :6].eq(0).all()
    assert dq[:, :, :6].eq(0).all()
    assert all(x.isfinite().all() for x in (out, dq, dk, dv))
    assert out[:, :, 6:].ne(0).all()


def test_only_empty_rows() -> None:
    for x in both_passes(draw(5), (Summary(8, 2),) * HEADS, "torch"):
        assert x.eq(0).all()


def test_inputs_may_be_views_of_a_fused_projection() -> None:
    fused = torch.randn(2, 29, 3 * HEADS * 6, dtype=torch.float64, requires_grad=True)
    layer = Pattern("fixed", 8, 2).layer(HEADS)
    gradients = []
    for backend in ("torch", "reference"):
        q, k, v = (x.unflatten(-1, (HEADS, 6)).transpose(1, 2) for x in fused.chunk(3, -1))
        out = attend(q, k, v, layer, backend)
        gradients.append(torch.autograd.grad(out.square().sum(), fused)[0])
    assert (gradients[0] - gradients[1]).abs().max() < 1e-10


def test_an_expanded_incoming_gradient_works() -> None:
    layer = Pattern("strided", 8).layer(HEADS)
    gradients = []
    for backend in ("torch", "reference"):
        inputs = draw(29)
        attend(*inputs, layer, backend).sum().backward()
        gradients.append([x.grad for x in inputs])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() < 1e-10


def test_the_output_is_laid_out_with_heads_side_by_side() -> None:
    out = attend(*draw(16), Pattern("fixed", 8, 2).layer(HEADS), "torch")
    assert out.transpose(1, 2).is_contiguous()


def test_large_scores_do_not_overflow() -> None:
    inputs = [(x * 60).detach().requires_grad_() for x in draw(40)]
    assert_equal_to_reference(inputs, Pattern("strided", 8).layer(HEADS), tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_short_dtypes_are_computed_in_fp32(dtype: torch.dtype) -> None:
    """The only error is that of rounding the exact result once: half a unit in the last place, and fp32 noise."""
    inputs = draw(61, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    layer = Pattern("fixed", 8, 2).layer(HEADS)
    out, wanted = attend(*inputs, layer, "torch"), attend(*exact, layer, "reference")
    assert out.dtype == dtype
    error = (out.double() - wanted).abs()
    assert (error <= torch.finfo(dtype).eps / 2 * wanted.abs() + 1e-5).all()
    out.sum().backward()
    assert inputs[0].grad is not None and inputs[0].grad.dtype == dtype


def test_autocast_changes_neither_dtype_nor_precision() -> None:
    inputs = draw(29, dtype=torch.float32)
    layer = Pattern("strided", 8).layer(HEADS)
    plain = both_passes(inputs, layer, "torch")
    with torch.autocast("cpu", torch.bfloat16):
        automatic = both_passes(inputs, layer, "torch")
    for a, b in zip(plain, automatic, strict=True):
        assert torch.equal(a, b)


def test_recomputation_gives_identical_gradients() -> None:
    inputs = draw(29)
    layer = Pattern("fixed", 8, 2, "multihead").layer(HEADS)
    out = checkpoint(attend, *inputs, layer, "torch", use_reentrant=False)
    again = torch.autograd.grad(out.square().sum(), inputs)
    plain = torch.autograd.grad(attend(*inputs, layer, "torch").square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))


def test_two_runs_are_bit_identical() -> None:
    inputs = draw(61, dtype=torch.float32)
    layer = Pattern("fixed", 8, 2).layer(HEADS)
    first, second = both_passes(inputs, layer, "torch"), both_passes(inputs, layer, "torch")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_query_sees_a_later_input() -> None:
    q, k, v = draw(29)
    out = attend(q, k, v, Pattern("strided", 8).layer(HEADS), "torch")
    for x in torch.autograd.grad(out[:, :, :17].sum(), (q, k, v)):
        assert x[:, :, 17:].eq(0).all()
        assert x[:, :, :17].ne(0).any()


def test_a_graph_of_the_gradient_is_refused() -> None:
    inputs = draw(9)
    out = attend(*inputs, Pattern("strided", 8).layer(HEADS), "torch")
    (gradient,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="needs backend=reference"):
        gradient.sum().backward()


def test_nothing_quadratic_is_allocated() -> None:
    """16,384 positions, stride 128: a single n*n byte mask would be 256 MiB."""
    n = 16_384
    inputs = [torch.randn(1, 1, n, 8, requires_grad=True) for _ in range(3)]
    with torch.profiler.profile(profile_memory=True) as profile:
        attend(*inputs, (Strided(128),), "torch").sum().backward()
    assert max(event.cpu_memory_usage for event in profile.events()) < 16 << 20
