"""The network is the paper's: section 5, to the letter."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from src.attention import Pattern
from src.attention.backends import attend
from src.config.command_line import CONF
from src.models.embedding import grid_coordinates, grid_sizes
from src.models.residual_block import FeedForward, ResidualBlock, SparseAttention
from src.models.sparse_transformer import SparseTransformer
from tests.models.recipes import RECIPES

PATTERNS = [Pattern("dense")] + [
    Pattern(name, stride=8, summary=2, mode=mode)
    for name, mode in itertools.product(("strided", "fixed"), ("merged", "interleaved", "multihead"))
]


def small(pattern: Pattern = PATTERNS[1], **changes) -> SparseTransformer:
    torch.manual_seed(0)
    values = {"context": 37, "depth": 2, "width": 16, "heads": 2, "row": 8} | changes
    return SparseTransformer(pattern=pattern, **values)


def trained(model: SparseTransformer) -> SparseTransformer:
    """A model whose every parameter is far from its first value, so that nothing hides behind a zero."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    ("name", "context", "millions"), [("enwik8", 12288, 95), ("cifar10", 3072, 59), ("imagenet64", 12288, 152)]
)
def test_paper_models_have_the_papers_parameters(name, context, millions):
    config = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    values = OmegaConf.to_container(OmegaConf.merge({"attention": {"stride": 128}}, config), resolve=True)
    for key in ("attention", "backend", "cuda_graph"):
        values.pop(key)
    with torch.device("meta"):
        model = SparseTransformer(pattern=Pattern("strided"), context=context, **values)
    assert model.parameter_count() == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_untrained_model_scores_exactly_8_bits(pattern):
    model = small(pattern)
    x = torch.randint(256, (2, 37))
    logits = model(x)
    assert torch.equal(logits, torch.zeros_like(logits))
    assert F.cross_entropy(logits.flatten(0, 1), x.flatten()).item() / math.log(2) == pytest.approx(8, abs=1e-6)


