"""A whole decoding step by kernels against the plain decoder, through the interpreter."""

import pytest
import torch

from src.decoding.cuda_graph import GraphedDecoder
from src.decoding.decoder import Decoder
from tests.models.test_sparse_transformer import PATTERNS, small, trained


@pytest.mark.parametrize(
    ("pattern", "kind", "rows"),
    [
        (PATTERNS[1], "image", 5),  # tensor cores take more than four
        *(
            pytest.param(pattern, "text", 3, marks=() if pattern.mode == "merged" else pytest.mark.slow)
            for pattern in PATTERNS
        ),
    ],
    ids=str,
)
def test_step_by_kernels_equals_the_plain_step(pattern, kind, rows):
    model = trained(small(pattern, positions=kind, width=32, half_size_qk=True)).eval()
    x = torch.randint(256, (rows, 37))
    plain, decoder = Decoder(model, rows), Decoder(model, rows, backend="torch")
    plain.prefill(x[:, :23])
    decoder.prefill(x[:, :23])
    tokens = torch.cat([torch.full((rows, 1), 256), x], dim=1)
    step = GraphedDecoder(decoder, tokens, lambda logits, position: x[:, position].squeeze(1))
    for t in (23, 24):  # the last position of a block, and the first of the next
        wanted = plain.step(x[:, t - 1])
        step.step()
        torch.testing.assert_close(step.logits, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(tokens[:, 1:], x)


def test_a_stride_leaves_positions_out():
    decoder = Decoder(trained(small(width=32)).eval(), 1, backend="torch")
    tokens = torch.zeros(1, 38, dtype=torch.int64)
    step = GraphedDecoder(decoder, tokens, lambda logits, position: 1 + position)
    step.stride = 12
    for _ in range(3):
        step.step()
    assert decoder.position == step.position.item() == 36
    assert {int(t): int(tokens[0, t]) for t in tokens[0].nonzero()} == {12: 1, 24: 13, 36: 25}
