"""Generation, byte by byte."""

from __future__ import annotations

import torch
from torch import Tensor

from src.models.sparse_transformer import SparseTransformer


@torch.no_grad()
def continue_bytes(
    model: SparseTransformer, prompt: Tensor, count: int, temperature: float = 1.0, seed: int = 0
) -> Tensor:
    """Draw ``count`` more bytes behind each prompt.

    Args:
        model: in whatever mode it is; it is put in evaluation mode for the time of the call.
        prompt: (B, P) bytes of any integer dtype, P may be 0.
        count: bytes to draw; P + count must not exceed the model's context.
        temperature: logits are divided by it; 1.0 draws from the model's own distribution.
        seed: of a generator of its own: drawing leaves the random state of training alone.

    Returns:
        (B, P + count) uint8, on the prompt's device.

    Raises:
        ValueError: more bytes than the context holds.
    """
    if prompt.shape[1] + count > model.context:
        raise ValueError(
            f"prompt and sample must fit the context of {model.context}, found {prompt.shape[1]} + {count} bytes"
        )
    generator = torch.Generator(prompt.device).manual_seed(seed)
    training = model.training
    model.eval()
    x = torch.cat([prompt.to(torch.uint8), prompt.new_zeros((prompt.shape[0], count), dtype=torch.uint8)], dim=1)
    try:
        for position in range(prompt.shape[1], x.shape[1]):
            logits = model(x[:, : position + 1])[:, -1].float()
            probabilities = torch.softmax(logits / temperature, dim=-1)
            x[:, position] = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(torch.uint8)
    finally:
        model.train(training)
    return x


def as_text(sample: Tensor) -> str:
    """Read bytes as UTF-8; what is no valid UTF-8 shows as the replacement character."""
    return bytes(sample.tolist()).decode("utf-8", errors="replace")
