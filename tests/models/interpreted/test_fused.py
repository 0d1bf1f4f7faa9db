"""The fused residual block and loss against float64, in every recompute policy."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src.attention import Pattern
from src.attention.chosen import chosen
from src.models.fused import activation, residual
from src.models.fused.loss import cross_entropy
from src.models.fused.row_sums import RowSums
from src.models.options import BlockOptions
from src.training.language_model import Batch, LanguageModel
from tests.models.recipes import RECIPES
from tests.models.test_documents import DOCUMENTS, EVERY
from tests.models.test_sparse_transformer import PATTERNS, small, trained

POLICIES = ("none", "light", "block")


def loss_and_gradients(model, x, documents=None):
    torch.manual_seed(7)
    loss = LanguageModel(model, max_steps=1).training_step(Batch(x, torch.tensor([x.shape[1]]), documents), 0)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    ("pattern", "recompute"),
    [*zip(PATTERNS, itertools.cycle(POLICIES), strict=False), *((PATTERNS[1], policy) for policy in POLICIES)],
    ids=str,
)
def test_model_equals_float64(pattern, recompute):
    x = torch.randint(256, (3, 37))
    values = {"width": 24, "half_size_qk": True, "half_size_ff": True}  # nothing is a power of two
    exact = trained(small(pattern, block_backend="eager", **values)).double().train()
    model = trained(small(pattern, block_backend="fused", recompute=recompute, **values)).train()
    model.load_state_dict(exact.state_dict())
    for found, wanted in zip(loss_and_gradients(model, x), loss_and_gradients(exact, x), strict=True):
        assert (found - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize(
    ("recipe", "recompute"),
    [*zip(RECIPES, itertools.cycle(POLICIES), strict=False), *(("modern", policy) for policy in POLICIES[1:])],
)
def test_every_recipe_equals_float64(recipe, recompute):
    x = torch.randint(256, (3, 37))
    pattern = PATTERNS[list(RECIPES).index(recipe) % len(PATTERNS)]
    exact = trained(small(pattern, block_backend="eager", **RECIPES[recipe])).double().train()
    model = trained(small(pattern, block_backend="fused", recompute=recompute, **RECIPES[recipe])).train()
    model.load_state_dict(exact.state_dict())
    for found, wanted in zip(loss_and_gradients(model, x), loss_and_gradients(exact, x), strict=True):
        assert (found - wanted).norm() <= 3e-6 * wanted.norm()


@pytest.mark.parametrize(("pattern", "recompute"), [*zip(EVERY[::2], itertools.cycle(POLICIES), strict=False)], ids=str)
def test_documents_equal_float64(pattern, recompute):
    """The paper's sets too, by the kernels over lists of tiles; with rotary positions, which turn in place."""
    x, recipe = torch.randint(256, (2, 37)), {"rotary": 50.0, "half_size_qk": True, "width": 32}
    exact = trained(small(pattern, block_backend="eager", backend="reference", **recipe)).double().train()
    model = small(pattern, block_backend="fused", backend="triton", recompute=recompute, **recipe).train()
    model.load_state_dict(exact.state_dict())
    results = [loss_and_gradients(each, x, DOCUMENTS) for each in (model, exact)]
    for found, wanted in zip(*results, strict=True):
        assert (found - wanted).norm() <= 3e-6 * wanted.norm()
    assert abs(loss_and_gradients(model, x)[0] - results[0][0]) > 1e-3  # without documents it is another loss


@pytest.mark.parametrize(
    ("pattern", "kv_heads", "recompute"),
    [
        (Pattern("dense"), 1, "light"), (Pattern("dense"), 2, "none"),
        (Pattern("strided", 4), 1, "none"), (Pattern("strided", 4), 2, "block"),
        (Pattern("fixed", 8, 2), 1, "block"), (Pattern("fixed", 8, 2), 2, "light"),
        (chosen("local", {"window": 5}), 1, "light"), (chosen("local", {"window": 5}), 2, "none"),
    ],
    ids=str,
)  # fmt: skip
def test_heads_that_share_keys_equal_float64(pattern, kv_heads, recompute):
    """With attention by the Triton kernels too."""
    x = torch.randint(256, (2, 37))
    values = RECIPES["modern"] | {"width": 48, "heads": 4, "kv_heads": kv_heads, "half_size_qk": True, "depth": 1}
    if recompute == "block":
        values |= {"options": BlockOptions(qk_norm=0.7)}  # with biases
    exact = trained(small(pattern, block_backend="eager", **values)).double().train()
    model = trained(small(pattern, block_backend="fused", backend="triton", recompute=recompute, **values)).train()
    model.load_state_dict(exact.state_dict())
    for found, wanted in zip(loss_and_gradients(model, x), loss_and_gradients(exact, x), strict=True):
        assert (found - wanted).norm() <= 3e-6 * wanted.norm()


