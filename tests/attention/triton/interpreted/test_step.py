"""A whole decoding step by kernels against the plain decoder, through the interpreter."""

import pytest
import torch

from src.models.decoder import Decoder
from src.models.graphed import GraphedDecoder
from tests.models.test_sparse_transformer import PATTERNS, small, trained


@pytest.mark.parametrize(
    ("pattern", "kind"), [(PATTERNS[1], "image"), *((pattern, "text") for pattern in PATTERNS)], ids=str
)
def test_step_by_kernels_equals_the_plain_step(pattern, kind):
    model = trained(small(pattern, positions=kind, width=32, half_size_qk=True)).eval()
    x = torch.randint(256, (3, 37))
    plain, decoder = Decoder(model, 3), Decoder(model, 3, backend="torch")
    plain.prefill(x[:, :20])
    decoder.prefill(x[:, :20])
    tokens = torch.cat([torch.full((3, 1), 256), x], dim=1)
    step = GraphedDecoder(decoder, tokens, lambda logits, position: x[:, position].squeeze(1))
    for t in range(20, 24):
        wanted = plain.step(x[:, t - 1])
        step.step()
        torch.testing.assert_close(step.logits, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(tokens[:, 1:], x)
