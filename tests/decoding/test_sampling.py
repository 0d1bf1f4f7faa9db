"""Drawing bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.attention import Pattern
from src.decoding.sampling import Draw, as_text, generate
from src.models.sparse_transformer import SparseTransformer


@pytest.fixture
def model():
    model = SparseTransformer(pattern=Pattern("fixed", 8, 2), context=32, depth=1, width=16, heads=2, row=8)
    torch.nn.init.normal_(model.output.weight)
    return model


def prompts(rows: int, count: int) -> torch.Tensor:
    return torch.randint(256, (rows, count), dtype=torch.uint8)


def test_prompt_stays_and_the_seed_decides(model):
    prompt = prompts(2, 5)
    drawn = [generate(model, prompt, 20, Draw(seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0].shape == (2, 25)
    assert torch.equal(drawn[0][:, :5], prompt)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_row_is_the_same_in_any_batch(model):
    prompt = prompts(1, 3).expand(4, -1)
    many, few = (generate(model, prompt[:rows], 12, Draw(seed=5)) for rows in (4, 2))
    assert torch.equal(many[:2], few)
    assert not torch.equal(many[0], many[1])


def test_training_state_is_left_alone(model):
    model.train()
    before = torch.get_rng_state()
    generate(model, prompts(1, 0), 4)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "draw", [Draw(temperature=0), Draw(temperature=1e-6), Draw(top_k=1), Draw(top_p=1e-6)], ids=str
)
def test_the_likeliest_bytes_are_those_of_the_whole_forward_pass(model, draw):
    x = generate(model, prompts(2, 3), 29, draw)
    assert torch.equal(model.eval()(x).argmax(-1)[:, 3:], x[:, 3:].long())


def test_context_is_filled_to_its_end_and_no_further(model):
    assert generate(model, prompts(1, 31), 1).shape == (1, 32)
    assert torch.equal(generate(model, prompt := prompts(2, 32), 0), prompt)
    with pytest.raises(ValueError, match=r"context of 32, found 5 \+ 28"):
        generate(model, prompts(1, 5), 28)


def test_time_can_run_out(model):
    told = []
    x = generate(model, prompts(2, 4), 20, seconds=0, tick=told.append)
    assert x.shape == (2, 5) and told == [1]
    assert torch.equal(x, generate(model, x[:, :4], 20)[:, :5])


LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.0, -50.0]).double()


def kept(draw: Draw) -> torch.Tensor:
    """The distribution that is drawn from, written down plainly."""
    p = torch.softmax(LOGITS / draw.temperature, 0)
    ranked = sorted(range(len(p)), key=lambda i: -p[i])[: draw.top_k]
    whole, mass, chosen = sum(p[i] for i in ranked), 0.0, []
    for i in ranked:
        if mass >= draw.top_p:
            break
        chosen.append(i)
        mass += p[i] / whole
    return torch.tensor([float(p[i]) if i in chosen else 0.0 for i in range(len(p))]) / sum(p[i] for i in chosen)


@settings(deadline=None, max_examples=40)
@given(
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 2, 3, 6, 256]),
    top_p=st.sampled_from([1e-9, 0.3, 0.6, 0.9, 1.0]),
)
def test_frequencies_are_those_of_the_filtered_distribution(temperature, top_k, top_p):
    """Evenly spread uniforms give each byte its probability, to the spacing."""
    draw = Draw(temperature, top_k, top_p)
    count = 2000
    uniform = (torch.arange(count) + 0.5) / count
    drawn = draw(LOGITS.expand(count, -1), uniform)
    frequency = torch.bincount(drawn, minlength=len(LOGITS)) / count
    torch.testing.assert_close(frequency, kept(draw).float(), atol=2 / count, rtol=0)


@pytest.mark.parametrize("draw", [Draw(), Draw(top_k=3), Draw(top_p=0.5)], ids=str)
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_impossible_bytes_are_never_drawn(draw, uniform):
    logits = torch.full((1, 256), -torch.inf)
    logits[0, [7, 9, 200]] = 1.0
    assert int(draw(logits, torch.tensor([uniform]))) in (7, 9, 200)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_impossible_values_are_refused(values, sentence):
    with pytest.raises(ValueError, match=f"{sentence} must be"):
        Draw(**values)


def test_broken_utf8_is_shown_as_such():
    assert as_text(torch.tensor([104, 105, 0xE2, 0x82], dtype=torch.uint8)) == "hi\ufffd"
