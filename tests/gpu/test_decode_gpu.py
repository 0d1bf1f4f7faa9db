"""Decoding on a GPU: the Triton steps against the whole forward pass, and the CUDA graph against plain launches."""

from __future__ import annotations

import pytest
import torch

from scripts.bench.decode import CHECKED_BATCHES, PATTERNS, errors, network
from src.attention import Pattern
from src.decoding.decoder import Decoder, Norm
from src.decoding.kernels import linear
from src.decoding.sampling import Draw, generate, graphed
from src.decoding.tiles import Tiling, gpu_of
from src.models.sparse_transformer import SparseTransformer
from tests.models.recipes import RECIPES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

CONTEXT, GIVEN, COUNT = 1024, 131, 300
OTHERS = ("modern", "modern pictures", "qk norm alone", "no biases", "shared keys")


def network_of(recipe: str) -> SparseTransformer:
    """Four blocks by a recipe, with weights so large that attention is far from even: a wrong angle shows."""
    torch.manual_seed(0)
    model = SparseTransformer(
        pattern=Pattern("fixed", 128, 32), context=CONTEXT, depth=4, width=512, heads=8, init_scale=8.0,
        embedding_std=1.0, block_backend="eager", **RECIPES[recipe],
    )  # fmt: skip
    torch.nn.init.normal_(model.output.weight, std=512**-0.5)
    return model.cuda().eval()


@pytest.fixture(scope="module", params=[*PATTERNS, *OTHERS])
def model(request) -> SparseTransformer:
    """Four blocks of the paper's enwik8 model with one pattern, or of a recipe."""
    if request.param in RECIPES:
        return network_of(request.param)
    return network(PATTERNS[request.param], CONTEXT, depth=4)


def prompt() -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(5)
    return torch.randint(256, (2, GIVEN), device="cuda", generator=generator).to(torch.uint8)


@pytest.mark.parametrize("tile", [Tiling(1, 4, 512, 1, 2), Tiling(16, 16, 512, 1, 8), Tiling(16, 16, 128, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_are_the_same_whether_launches_overlap_or_not(tile, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(37, 400, device="cuda"), torch.randn(400, 400, device="cuda").to(dtype) / 20
    norm = Norm(torch.ones(400, device="cuda"), torch.zeros(400, device="cuda"))
    found = []
    gpu = gpu_of(x.device)
    for alone in (True, False):
        hidden = x.clone()
        middle = torch.empty(37, 400, device="cuda", dtype=dtype)
        for _ in range(50):
            linear(hidden, weight, None, middle, norm=norm, tile=tile, gpu=gpu)
            if alone:
                torch.cuda.synchronize()
            linear(middle, weight, None, hidden, add=True, tile=tile, gpu=gpu)
            if alone:
                torch.cuda.synchronize()
        found.append(hidden)
    assert torch.equal(*found)
    exact = torch.nn.functional.layer_norm(hidden, (400,)).double() @ weight.double().T
    linear(hidden, weight, None, middle, norm=norm, tile=tile)
    assert (middle - exact).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * exact.norm()


@torch.no_grad()
def launched_one_by_one(model: SparseTransformer, seed: int) -> torch.Tensor:
    """What ``generate`` draws, with every kernel launched by itself."""
    draw = Draw(seed=seed)
    x = torch.cat([prompt(), prompt().new_zeros(2, COUNT)], dim=1)
    decoder = Decoder(model, 2, GIVEN + COUNT, torch.bfloat16, "triton")
    decoder.prefill(x[:, :GIVEN])
    step = graphed(decoder, x, GIVEN, draw, draw.uniforms(2, COUNT).cuda())
    for _ in range(COUNT):
        step._advance()
    assert step.graph is None
    return step.tokens[:, 1:].to(torch.uint8)


@pytest.mark.parametrize("batch", CHECKED_BATCHES)
def test_steps_are_no_further_from_fp32_than_twice_the_bf16_forward_pass(model, batch):
    found, allowed = errors(model, batch)
    assert 0 < found <= allowed


def test_a_graph_draws_the_same_bytes_as_single_launches(model):
    drawn = generate(model, prompt(), COUNT, Draw(seed=3), dtype=torch.bfloat16, backend="triton")
    assert drawn.shape == (2, GIVEN + COUNT)
    assert torch.equal(drawn[:, :GIVEN], prompt())
    assert torch.equal(drawn, launched_one_by_one(model, seed=3))


def test_two_seeds_differ_and_one_seed_repeats_itself(model):
    first, again, other = (
        generate(model, prompt(), COUNT, Draw(seed=seed), dtype=torch.bfloat16, backend="triton") for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert (first != other)[:, GIVEN:].float().mean() > 0.5
