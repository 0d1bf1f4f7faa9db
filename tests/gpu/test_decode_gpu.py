"""Decoding on a GPU: the Triton steps against the whole forward pass, and the CUDA graph against plain launches."""

from __future__ import annotations

import pytest
import torch

from scripts.bench_decode import PATTERNS, errors, network
from src.models.decoder import Decoder
from src.models.sparse_transformer import SparseTransformer
from src.sampling import Draw, generate, graphed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

CONTEXT, GIVEN, COUNT = 1024, 131, 300


@pytest.fixture(scope="module", params=list(PATTERNS))
def model(request) -> SparseTransformer:
    """Four blocks of the paper's enwik8 model with one pattern."""
    return network(PATTERNS[request.param], CONTEXT, depth=4)


def prompt() -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(5)
    return torch.randint(256, (2, GIVEN), device="cuda", generator=generator).to(torch.uint8)


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


def test_steps_are_no_further_from_fp32_than_twice_the_bf16_forward_pass(model):
    found, allowed = errors(model)
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
