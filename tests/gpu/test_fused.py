"""The fused block in half precision, and whole steps as CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from src.attention import Pattern
from src.attention.chosen import chosen
from src.models.sparse_transformer import SparseTransformer
from src.optimizers.build import OptimizerSettings
from src.optimizers.schedule import Schedule
from src.training.gradient_mean import GradientMean
from src.training.language_model import Batch, LanguageModel
from tests.models.recipes import RECIPES
from tests.models.test_sparse_transformer import trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

PATTERNS = [
    Pattern("dense"),
    Pattern("strided", 128),
    Pattern("fixed", 128, 32),
    Pattern("fixed", 128, 32, mode="interleaved"),
]
N = 1000
ADAMW = OptimizerSettings(learning_rate=1e-3, schedule=Schedule(warmup_steps=0))
MUON = OptimizerSettings(name="muon", schedule=Schedule(warmup_steps=0))


def model(
    pattern,
    block_backend="fused",
    recompute="none",
    dropout=0.0,
    cuda_graph=False,
    backend="auto",
    optimizer=ADAMW,
    **recipe,
):
    torch.manual_seed(0)
    network = SparseTransformer(
        pattern=pattern, context=N, depth=3, width=256, heads=4, recompute=recompute, dropout=dropout,
        block_backend=block_backend, backend=backend, **recipe,
    )  # fmt: skip
    for parameter in trained(network).parameters():
        parameter.data.mul_(0.2)
    return LanguageModel(network, max_steps=10, optimizer=optimizer, cuda_graph=cuda_graph).cuda().train()


def step(language_model, x, dtype=torch.bfloat16, seed=3, documents=None):
    torch.manual_seed(seed)
    with torch.autocast("cuda", dtype, enabled=dtype is not None and dtype != torch.float64):
        loss = language_model.training_step(Batch(x, torch.tensor([N]), documents), 0)
    loss.backward()
    return [loss.detach().clone(), *(p.grad.clone() for p in language_model.parameters())]


def error(found, exact):
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True))


@pytest.fixture
def x():
    return torch.randint(256, (2, N), device="cuda", dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recompute", ["none", "light", "block"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_half_precision_is_as_exact_as_pytorch(pattern, recompute, dtype, x):
    exact = step(model(pattern, "eager", backend="torch").double(), x, torch.float64)
    plain = error(step(model(pattern, "eager"), x, dtype), exact)
    fused = error(step(model(pattern, recompute=recompute), x, dtype), exact)
    assert fused <= 2 * plain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recompute", ["none", "light", "block"])
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_every_recipe_is_as_exact_as_pytorch(recipe, recompute, dtype, x):
    pattern = PATTERNS[list(RECIPES).index(recipe) % len(PATTERNS)]
    keys = RECIPES[recipe]
    exact = step(model(pattern, "eager", backend="torch", **keys).double(), x, torch.float64)
    plain = error(step(model(pattern, "eager", **keys), x, dtype), exact)
    fused = error(step(model(pattern, recompute=recompute, **keys), x, dtype), exact)
    assert fused <= 2 * plain


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("recompute", ["none", "light", "block"])
@pytest.mark.parametrize("pattern", [*PATTERNS, chosen("local", {"window": 200})], ids=str)
def test_shared_keys_are_as_exact_as_pytorch(pattern, recompute, kv_heads, x):
    keys = RECIPES["modern"] | {"kv_heads": kv_heads}
    exact = step(model(pattern, "eager", backend="torch", **keys).double(), x, torch.float64)
    plain = error(step(model(pattern, "eager", **keys), x), exact)
    fused = error(step(model(pattern, recompute=recompute, **keys), x), exact)
    assert fused <= 2 * plain


@pytest.mark.parametrize("pattern", PATTERNS[1:], ids=str)
def test_a_captured_step_of_shared_keys_is_the_same_step(pattern, x):
    plain, captured = (model(pattern, dropout=0.4, cuda_graph=graph, kv_heads=2) for graph in (False, True))
    for seed in range(3):
        wanted, found = step(plain, x, seed=seed), step(captured, x, seed=seed)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        captured.captured.detach_gradients()


@pytest.mark.parametrize("recompute", ["none", "block"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_captured_step_is_the_same_step(pattern, recompute, x):
    """Bit for bit, with dropout, again and again, for other bytes and seeds, and when gradients add up."""
    plain, captured = (model(pattern, recompute=recompute, dropout=0.4, cuda_graph=graph) for graph in (False, True))
    assert captured.captures(x.device) and not plain.captures(x.device)
    for seed in range(3):
        wanted, found = step(plain, x, seed=seed), step(captured, x, seed=seed)
        if pattern.name != "dense":  # cuDNN adds up in any order
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert error(found, wanted) < 1e-2
        captured.captured.detach_gradients()
        x = (x.int() * 7 % 251).to(torch.uint8)


def documents_of(x, bound):
    """Documents that end with bytes below ``bound``: the position at which that of each position begins."""
    begins = torch.nn.functional.pad(x[:, :-1] < bound, (1, 0))
    return torch.where(begins, torch.arange(N, device=x.device, dtype=torch.int32), 0).cummax(1).values.int()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recompute", ["none", "light", "block"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_documents_are_as_exact_as_pytorch(pattern, recompute, dtype, x):
    documents, keys = documents_of(x, 3), {"rotary": 10000.0}
    exact = model(pattern, "eager", backend="torch", **keys).double()
    exact = step(exact, x, torch.float64, documents=documents)
    plain = error(step(model(pattern, "eager", backend="torch", **keys), x, dtype, documents=documents), exact)
    fused = error(step(model(pattern, recompute=recompute, **keys), x, dtype, documents=documents), exact)
    assert fused <= 2 * plain


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_captured_step_reads_the_documents_of_its_batch(pattern, x):
    """Bit for bit as without a graph, for other documents of the same bytes at every step, then for none."""
    plain, captured = (model(pattern, dropout=0.4, cuda_graph=graph) for graph in (False, True))
    losses = []
    for documents in (documents_of(x, 3), documents_of(x, 30), documents_of(x, 0)):
        wanted, found = (step(each, x, documents=documents) for each in (plain, captured))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        captured.captured.detach_gradients()
        losses.append(found[0].item())
    assert len(set(losses)) == 3


def test_a_captured_step_is_captured_anew_when_attention_sees_further(x):
    """First within pieces of 125 positions, then over all; both as without a graph, bit for bit."""
    plain, captured = (model(PATTERNS[2], dropout=0.4, cuda_graph=graph) for graph in (False, True))
    losses = []
    for at in range(4):
        for each in (plain, captured):
            each.short_context, each.short_context_steps = 125, 2
            each.set_piece(at)
        wanted, found = step(plain, x), step(captured, x)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        captured.captured.detach_gradients()
        losses.append(found[0].item())
    assert losses[0] == losses[1] != losses[2] == losses[3]


def test_a_captured_step_gives_its_gradients_to_their_mean(x, tmp_path):
    """Over NCCL, with one rank, in several pieces; the exchange writes where the next step's graph does."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=torch.device("cuda:0"))
    try:
        plain, captured = (model(PATTERNS[2], dropout=0.4, cuda_graph=graph) for graph in (False, True))
        mean = GradientMean(list(captured.parameters()), piece=100_000)
        assert len(mean.pieces) > 2
        for seed in range(4):
            wanted = step(plain, x, seed=seed)
            step(captured, x, seed=seed)
            mean()
            found = [p.grad for p in captured.parameters()]
            assert all(torch.equal(a, b) for a, b in zip(found, wanted[1:], strict=True))
            captured.zero_grad()
            plain.zero_grad()
            x = (x.int() * 7 % 251).to(torch.uint8)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("recipe", "settings"), [({}, ADAMW), (RECIPES["modern"], MUON)], ids=["paper", "modern"])
def test_captured_training_learns_as_plain_training_does(x, recipe, settings):
    losses = {}
    for graph in (False, True):
        trained_model = model(PATTERNS[2], dropout=0.1, cuda_graph=graph, optimizer=settings, **recipe)
        optimizer = trained_model.configure_optimizers()["optimizer"]
        losses[graph] = []
        for seed in range(6):
            losses[graph].append(step(trained_model, x, seed=seed)[0].item())
            optimizer.step()
            optimizer.zero_grad()
    assert losses[True] == losses[False]
    assert losses[True][-1] < losses[True][0]
