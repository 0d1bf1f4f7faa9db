"""Decoding byte by byte equals the whole forward pass."""

import itertools

import pytest
import torch

from src.attention import Pattern
from src.attention.chosen import chosen
from src.decoding.decoder import Decoder
from src.models.sparse_transformer import SparseTransformer
from tests.models.recipes import RECIPES
from tests.models.test_sparse_transformer import PATTERNS, small, trained


def stepped(model: SparseTransformer, x: torch.Tensor, prompt: int, **options) -> torch.Tensor:
    """Logits of the positions from ``prompt`` on."""
    decoder = Decoder(model, len(x), **options)
    decoder.prefill(x[:, :prompt])
    return torch.stack(
        [decoder.step(x[:, t - 1] if t else None) for t in range(prompt, x.shape[1])],
        dim=1,
    )


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_decoding_equals_the_forward_pass(pattern, kind):
    model = trained(small(pattern, positions=kind, depth=3)).double().eval()
    x = torch.randint(256, (3, 37))
    wanted = model(x).detach()
    for prompt in (0, 1, 5, 8, 9, 24, 36):
        torch.testing.assert_close(stepped(model, x, prompt), wanted[:, prompt:])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_recipe_decodes_as_its_forward_pass(pattern, recipe):
    model = trained(small(pattern, **RECIPES[recipe])).double().eval()
    x = torch.randint(256, (2, 37))
    wanted = model(x).detach()
    for prompt in (0, 9, 24):
        torch.testing.assert_close(stepped(model, x, prompt), wanted[:, prompt:])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_decodes_pictures_with_half_size_projections(recipe):
    options = RECIPES[recipe] | {"positions": "image", "row": 4, "half_size_qk": True, "half_size_ff": True}
    model = trained(small(PATTERNS[4], depth=3, **options)).double().eval()
    x = torch.randint(256, (2, 37))
    torch.testing.assert_close(stepped(model, x, 11), model(x)[:, 11:].detach())


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("recipe", ["modern", "no biases"])
@pytest.mark.parametrize("pattern", [*PATTERNS, chosen("local", {"window": 5, "dilation": 2})], ids=str)
def test_shared_keys_decode_as_the_forward_pass(pattern, recipe, kv_heads):
    options = RECIPES[recipe] | {"half_size_qk": True, "heads": 4, "kv_heads": kv_heads}
    model = trained(small(pattern, **options)).double().eval()
    x = torch.randint(256, (2, 37))
    wanted = model(x).detach()
    for prompt in (0, 9, 24):
        torch.testing.assert_close(stepped(model, x, prompt), wanted[:, prompt:])


def test_the_cache_holds_turned_keys():
    """A step turns its own key alone: what a prefill stores is what steps store."""
    model = trained(small(PATTERNS[0], **RECIPES["modern"])).double().eval()
    x = torch.randint(256, (1, 20))
    at_once, by_steps = Decoder(model, 1), Decoder(model, 1)
    at_once.prefill(x)
    for t in range(20):
        by_steps.step(x[:, t - 1] if t else None)
    for one, other in zip(at_once.caches, by_steps.caches, strict=True):
        torch.testing.assert_close(one.keys, other.keys)
        mean_square = one.keys.unflatten(1, (2, -1))[:, :, :20].square().mean(-1)  # 1.2^2: rotations keep lengths
        torch.testing.assert_close(mean_square, torch.full_like(mean_square, 1.44), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("backend", "dtype"), list(itertools.product(["reference", "torch"], [torch.float32])))
def test_in_fp32_to_rounding(backend, dtype):
    model = trained(small(Pattern("fixed", 8, 2), backend=backend)).to(dtype).eval()
    x = torch.randint(256, (2, 37))
    torch.testing.assert_close(stepped(model, x, 7), model(x)[:, 7:].detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("pattern", "recipe"),
    [*((pattern, {}) for pattern in PATTERNS[:3]), (PATTERNS[1], RECIPES["modern"])],
    ids=["dense", "merged", "interleaved", "modern"],
)
def test_bf16_is_no_worse_than_the_autocast_forward_pass(pattern, recipe):
    model = trained(small(pattern, **recipe)).eval()
    x = torch.randint(256, (4, 37))
    exact = model.double()(x).detach()
    model.float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        automatic = model(x).double()
    found = stepped(model, x, 5, dtype=torch.bfloat16).double()
    assert (found - exact[:, 5:]).norm() <= 2 * (automatic - exact)[:, 5:].norm()


def test_half_size_projections_decode_too():
    model = trained(small(half_size_qk=True, half_size_ff=True)).double().eval()
    x = torch.randint(256, (2, 37))
    torch.testing.assert_close(stepped(model, x, 11), model(x)[:, 11:].detach())


def test_one_prompt_serves_all_sequences():
    model = trained(small()).double().eval()
    x = torch.randint(256, (1, 37)).expand(3, -1)
    decoder = Decoder(model, 3)
    decoder.prefill(x[:1, :10])
    torch.testing.assert_close(decoder.step(x[:, 9]), model(x)[:, 10].detach())


def test_large_prompts_go_through_in_portions(monkeypatch):
    model = trained(small()).double().eval()
    x = torch.randint(256, (5, 37))
    monkeypatch.setattr("src.decoding.decoder.PREFILL_POSITIONS", 45)
    torch.testing.assert_close(stepped(model, x, 20), model(x)[:, 20:].detach())


def test_training_mode_and_dropout_do_not_matter():
    model = trained(small(dropout=0.5, recompute="block")).double().train()
    x = torch.randint(256, (2, 37))
    found = stepped(model, x, 9)
    assert model.training
    torch.testing.assert_close(found, model.eval()(x)[:, 9:].detach())


def test_the_cache_is_as_small_as_the_pattern_allows():
    sizes = {}
    for name in ("dense", "fixed", "strided"):
        model = small(Pattern(name, 8, 2), context=64)
        sizes[name] = Decoder(model, 3).cache_bytes
    assert sizes["dense"] == sizes["strided"] == 3 * 2 * 64 * 2 * 16 * 4
    assert sizes["fixed"] == 3 * 2 * (8 + 7 * 2) * 2 * 16 * 4


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("pattern", [Pattern("dense"), Pattern("strided", 8), Pattern("fixed", 8, 2, distinct=False)])
def test_the_cache_is_smaller_by_the_ratio_of_heads(pattern, kv_heads):
    whole, shared = (
        Decoder(small(pattern, heads=4, context=64, kv_heads=some), 3).cache_bytes for some in (None, kv_heads)
    )
    assert whole == shared * 4 // kv_heads


def test_what_cannot_be_is_refused():
    model = small()
    with pytest.raises(ValueError, match="length must be from 1 to the context of 37, found 38"):
        Decoder(model, 1, length=38)
    with pytest.raises(ValueError, match="batch must be at least 1, found 0"):
        Decoder(model, 0)
    with pytest.raises(ValueError, match="at most 10 bytes, found 11"):
        Decoder(model, 1, length=10).prefill(torch.zeros(1, 11, dtype=torch.uint8))
    with pytest.raises(ValueError, match="1 or 3 rows, found 2"):
        Decoder(model, 3).prefill(torch.zeros(2, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="backend triton is not available"):
        Decoder(model.double(), 1, backend="triton")
    decoder = Decoder(model.float(), 1, length=1)
    decoder.step(None)
    with pytest.raises(IndexError, match="all are done"):
        decoder.step(torch.zeros(1, dtype=torch.uint8))
