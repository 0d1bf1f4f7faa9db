"""Kernels of a decoding step: products against float64, attention against the plain cache, steps of every recipe."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from src.attention import Pattern
from src.attention.decode import LayerCache
from src.attention.triton.decode import head_table, launch
from src.decoding.cuda_graph import GraphedDecoder
from src.decoding.decoder import Decoder, Norm
from src.decoding.kernels import linear
from src.decoding.tiles import LEAST, Gpu, Tiling, tiling
from src.models.options import EPS
from src.models.rotary import rotary_table, turn
from tests.models.recipes import RECIPES
from tests.models.test_sparse_transformer import PATTERNS, small, trained

TILES = [
    Tiling(1, 4, 256, 1, 2),
    Tiling(16, 8, 256, 1, 4),
    Tiling(32, 16, 256, 1, 8),
    Tiling(16, 16, 64, 3, 4),  # several steps along the columns
    None,
]


def products(batch, outputs, width, dtype):
    """Arguments of ``linear`` for every combination of what a step has, and the exact results."""
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, width) / width**0.5, torch.randn(outputs)
    gain, shift = torch.randn(width), torch.randn(width)
    weight, bias = weight.to(dtype), bias.to(dtype)
    wide, narrow = 3 + torch.randn(batch, width), torch.randn(batch, width).to(dtype)
    normed = F.layer_norm(wide.double(), (width,), gain.double(), shift.double())
    in_64 = [weight.double(), bias.double()]
    norm = {"norm": Norm(gain, shift)}
    before = torch.randn(batch, outputs)
    expanded = F.linear(normed, *in_64)
    yield (wide, weight, bias, torch.empty(batch, outputs, dtype=dtype)), norm, expanded
    active = expanded * torch.sigmoid(1.702 * expanded)
    yield (wide, weight, bias, torch.empty(batch, outputs, dtype=dtype)), norm | {"act": "gelu"}, active
    yield (narrow, weight, bias, before.clone()), {"add": True}, before + F.linear(narrow.double(), *in_64)
    yield (wide, weight, None, torch.empty(batch, outputs)), norm, F.linear(normed, in_64[0])
    if dtype != torch.float32:
        return
    unshifted = F.linear(normed - shift.double(), in_64[0])
    yield (wide, weight, None, torch.empty(batch, outputs)), {"norm": Norm(gain, None)}, unshifted
    rms = F.linear(F.rms_norm(wide.double(), (width,), eps=EPS), *in_64)
    options = {"norm": Norm(None, None, rms=True), "act": "relu2"}
    yield (wide, weight, bias, torch.empty(batch, outputs)), options, rms.clamp(min=0) ** 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("batch", "outputs", "width"), [(3, 24, 40), (21, 50, 200), (5, 32, 256)])
def test_products_equal_float64(batch, outputs, width, tile, dtype):
    if tile is not None and tile.rows == 1:
        batch = min(batch, 5)  # one more than it is chosen for; a program for each
    for arguments, options, wanted in products(batch, outputs, width, dtype):
        if tile is not None and tile.depth > 4 * width:
            tile = tile._replace(depth=64)
        linear(*arguments, **options, tile=tile)
        tolerance = 2e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(arguments[-1].double(), wanted, rtol=tolerance, atol=tolerance)


def turning_caches(norm: float | None, rotary: bool, splits: int, dtype: torch.dtype):
    """Decode by the plain cache and by the kernel, into the third block; give (output, wanted) pairs and all keys."""
    layer, n, heads, qk, v = Pattern("fixed", 6, 2).layer(4, 0), 40, 4, 20, 24
    caches = [LayerCache(layer, 2, n, qk, v, dtype, torch.device("cpu")) for _ in range(2)]
    heads_of, turns = head_table(caches[0].layout, torch.device("cpu")), rotary_table(50.0, n, qk) if rotary else None
    outputs = []
    before, old = 10, torch.randn(2, heads, 10, qk + v)
    for cache in caches:
        cache.fill(old[..., :qk], old[..., qk:])
    for t in range(before, before + 5):
        qkv = torch.randn(2, heads * (2 * qk + v)).to(dtype)
        q, k, value = (x.unflatten(-1, (heads, -1)) for x in qkv.split([heads * qk, heads * qk, heads * v], -1))
        q, k = (turn(x, None if turns is None else turns[:, t : t + 1], norm) for x in (q, k))
        wanted = caches[0].attend(q, k, value, t, 0.3)
        partial, lse = torch.full((2, heads, splits, v), torch.nan), torch.full((2, heads, splits), torch.nan)
        out, at = torch.full((2, heads * v), torch.nan, dtype=dtype), torch.tensor([t])
        keys, values = caches[1].keys, caches[1].values
        options = {"turns": turns, "norm": norm, "eps": EPS}
        launch(qkv, keys, values, partial, lse, out, heads_of, at, 0.3, **options)
        outputs.append((out.view(2, heads, v), wanted))
    return outputs, [cache.keys for cache in caches]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("norm", "rotary", "splits"), [(1.2, True, 3), (0.7, False, 1), (None, True, 1)])
def test_attention_turns_its_own_query_and_key(norm, rotary, splits, dtype):
    outputs, keys = turning_caches(norm, rotary, splits, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    for found, wanted in outputs:
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(keys[1], keys[0], rtol=tolerance / 4, atol=tolerance / 4)


@pytest.mark.parametrize(
    ("recipe", "rows"),  # tensor cores take more than four
    [
        ("modern", 2),
        ("modern", 5),
        ("no biases", 5),
        ("shared keys", 2),
        *(
            pytest.param(name, 2, marks=pytest.mark.slow)
            for name in RECIPES
            if name not in ("modern", "no biases", "shared keys")
        ),
    ],
)
def test_steps_of_every_recipe_equal_the_forward_pass(recipe, rows):
    pattern = PATTERNS[list(RECIPES).index(recipe) % len(PATTERNS)]
    model = trained(small(pattern, width=32, **RECIPES[recipe])).eval()
    x = torch.randint(256, (rows, 37))
    decoder = Decoder(model, rows, backend="torch")
    decoder.prefill(x[:, :23])
    tokens = torch.cat([torch.full((rows, 1), 256), x], dim=1)
    step = GraphedDecoder(decoder, tokens, lambda logits, position: x[:, position].squeeze(1))
    wanted = model(x).detach()
    for t in (23, 24):  # the last position of a block, and the first of the next
        step.step()
        torch.testing.assert_close(step.logits, wanted[:, t], rtol=1e-4, atol=1e-4)


def test_a_sequence_of_steps_alone_equals_the_forward_pass():
    pattern = Pattern("fixed", 4, 2)
    model = trained(small(pattern, width=32, depth=1, **RECIPES["modern"])).eval()
    x = torch.randint(256, (1, 10))
    tokens = torch.cat([torch.full((1, 1), 256), x], dim=1)
    step = GraphedDecoder(Decoder(model, 1, 10, backend="torch"), tokens, lambda logits, position: x[0, position])
    wanted = model(x).detach()
    for t in range(6):  # into the second block
        step.step()
        torch.testing.assert_close(step.logits, wanted[:, t], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gpu", [LEAST, Gpu(overlap=True, deep=True)])
@pytest.mark.parametrize("size", [2, 4])
def test_tiles_fit_whatever_the_shape(size, gpu):
    for batch in (1, 2, 4, 5, 16, 64, 1000):
        for width in (1, 24, 512, 768, 2048, 5000, 16384):
            for norm in (False, True):
                tile = tiling(batch, 300, width, size, norm, gpu.deep)
                assert tile.rows == 1 or tile.stages > 1 or tile.depth >= width
                assert tile.rows > 1 or tile.depth >= width
                held = (tile.rows + tile.outputs) * tile.depth * size * max(1, tile.stages - 1)
                assert tile.rows == 1 or held <= (200 if gpu.deep else 96) * 1024
