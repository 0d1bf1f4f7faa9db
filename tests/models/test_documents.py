"""Packed documents: each has the losses that it has alone, and nothing outside of one changes anything in it."""

import math

import pytest
import torch
import torch.nn.functional as F

from src.attention import Pattern
from src.attention.chosen import chosen
from src.data.byte_windows import Bytes
from src.models.attention_maps import attention_weights
from src.models.sparse_transformer import SparseTransformer
from src.training.language_model import Batch, LanguageModel
from tests.models.recipes import MODERN
from tests.models.test_sparse_transformer import PATTERNS, trained

N = 37
BEGINS = torch.tensor([[0, 9, 10, 30], [0, 17, 36, 36]])  # a long and a short one, one of a single byte, one at the end
DOCUMENTS = torch.stack([(row[:, None] * (row[:, None] <= torch.arange(N))).amax(0) for row in BEGINS]).int()
OTHERS = [
    chosen("local", {"window": 7, "dilation": 1}),
    chosen("bigbird", {"block": 4, "window": 2, "first": 1, "random": 1, "seed": 3}),
    chosen("mix", {"blocks": ["local", ["local", "logarithmic"]], "local": {"window": 5, "dilation": 2},
                   "logarithmic": {"window": 3}}),
]  # fmt: skip
EVERY = [*PATTERNS, *OTHERS]
ANYWHERE = [PATTERNS[0], OTHERS[0], OTHERS[2]]
"""Patterns that depend on distances alone."""


def model(pattern: object, **changes: object) -> SparseTransformer:
    torch.manual_seed(0)
    values = {"context": N, "depth": 2, "width": 16, "heads": 2, "row": 8} | changes
    return trained(SparseTransformer(pattern=pattern, **values)).double()  # type: ignore[arg-type]


def text() -> torch.Tensor:
    return torch.randint(256, (2, N), generator=torch.Generator().manual_seed(1))


def nats(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").view(x.shape)


def parts() -> list[tuple[int, slice]]:
    """Each document: its row and its positions."""
    return [
        (row, slice(begin, int((DOCUMENTS[row] == begin).nonzero().max()) + 1))
        for row in range(2)
        for begin in DOCUMENTS[row].unique().tolist()
    ]


@pytest.mark.parametrize(("rotary", "near"), [(100.0, 1e-6), (None, 1e-11)])  # the table of rotary positions is float32
@pytest.mark.parametrize("pattern", ANYWHERE, ids=str)
def test_each_document_has_the_losses_and_gradients_that_it_has_alone(pattern, rotary, near):
    network, x = model(pattern, rotary=rotary, position_embeddings=False, options=MODERN), text()
    packed = nats(network(x, documents=DOCUMENTS), x)
    alone = torch.cat([nats(network(x[[row], part]), x[[row], part])[0] for row, part in parts()])
    torch.testing.assert_close(packed.flatten(), alone, rtol=near, atol=near)
    gradients = [torch.autograd.grad(found.sum(), list(network.parameters())) for found in (packed, alone)]
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=10 * near, atol=10 * near)


@pytest.mark.parametrize("pattern", EVERY, ids=str)
def test_nothing_outside_a_document_changes_anything_in_it(pattern):
    """Neither bytes before it nor those after: its logits stay the same to the last bit."""
    network, x = model(pattern), text()
    with torch.no_grad():
        before = network(x, documents=DOCUMENTS)
        for row, part in parts():
            other = (x + 1) % 256
            other[row, part] = x[row, part]
            after = network(other, documents=DOCUMENTS)
            assert torch.equal(after[row, part], before[row, part])
            assert (after[row] != before[row]).any()


@pytest.mark.parametrize("pattern", EVERY, ids=str)
def test_losses_and_gradients_are_those_of_the_definition(pattern):
    """Against attention in O(n^2), in float64; and what a backward pass computes again changes nothing."""
    x, results = text(), []
    for changes in ({"backend": "reference"}, {}, {"recompute": "light"}, {"recompute": "block"}):
        network = model(pattern, **changes).train()
        loss = nats(network(x, documents=DOCUMENTS), x).mean()
        results.append([loss.detach(), *torch.autograd.grad(loss, list(network.parameters()))])
    for other in results[1:]:
        for found, wanted in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_the_first_byte_of_a_document_is_predicted_from_the_start_symbol():
    network = model(PATTERNS[0])
    seen: list[torch.Tensor] = []
    network.embedding.token.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    x = text()
    network(x, documents=DOCUMENTS)
    begins = torch.zeros(2, N, dtype=torch.bool).scatter(1, BEGINS, True)
    assert (seen[0][begins] == network.embedding.start).all()
    assert torch.equal(seen[0][:, 1:][~begins[:, 1:]], x[:, :-1][~begins[:, 1:]])


def test_one_document_a_row_is_a_row_without_documents():
    network, x = model(PATTERNS[1]), text()
    torch.testing.assert_close(network(x, documents=torch.zeros(2, N, dtype=torch.int32)), network(x))


@pytest.mark.parametrize("pattern", [PATTERNS[1], OTHERS[0]], ids=str)
def test_pieces_of_a_short_context_keep_their_documents(pattern):
    network, x, documents = model(pattern, context=36).train(), text()[:, :36], DOCUMENTS[:, :36]
    network.piece = 12
    pieces = []
    for start, piece in zip(range(0, 36, 12), network.embedding(x, documents).split(12, dim=1), strict=True):
        hidden = piece
        first = [[max(0, int(at) - start) for at in row[start : start + 12]] for row in documents]
        for block in network.blocks:
            hidden = block(hidden, first=torch.tensor(first, dtype=torch.int32))
        pieces.append(network.output(network.norm(hidden)))
    torch.testing.assert_close(network(x, documents=documents), torch.cat(pieces, dim=1))


def test_training_and_validation_stay_within_documents():
    """The loss of a step and the figure of a split are the means over all bytes, with their documents."""
    network, x, length = model(PATTERNS[0]), text(), torch.tensor([N, 20])
    module = LanguageModel(network, max_steps=1)
    exact = nats(network(x, documents=DOCUMENTS), x)
    loss = module.train().training_step(Batch(x, torch.full((2,), N), DOCUMENTS), 0)
    torch.testing.assert_close(loss.double(), exact.mean(), rtol=1e-6, atol=0)
    assert abs(loss - module.training_step(Batch(x, torch.full((2,), N)), 0)) > 1e-3
    module.eval().validation_step(Bytes(x.byte(), length, DOCUMENTS), 0)
    scored = torch.cat([exact[0], exact[1, :20]])
    torch.testing.assert_close(module.metrics["val"].compute(), scored.mean() / math.log(2), rtol=1e-6, atol=0)


def test_attention_pictures_show_the_document_of_the_byte():
    network, x = model(Pattern("strided", stride=8)), text()
    for weights in attention_weights(network, x[0], torch.tensor([29, 33]), DOCUMENTS[0]):
        assert not weights[:, 0, :10].any() and not weights[:, 1, :30].any()
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2))


def test_first_positions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"first must be \(2, 37\), found \(1, 37\)"):
        model(PATTERNS[0])(text(), documents=DOCUMENTS[:1])
