"""The products of a decoding step against float64, in every way to cut them into programs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from src.models.decoder_kernels import linear
from src.models.decoder_tiles import LEAST, Gpu, Tiling, tiling

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
    norm = {"norm": (gain, shift, 1e-5)}
    before = torch.randn(batch, outputs)
    expanded = F.linear(normed, *in_64)
    yield (wide, weight, bias, torch.empty(batch, outputs, dtype=dtype)), norm, expanded
    active = expanded * torch.sigmoid(1.702 * expanded)
    yield (wide, weight, bias, torch.empty(batch, outputs, dtype=dtype)), norm | {"act": True}, active
    yield (narrow, weight, bias, before.clone()), {"add": True}, before + F.linear(narrow.double(), *in_64)
    yield (wide, weight, None, torch.empty(batch, outputs)), norm, F.linear(normed, in_64[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("batch", "outputs", "width"), [(3, 24, 40), (21, 50, 200), (5, 32, 256)])
def test_products_equal_float64(batch, outputs, width, tile, dtype):
    for arguments, options, wanted in products(batch, outputs, width, dtype):
        if tile is not None and tile.depth > 4 * width:
            tile = tile._replace(depth=64)
        linear(*arguments, **options, tile=tile)
        tolerance = 2e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(arguments[-1].double(), wanted, rtol=tolerance, atol=tolerance)


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
