"""In what portions data are read, and their documents: what every data set is told alike."""

from __future__ import annotations

from dataclasses import dataclass

from src.data.documents import ONE_TEXT, DocumentBounds
from src.errors import UserError


@dataclass(frozen=True)
class Portions:
    """Sizes of sequences and batches, and their order.

    Args:
        context: bytes of a sequence.
        batch_size: sequences of one optimizer step over all devices.
        seed: of the training order.
        micro_batch: sequences of one forward pass on one device; None for the device's share of the batch.
        eval_batch_size: sequences of one evaluation batch on one device; None for the micro-batch.
        workers: loader processes a device.
        documents: how the documents of a text are told apart; for the text data sets.

    Raises:
        UserError: an impossible value; the sentence names its key.
    """

    context: int
    batch_size: int
    seed: int = 0
    micro_batch: int | None = None
    eval_batch_size: int | None = None
    workers: int = 0
    documents: DocumentBounds = ONE_TEXT

    def __post_init__(self) -> None:
        for key in ("context", "batch_size", "micro_batch", "eval_batch_size"):
            _at_least(1, f"data.{key}", getattr(self, key))
        _at_least(0, "data.workers", self.workers)
        _at_least(0, "seed", self.seed)


def _at_least(least: int, key: str, found: int | None) -> None:
    if found is not None and found < least:
        raise UserError(f"{key} must be at least {least}, found {found}")
