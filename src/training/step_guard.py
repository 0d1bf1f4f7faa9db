"""Steps whose loss or gradients are not finite: found, counted and kept from changing anything, all on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


class StepGuard:
    """Looks at the loss and the norm of the gradients of every step, and never waits for the device.

    An optimizer of one kernel ("fused") takes a flag with which it leaves weights, moments and its own count of steps
    as they are; PyTorch made it for loss scaling. All ranks decide alike. Where gradients are scaled (fp16), the scaler
    sets that flag itself while it looks for its scale; such a step is no trouble until the scale has fallen to 1.
    """

    ROW, LONGEST, SKIPPED = range(3)

    def __init__(self) -> None:
        self.counts: Tensor | None = None
        """int64 (3,) on the device: steps in trouble in a row up to now, the longest such row, and steps that changed
        nothing. None before the first step."""
        self.norm: Tensor | None = None
        """Norm of the last step's gradients before clipping, a float32 scalar on the device."""
        self.first: dict[str, Tensor] = {}
        """What began the last row of steps in trouble: ``loss``, ``norm`` and ``step`` (scalars; the step is the number
        of steps done before), ``x``, the bytes (micro-batches, B, N) of this rank, and ``documents`` if it has some."""

    def admit(
        self, optimizer: Optimizer, loss: Tensor, norm: Tensor, x: Tensor, step: int, scale: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Let the optimizer's next step change something if all is finite.

        Args:
            optimizer: about to step; one that is not fused is not held back.
            loss: of this rank, a scalar.
            norm: of the gradients over all ranks, unscaled, a scalar.
            x: the bytes of the step, as in ``first``.
            step: optimizer steps done before this one.
            scale: of the loss where it is scaled, a scalar.
            documents: where the document of each of the bytes begins, as ``x``; None: there is one a row.
        """
        if self.counts is None:
            self.counts = torch.zeros(3, dtype=torch.int64, device=norm.device)
        overflow = ~norm.isfinite()
        trouble = overflow if scale is None else overflow & (scale <= 1)
        trouble = _on_any_rank(trouble | ~loss.isfinite())
        skipped = trouble if scale is None else overflow
        if scale is None and getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        row, longest, total = self.counts.unbind()
        row = (row + 1) * trouble
        self.counts = torch.stack((row, torch.maximum(longest, row), total + skipped))
        now = {"loss": loss, "norm": norm, "x": x, "step": torch.full((), step, device=norm.device)}
        if documents is not None:
            now["documents"] = documents
        self.norm = norm
        self.first = {
            name: torch.where(row == 1, value, self.first[name]) if name in self.first else value.clone()
            for name, value in now.items()
        }

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: as ``restore`` takes it."""
        return {"counts": self.counts}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Take back what ``state`` gave. The longest row begins anew: a run that it ended may be tried again."""
        if (counts := state["counts"]) is not None:
            row, _, total = counts.tolist()
            self.counts = torch.tensor([row, 0, total], device=device)


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Give the norm over all gradients of all ranks' shares, a float32 scalar."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _on_any_rank(flag: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return flag
    vote = flag.to(torch.int32)
    dist.all_reduce(vote, dist.ReduceOp.MAX)
    return vote > 0
