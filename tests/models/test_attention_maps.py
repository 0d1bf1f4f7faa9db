"""The weights shown are those that the network uses."""

import pytest
import torch

from src.attention import Pattern
from src.models.attention_maps import attention_weights, learned_attention
from src.models.sparse_transformer import SparseTransformer
from tests.models.recipes import RECIPES


@pytest.mark.parametrize("mode", ["merged", "interleaved", "multihead"])
@pytest.mark.parametrize("name", ["dense", "strided", "fixed"])
def test_weights_are_the_networks_own(name, mode):
    pattern = Pattern(name, 8, 2, mode)
    check(SparseTransformer(pattern=pattern, context=50, depth=2, width=16, heads=4, half_size_qk=True))


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_of_every_recipe_are_the_networks_own(recipe):
    pattern = Pattern("fixed", 8, 2, "interleaved")
    check(SparseTransformer(pattern=pattern, context=50, depth=2, width=32, heads=4, **RECIPES[recipe]))


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_weights_of_heads_that_share_keys_are_the_networks_own(kv_heads):
    shape = {"context": 50, "depth": 2, "width": 32, "heads": 4, "kv_heads": kv_heads}
    check(SparseTransformer(pattern=Pattern("fixed", 8, 4), **shape, **RECIPES["modern"]))


def check(model):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, queries = torch.randint(256, (50,), dtype=torch.uint8), torch.arange(50)
    weights = attention_weights(model, x, queries)
    assert model.training
    i, j = queries[:, None], queries[None, :]
    hidden = model.embedding(x[None])
    table = None if model.rotary is None else model.rotary(0, 50)
    for block, found in zip(model.blocks, weights, strict=True):
        normed = block.attention_norm(hidden)
        v = block.attention.project_in(normed)[0].split(block.attention.widths, -1)[2]
        v = v.unflatten(-1, (block.attention.heads[2], -1)).repeat_interleave(4 // block.attention.heads[2], 1)
        mixed = torch.einsum("hqn,nhd->qhd", found, v).flatten(1)
        torch.testing.assert_close(
            block.attention.project_out(mixed)[None], block.attention(normed, table), atol=1e-4, rtol=1e-4
        )
        for row, keys in zip(found, block.attention.layer, strict=True):
            seen = keys.sees(i, j)
            assert not row[~seen].any()
            torch.testing.assert_close(row.sum(-1), seen.any(-1).float())
        hidden = block(hidden, table=table)
    some = attention_weights(model, x, torch.tensor([3, 41]))
    torch.testing.assert_close(some[1], weights[1][:, [3, 41]])


def test_one_query_needs_only_the_bytes_before_it():
    """Of chosen blocks and heads, in their order; what comes from the query on changes nothing."""
    model = SparseTransformer(pattern=Pattern("fixed", 8, 2, "multihead"), context=50, depth=3, width=16, heads=4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randint(256, (50,), dtype=torch.uint8)
    whole = attention_weights(model, x, torch.tensor([30]))
    changed = x.clone()
    changed[30:] = 7
    for given in (x, changed):
        found = learned_attention(model, given, 30, [2, 0], [3, 1])
        assert found.names == [["summary", "own block"]] * 2
        wanted = torch.stack([whole[2][[3, 1], 0, :31], whole[0][[3, 1], 0, :31]])
        torch.testing.assert_close(torch.from_numpy(found.weights), wanted)
