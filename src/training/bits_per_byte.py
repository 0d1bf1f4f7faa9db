"""Bits per byte as a metric."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class BitsPerByte(Metric):
    """Mean -log2 p over bytes: bits per byte of text, bits per dim of pictures.

    Sums and counts are kept apart, in float64 and int64, so that batches of different size weigh by their bytes and
    several processes give the figure that one would.

    Attributes:
        scored: bytes behind the last ``compute``, over all processes; an int64 scalar.
    """

    full_state_update = False
    higher_is_better = False
    bits: Tensor
    count: Tensor
    scored: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("bits", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.scored = torch.zeros((), dtype=torch.int64)

    def update(self, nats: Tensor, scored: Tensor | None = None) -> None:
        """Add some bytes.

        Args:
            nats: -ln p of each byte, any shape, floating point.
            scored: boolean tensor of the same shape, True where a byte counts; all of them by default.
        """
        if scored is not None:
            nats = nats[scored]
        self.bits += nats.double().sum() / math.log(2)
        self.count += nats.numel()

    def compute(self) -> Tensor:
        """Bits per byte over everything seen, a float64 scalar; NaN if nothing was."""
        self.scored = self.count.clone()  # synchronised between the processes at this moment alone
        return self.bits / self.count
