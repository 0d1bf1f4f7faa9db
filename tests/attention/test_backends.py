"""The one door: which backend is taken, and what is refused."""

import builtins
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from src.attention import Column, Dense, Pattern, Window
from src.attention import backends as door
from src.attention.backends import attend, resolve_backend, triton_problem
from src.attention.other_key_sets import Local

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DENSE, STRIDED = Pattern("dense").layer(2), Pattern("strided", 4).layer(2)


def qkv(n: int = 9, heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, n, 6, dtype=torch.float64, generator=generator) for _ in range(3)]


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the package, as on a Mac."""
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(builtins, "__import__", refuse)
    triton_problem.cache_clear()
    yield
    triton_problem.cache_clear()


def test_auto_is_sdpa_for_dense_and_torch_for_sparse_on_a_cpu() -> None:
    assert resolve_backend("auto", DENSE, CPU) == "sdpa"
    assert resolve_backend("auto", STRIDED, CPU) == "torch"
    assert resolve_backend("torch", DENSE, CPU) == "sdpa"
    assert resolve_backend("reference", DENSE, CPU) == "reference"


def test_auto_is_triton_on_a_gpu_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "triton_problem", lambda device: None)
    assert resolve_backend("auto", STRIDED, CUDA) == "triton"
    assert resolve_backend("triton", STRIDED, CUDA) == "triton"
    assert resolve_backend("torch", STRIDED, CUDA) == "torch"
    assert resolve_backend("auto", DENSE, CUDA) == "sdpa"
    assert resolve_backend("auto", DENSE, CUDA, documents=True) == "triton"
    assert resolve_backend("torch", DENSE, CUDA, documents=True) == "torch"
    assert resolve_backend("auto", DENSE, CPU, documents=True) == "torch"


def test_without_triton_auto_is_torch_and_triton_is_refused(no_triton: None) -> None:
    assert triton_problem(CUDA) is not None
    assert resolve_backend("auto", STRIDED, CUDA) == "torch"
    with pytest.raises(
        ValueError, match=r"^backend triton is not available: Triton is not installed.*; use torch or auto$"
    ):
        resolve_backend("triton", STRIDED, CUDA)
    assert attend(*qkv(), STRIDED).shape == (2, 2, 9, 6)


def test_triton_on_a_cpu_is_refused_and_never_turns_into_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    triton_problem.cache_clear()
    for layer in (STRIDED, DENSE):
        with pytest.raises(
            ValueError, match=r"backend triton is not available: Triton runs on GPUs.*; use torch or auto"
        ):
            attend(*qkv(), layer, "triton")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, triton, torch, flex, reference, found 'cuda'"):
        attend(*qkv(), STRIDED, "cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_dense_is_causal_attention(backend: Any) -> None:
    wanted = scaled_dot_product_attention(*qkv(), is_causal=True)
    assert torch.allclose(attend(*qkv(), DENSE, backend), wanted, atol=1e-12)


@pytest.mark.parametrize("layer", [DENSE, STRIDED])
def test_the_scale_is_one_over_the_root_of_the_width_unless_given(layer: Any) -> None:
    for backend in ("auto", "reference"):
        default = attend(*qkv(), layer, backend)
        assert torch.allclose(default, attend(*qkv(), layer, backend, scale=6**-0.5), atol=1e-12)
        assert not torch.allclose(default, attend(*qkv(), layer, backend, scale=1.0), atol=1e-2)


def test_dense_and_sparse_heads_side_by_side() -> None:
    layer = (Window(3), Dense(), Column(3), Dense())
    found, wanted = (attend(*qkv(heads=4), layer, backend) for backend in ("torch", "reference"))
    assert torch.allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize(
    "layer",
    [
        Pattern("dense").layer(4), Pattern("strided", 4).layer(4), Pattern("fixed", 4, 2).layer(4), (Local(3),) * 4,
        (Window(3), Dense(), Local(3, 2), Dense()),
    ],
    ids=["dense", "strided", "fixed", "local", "of all kinds"],
)  # fmt: skip
def test_shared_keys_have_the_values_and_gradients_of_their_definition(layer: Any, kv_heads: int) -> None:
    q, k, v = qkv(23, heads=4)
    given = [x.requires_grad_() for x in (q, k[:, :kv_heads].clone(), v[:, :kv_heads].clone())]
    found, wanted = (attend(*given, layer, backend) for backend in ("torch", "reference"))
    upstream = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad(out, given, upstream) for out in (found, wanted)]
    assert torch.allclose(found, wanted, atol=1e-12)
    for ours, true in zip(*gradients, strict=True):
        assert ours.shape == true.shape and torch.allclose(ours, true, atol=1e-12)


def test_shapes_that_do_not_fit_are_refused_in_a_sentence() -> None:
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"q must be \(B, H, Nq, D\).*found q \(2, 2, 9, 6\), k \(2, 2, 9, 5\)"):
        attend(q, k[..., :5], v, STRIDED)
    with pytest.raises(ValueError, match="q must be"):
        attend(q, k, v[:, :, :8], STRIDED)
    with pytest.raises(ValueError, match="q must be"):
        attend(q[0], k[0], v[0], STRIDED)
    with pytest.raises(ValueError, match="layer must have one key set a head, found 1 for 2 heads"):
        attend(q, k, v, STRIDED[:1])
    with pytest.raises(ValueError, match=r"one floating dtype, found torch.float64, torch.float64, torch.float32"):
        attend(q, k, v.float(), STRIDED)


def test_the_reference_makes_no_nan_for_empty_rows() -> None:
    inputs = [x.requires_grad_() for x in qkv()]
    out = attend(*inputs, Pattern("fixed", 8, 2, "interleaved", distinct=False).layer(2, block=1), "reference")
    assert out[:, :, :6].eq(0).all()
    with torch.autograd.set_detect_anomaly(True):
        gradients = torch.autograd.grad(out.sum(), inputs)
    assert all(x.isfinite().all() for x in gradients)


def test_dense_compiles_without_a_graph_break() -> None:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, DENSE)

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(*qkv()), run(*qkv()))


def test_sparse_works_under_compile() -> None:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q * 2, k, v, STRIDED, "torch") + 1

    assert torch.allclose(torch.compile(run, backend="eager")(*qkv()), run(*qkv()))


@pytest.mark.parametrize("name", ["dense", "fixed", "strided"])
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize(("device", "shape"), [("cpu", (0, 2, 16, 8)), ("cpu", (2, 2, 0, 8)), ("meta", (2, 2, 16, 8))])
def test_nothing_gives_nothing_of_the_right_shape(name, backend, device, shape):
    q, k, v = (torch.randn(shape, device=device, requires_grad=True) for _ in range(3))
    out = attend(q, k, v, Pattern(name, 8, 2).layer(2), backend)
    out.sum().backward()
    assert out.shape == shape and out.device.type == device
    assert q.grad.shape == k.grad.shape == v.grad.shape == shape


def test_the_package_gives_the_function():
    import src.attention

    assert src.attention.attend is attend