@pytest.mark.parametrize("positions", ["text", "image"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_no_output_depends_on_a_later_input(pattern, positions):
    """Gradient of each output with respect to each embedded byte: zero at and after the byte that is predicted."""
    model = trained(small(pattern, positions=positions)).double()
    embedded: list[torch.Tensor] = []
    model.embedding.token.register_forward_hook(lambda module, inputs, out: embedded.append(out))
    logits = model(torch.randint(256, (1, 37)))
    reach = torch.stack([torch.autograd.grad(row.sum(), embedded, retain_graph=True)[0][0] for row in logits[0]])
    reach = reach.abs().sum(-1)  # (output, slot); slot t holds byte t - 1
    assert torch.equal(reach.triu(1), torch.zeros_like(reach))
    assert (reach.diagonal() > 0).all()  # and the byte just before is seen


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_in_training_attention_stays_within_its_piece(pattern):
    """Each piece is what the blocks make of it alone, with the positions that it has; evaluation sees everything."""
    model, x = trained(small(pattern, context=36)), torch.randint(256, (2, 36))
    whole = model.train()(x)
    model.piece = 12
    pieces = []
    for piece in model.embedding(x).split(12, dim=1):
        hidden = piece
        for block in model.blocks:
            hidden = block(hidden)
        pieces.append(model.output(model.norm(hidden)))
    torch.testing.assert_close(model(x), torch.cat(pieces, dim=1))
    assert not torch.allclose(model(x)[:, 12:], whole[:, 12:])
    assert torch.equal(model.eval()(x), whole)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_recomputation_changes_nothing(pattern):
    """Same loss and gradients with dropout on: the branches draw the same masks when they are computed again."""
    x = torch.randint(256, (2, 37))
    results = []
    for recompute in ("none", "block"):
        model = trained(small(pattern, dropout=0.3, recompute=recompute)).train()
        torch.manual_seed(7)
        nn.init.normal_(model.output.weight)
        loss = F.cross_entropy(model(x).flatten(0, 1), x.flatten())
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for kept, recomputed in zip(*results, strict=True):
        assert torch.equal(kept, recomputed)


def test_recomputation_keeps_only_block_inputs():
    """Bytes that autograd keeps: a block's input of (B, N, d) each, against the many activations inside."""
    kept = {}
    for recompute in ("none", "block"):
        model = small(depth=4, recompute=recompute).train()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            model(torch.randint(256, (2, 37)))
        kept[recompute] = sum(sizes)
    assert kept["block"] < kept["none"] / 5


def test_residual_form_is_equations_9_to_14():
    block = ResidualBlock(SparseAttention(16, 16, PATTERNS[1].layer(2), "reference"), FeedForward(16, 64), 16, 0.0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    hidden = torch.randn(2, 20, 16)

    def norm(x, layer):
        return F.layer_norm(x, (16,), layer.weight, layer.bias)

    fused = F.linear(norm(hidden, block.attention_norm), *block.attention.project_in.parameters())
    q, k, v = (part.view(2, 20, 2, 8).transpose(1, 2) for part in fused.chunk(3, -1))
    heads = attend(q, k, v, PATTERNS[1].layer(2), "reference").transpose(1, 2).reshape(2, 20, 16)
    a = F.linear(heads, *block.attention.project_out.parameters())
    inner = F.linear(norm(hidden + a, block.feed_forward_norm), *block.feed_forward.expand.parameters())
    b = F.linear(inner / (1 + torch.exp(-1.702 * inner)), *block.feed_forward.contract.parameters())
    torch.testing.assert_close(block(hidden), hidden + a + b)


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_initial_weights_have_the_papers_spread(scale):
    depth, width = 3, 512
    model = small(depth=depth, width=width, heads=8, context=512, positions="text", row=128, init_scale=scale)
    spread = scale * 0.125
    branch = spread / math.sqrt(2 * depth)
    for block in model.blocks:
        assert block.attention.project_in.weight.std().item() == pytest.approx(spread / math.sqrt(width), rel=0.02)
        assert block.attention.project_out.weight.std().item() == pytest.approx(branch / math.sqrt(width), rel=0.02)
        assert block.feed_forward.expand.weight.std().item() == pytest.approx(spread / math.sqrt(width), rel=0.02)
        assert block.feed_forward.contract.weight.std().item() == pytest.approx(branch / math.sqrt(4 * width), rel=0.02)
    embedding = model.embedding
    assert embedding.token.weight.std().item() == pytest.approx(spread / math.sqrt(width), rel=0.02)
    assert embedding.token.num_embeddings == 257
    for table in embedding.position:
        assert table.weight.std().item() == pytest.approx(spread / math.sqrt(2 * width), rel=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    assert not model.output.weight.any()


def test_half_size_projections():
    model = small(half_size_qk=True, half_size_ff=True)
    assert model.blocks[0].attention.widths == (8, 8, 16)
    assert model.blocks[0].feed_forward.expand.out_features == 32
    assert model(torch.randint(256, (1, 37))).shape == (1, 37, 256)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("recipe", ["modern", "no biases", "qk norm alone"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_heads_that_share_keys_are_heads_with_equal_keys(pattern, recipe, kv_heads):
    """The same network with all its heads has the rows of keys and values once for each head that shares them."""
    options = RECIPES[recipe] | {"heads": 4, "half_size_qk": True}
    shared = trained(small(pattern, kv_heads=kv_heads, **options)).double().eval()
    whole = trained(small(pattern, **options)).double().eval()
    weights = shared.state_dict()
    for name in [name for name in weights if "project_in" in name]:
        parts = weights[name].split(shared.blocks[0].attention.widths)
        keys_values = [
            x.unflatten(0, (kv_heads, -1)).repeat_interleave(4 // kv_heads, 0).flatten(0, 1) for x in parts[1:]
        ]
        weights[name] = torch.cat([parts[0], *keys_values])
    whole.load_state_dict(weights)
    for one, other in zip(whole.blocks, shared.blocks, strict=True):
        one.attention.layer = other.attention.layer  # heads of equal key sets are put side by side
    x = torch.randint(256, (2, 37))
    torch.testing.assert_close(shared(x), whole(x))


def test_without_shared_keys_nothing_changes():
    one, other = small(heads=4).state_dict(), small(heads=4, kv_heads=4).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one | other)


def test_shared_keys_make_the_projection_smaller_and_keep_its_spread():
    model = small(width=512, heads=8, kv_heads=2, half_size_qk=True, context=512, row=128)
    project = model.blocks[0].attention.project_in
    assert model.blocks[0].attention.widths == (256, 64, 128) and project.out_features == 256 + 64 + 128
    assert project.weight.std().item() == pytest.approx(0.125 / math.sqrt(512), rel=0.02)


def test_positions_of_text_and_pictures():
    assert grid_coordinates("text", 6, 4).tolist() == [[0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 0, 1]]
    rows, columns, channels = grid_coordinates("image", 2 * 3 * 3, 3).tolist()
    assert rows == [0] * 9 + [1] * 9
    assert columns == [0, 0, 0, 1, 1, 1, 2, 2, 2] * 2
    assert channels == [0, 1, 2] * 6


@pytest.mark.parametrize(
    ("kind", "context", "row"), [("text", 37, 8), ("text", 5, 8), ("image", 48, 4), ("image", 7, 2)]
)
def test_every_coordinate_has_an_embedding(kind, context, row):
    assert (grid_coordinates(kind, context, row).amax(1) < torch.tensor(grid_sizes(kind, context, row))).all()


def test_position_embedding_is_that_of_the_predicted_byte():
    """With every symbol alike, outputs differ by position alone: position t takes row t // l and column t % l."""
    model = small()
    nn.init.zeros_(model.embedding.token.weight)
    hidden = model.embedding(torch.zeros(1, 37, dtype=torch.uint8))[0]
    rows, columns = model.embedding.position
    position = torch.arange(37)
    torch.testing.assert_close(hidden, rows.weight[position // 8] + columns.weight[position % 8])


def test_first_output_depends_on_the_start_symbol_alone():
    model = trained(small())
    one, other = model(torch.zeros(1, 5, dtype=torch.uint8)), model(torch.full((1, 5), 255, dtype=torch.uint8))
    torch.testing.assert_close(one[:, 0], other[:, 0])
    assert not torch.allclose(one[:, 1], other[:, 1])


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="heads must divide"):
        small(heads=3)
    for kv_heads in (0, 3, 4):
        with pytest.raises(ValueError, match=rf"kv_heads must divide heads \(2\), found {kv_heads}"):
            small(kv_heads=kv_heads)
    with pytest.raises(ValueError, match="at most 37 positions, found 38"):
        small()(torch.zeros(1, 38, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(0, 16), (2, 0)])
@pytest.mark.parametrize("recipe", ["modern", "qk norm alone"])
def test_no_bytes_give_no_logits(shape, recipe):
    model = SparseTransformer(pattern=Pattern("fixed", 8, 2), context=32, depth=1, width=16, heads=2, **RECIPES[recipe])
    logits = model(torch.zeros(shape, dtype=torch.uint8))
    logits.sum().backward()
    assert logits.shape == (*shape, 256)
