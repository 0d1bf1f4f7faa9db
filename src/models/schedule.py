"""Learning rate schedule and optimizer groups (section 6)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn


def warmup_cosine(step: int, *, warmup_steps: int, max_steps: int) -> float:
    """Give the share of the peak learning rate that optimizer step ``step`` uses.

    Linear from 1/warmup_steps up to 1 over the first ``warmup_steps`` steps, then a half cosine down to 0 at
    ``max_steps`` (section 6).

    Args:
        step: optimizer steps already done, from 0.
        warmup_steps: length of the warm-up, in optimizer steps.
        max_steps: length of the whole run, in optimizer steps.

    Returns:
        A factor from 0 to 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split parameters for AdamW: matrices decay, everything else (biases, norms, embeddings) does not.

    Args:
        module: whose parameters are trained.
        weight_decay: for the matrices.

    Returns:
        Two parameter groups, decayed first.
    """
    matrices = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}

    def group(params: Iterable[nn.Parameter], decay: float) -> dict[str, object]:
        return {"params": list(params), "weight_decay": decay}

    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        group((p for p in trained if id(p) in matrices), weight_decay),
        group((p for p in trained if id(p) not in matrices), 0.0),
    ]
