"""Drawing bytes."""

import pytest
import torch

from src.attention import Pattern
from src.models.sparse_transformer import SparseTransformer
from src.sampling import as_text, continue_bytes


@pytest.fixture
def model():
    model = SparseTransformer(pattern=Pattern("fixed", 8, 2), context=32, depth=1, width=16, heads=2, row=8)
    torch.nn.init.normal_(model.output.weight)
    return model


def test_prompt_stays_and_the_seed_decides(model):
    prompt = torch.randint(256, (2, 5), dtype=torch.uint8)
    drawn = [continue_bytes(model, prompt, 20, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0].shape == (2, 25)
    assert torch.equal(drawn[0][:, :5], prompt)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_training_state_is_left_alone(model):
    model.train()
    before = torch.get_rng_state()
    continue_bytes(model, torch.zeros(1, 0, dtype=torch.uint8), 4)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_cold_draws_are_the_most_likely_bytes(model):
    x = continue_bytes(model, torch.zeros(1, 3, dtype=torch.uint8), 10, temperature=1e-6)
    model.eval()
    assert torch.equal(model(x)[0].argmax(-1)[3:], x[0, 3:].long())


def test_more_than_the_context_is_refused(model):
    with pytest.raises(ValueError, match=r"context of 32, found 5 \+ 28"):
        continue_bytes(model, torch.zeros(1, 5, dtype=torch.uint8), 28)


def test_broken_utf8_is_shown_as_such():
    assert as_text(torch.tensor([104, 105, 0xE2, 0x82], dtype=torch.uint8)) == "hi\ufffd"