@pytest.mark.parametrize("recompute", POLICIES[1:])
def test_recomputation_drops_what_was_dropped(recompute):
    x = torch.randint(256, (2, 37))
    kept, again = (
        loss_and_gradients(trained(small(dropout=0.4, block_backend="fused", recompute=policy)).train(), x)
        for policy in ("none", recompute)
    )
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_dropout_is_of_the_seed_and_the_branch_and_keeps_the_mean():
    ones, zeros = torch.ones(1001, 64), torch.zeros(1001, 64)

    def dropped(seed, branch):
        return residual.add(zeros, ones, residual.Drop(torch.tensor([seed]), branch, 0.4))

    first = dropped(2**61 + 5, 0)
    assert torch.equal(first, dropped(2**61 + 5, 0))
    assert set(first.unique().tolist()) == {0.0, torch.tensor(1 / 0.6).item()}
    kept = first > 0
    deviation = (0.6 * 0.4 / kept.numel()) ** 0.5
    assert abs(kept.float().mean() - 0.6) < 5 * deviation
    for other in (dropped(2**61 + 5, 1), dropped(2**61 + 7, 0), first.roll(1, 0), first.roll(1, 1)):
        agree = ((other > 0) == kept).float().mean()
        assert abs(agree - (0.36 + 0.16)) < 10 * deviation


def test_gradient_passes_where_the_branch_passed():
    drop = residual.Drop(torch.tensor([12345678901234567]), 0, 0.25)
    hidden, branch = torch.randn(37, 24), torch.randn(37, 24)
    total = residual.add(hidden, branch, drop)
    sums = RowSums(37, 24, hidden.device)
    d_total = torch.randn(37, 24)
    d_hidden, d_branch = residual.backward(d_total, sums, drop, bias="bias")
    mask = (total - hidden) / branch
    assert torch.equal(d_hidden, d_total)
    torch.testing.assert_close(d_branch, d_total * mask, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums.joined()["bias"], d_branch.sum(0))


@pytest.mark.parametrize("kind", ["gelu", "relu2"])
def test_activation_is_its_formula_and_its_derivative(kind):
    x = torch.randn(50, 300) * 4
    exact = x.double().requires_grad_()
    wanted = exact * torch.sigmoid(1.702 * exact) if kind == "gelu" else exact.clamp(min=0) ** 2
    d_out = torch.randn(50, 300)
    (d_wanted,) = torch.autograd.grad(wanted, exact, d_out.double())
    sums = RowSums(50, 300, x.device)
    d_x, again = activation.activate_backward(d_out.clone(), x, sums, "bias", kind)
    for found, right in ((activation.activate(x, kind), wanted), (again, wanted), (d_x, d_wanted)):
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums.joined()["bias"].double(), d_wanted.sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int64])
def test_loss_equals_float64(target_dtype):
    logits = (torch.randn(37, 256) * 20).requires_grad_()
    target = torch.randint(256, (37,))
    exact = logits.detach().double().requires_grad_()
    wanted = F.cross_entropy(exact, target, reduction="none")
    found = cross_entropy(logits, target.to(target_dtype))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    wanted.mean().backward()
    found.mean().backward()  # an expanded gradient, of stride 0
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-8)


def test_norm_of_large_rows_keeps_its_accuracy():
    x = 1000 + torch.randn(5, 40)
    weight, bias = torch.randn(40), torch.randn(40)
    wanted = F.layer_norm(x.double(), (40,), weight.double(), bias.double())
    torch.testing.assert_close(residual.norm(x, residual.Norm(weight, bias)).double(), wanted, rtol=1e-3, atol=1e-3)


def test_policies_keep_less_and_less():
    """Numbers kept between the passes, besides the block's input."""
    from src.models.fused.residual_block import Kept

    names = ("hidden", "normed", "attended", "middle", "middle_normed", "inner")
    kept = Kept(*(torch.zeros(1) for _ in names))  # type: ignore[arg-type]
    left = {policy: {name for name in names if getattr(kept.by(policy), name) is not None} for policy in POLICIES}
    assert left == {"none": set(names), "light": {"hidden", "attended", "middle"}, "block": {"hidden"}}


def test_frozen_parameters_and_evaluation_work():
    model = trained(small(block_backend="fused", dropout=0.5)).eval()
    exact = trained(small(block_backend="eager", dropout=0.5)).double().eval()
    exact.load_state_dict(model.state_dict())
    x = torch.randint(256, (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(x).double(), exact(x), rtol=1e-4, atol=1e-5)
    assert isinstance(model.blocks[0], nn.Module)
