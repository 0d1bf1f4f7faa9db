"""The torch backend under torch.func, torch.compile and torch.export, and what it refuses there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from src.attention import Column, Dense, Fixed, KeySet, Pattern, Strided, Summary, Window
from src.attention.backends import attend
from src.attention.factorized.layer_code import read_layer, write_layer
from src.models.sparse_transformer import SparseTransformer

Layer = tuple[KeySet, ...]
FIXED, STRIDED = Pattern("fixed", 8, 2).layer(4), Pattern("strided", 8).layer(4)
MIXED: Layer = (Window(3), Dense(), Column(3), Summary(8, 2, 1))


def draw(*lead: int) -> Tensor:
    return torch.randn(*lead, 2, 4, 21, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(len(lead)))


def loss(layer: Layer, backend: Any) -> Callable[..., Tensor]:
    return lambda q, k, v: attend(q, k, v, layer, backend).square().sum()


def network() -> SparseTransformer:
    torch.manual_seed(0)
    model = SparseTransformer(pattern=Pattern("fixed", 8, 2), context=32, depth=2, width=16, heads=2, backend="torch")
    torch.nn.init.normal_(model.output.weight)
    return model


@pytest.mark.parametrize("layer", [FIXED, STRIDED, MIXED])
def test_a_layer_is_names_and_numbers_and_back(layer: Layer) -> None:
    assert read_layer(*write_layer(layer)) == layer


def test_names_and_numbers_of_a_layer() -> None:
    assert write_layer((Strided(4), Fixed(8, 2, 3))) == ("Strided Fixed", [4, 8, 2, 3])


@pytest.mark.parametrize("layer", [FIXED, STRIDED, MIXED])
def test_vmap_of_grad_equals_the_reference(layer: Layer) -> None:
    found, wanted = (
        torch.func.vmap(torch.func.grad(loss(layer, backend), argnums=(0, 1, 2)), in_dims=(0, None, 2))(
            draw(3), draw(), draw(3).permute(1, 2, 0, 3, 4)
        )
        for backend in ("torch", "reference")
    )
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-10


def test_jacrev_equals_the_reference() -> None:
    found, wanted = (
        torch.func.jacrev(lambda q, b=backend: attend(q, draw(), draw(), FIXED, b).sum((0, 1, 3)))(draw())  # type: ignore[misc]
        for backend in ("torch", "reference")
    )
    assert (found - wanted).abs().max() < 1e-10


def test_gradients_of_each_sample_of_a_network() -> None:
    model = network().double()
    weights, x = dict(model.named_parameters()), torch.randint(256, (3, 32))

    def one(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(model, weights, (row[None],))
        return out.square().mean()

    found = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0))(weights, x)
    wanted = torch.autograd.grad(one(weights, x[1]), list(weights.values()))
    assert all((a[1] - b).abs().max() < 1e-10 for a, b in zip(found.values(), wanted, strict=True))


@pytest.mark.parametrize("layer", [FIXED, STRIDED, MIXED])
def test_compiles_without_a_graph_break(layer: Layer) -> None:
    def gradient(run: Callable[..., Tensor]) -> Tensor:
        q = draw().requires_grad_()
        return torch.autograd.grad(run(q * 2, draw(), draw()), q)[0]

    compiled = torch.compile(loss(layer, "torch"), fullgraph=True, backend="aot_eager")
    assert (gradient(compiled) - gradient(loss(layer, "torch"))).abs().max() < 1e-12


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_network_trains(strict: bool) -> None:
    model, x = network(), torch.randint(256, (3, 32))
    exported = torch.export.export(model, (x,), strict=strict).module()
    for one in (model, exported):
        one(x).square().mean().backward()
    found = dict(exported.named_parameters())
    for name, weight in model.named_parameters():
        assert torch.equal(found[name].grad, weight.grad), name  # type: ignore[arg-type]


def test_an_exported_network_is_loaded_and_takes_other_sizes(tmp_path: Any) -> None:
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("n", min=3, max=32)},)
    model = network().eval()
    exported = torch.export.export(model, (torch.randint(256, (3, 32)),), dynamic_shapes=sizes)
    torch.export.save(exported, tmp_path / "network.pt2")
    x = torch.randint(256, (5, 19))
    assert torch.equal(torch.export.load(tmp_path / "network.pt2").module()(x), model(x))


def test_the_operators_keep_what_pytorch_asks_of_them() -> None:
    q, k, v = (draw().requires_grad_() for _ in range(3))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    op = torch.ops.sparse_transformer.factorized.default
    torch.library.opcheck(op, (q, k, v, *write_layer(FIXED), 0.4), test_utils=checks)


@pytest.mark.parametrize("nested", [False, True])
def test_a_derivative_of_the_gradient_names_the_backend_that_has_it(nested: bool) -> None:
    first = torch.func.grad(loss(FIXED, "torch"))
    with pytest.raises(RuntimeError, match=r"a derivative of the gradient .* needs backend=reference"):
        if nested:
            torch.func.grad(lambda q: first(q, draw(), draw()).sum())(draw())
        else:
            q = draw().requires_grad_()
            out = loss(FIXED, "torch")(q, draw(), draw())
            torch.autograd.grad(out, q, create_graph=True)[0].sum().backward()
    second = torch.func.grad(lambda q: torch.func.grad(loss(FIXED, "reference"))(q, draw(), draw()).square().sum())
    assert second(draw()).isfinite().all()


def test_forward_mode_names_the_backend_that_has_it() -> None:
    with pytest.raises(RuntimeError, match=r"forward mode \(jvp, jacfwd\) needs backend=reference"):
        torch.func.jvp(lambda q: attend(q, draw(), draw(), FIXED, "torch"), (draw(),), (draw(),))
    tangent = torch.func.jvp(lambda q: attend(q, draw(), draw(), FIXED, "reference"), (draw(),), (draw(),))[1]
    assert tangent.isfinite().all()
