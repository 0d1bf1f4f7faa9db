"""From settings to an optimizer: which parameters it moves how, and its schedule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from src.models.residual_block import SparseAttention
from src.optimizers.muon import Muon
from src.optimizers.schedule import Schedule

OptimizerName = Literal["adamw", "muon"]
PAPER = Schedule()


@dataclass(frozen=True)
class OptimizerSettings:
    """What trains the weights; the defaults are the paper's (section 6), betas and decay where it is silent ours.

    Args:
        name: ``adamw``, or ``muon``: the matrices of residual blocks by Muon, all other parameters by AdamW.
        learning_rate: peak, of AdamW.
        weight_decay: decoupled, on matrices only.
        betas: of AdamW.
        eps: of AdamW.
        muon_learning_rate: peak, of Muon.
        muon_momentum: Nesterov momentum of Muon.
        schedule: of all learning rates.
    """

    name: OptimizerName = "adamw"
    learning_rate: float = 0.00035
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.95
    schedule: Schedule = PAPER

    def optimizer(self, module: nn.Module, fused: bool | None = None) -> torch.optim.AdamW:
        """Build the optimizer of a module's trained parameters; ``fused`` is PyTorch's, of AdamW."""
        options: dict[str, Any] = {"lr": self.learning_rate, "betas": self.betas, "eps": self.eps, "fused": fused}
        if self.name == "adamw":
            return torch.optim.AdamW(decay_groups(module, self.weight_decay), **options)
        matrices = muon_matrices(module)
        muon = {"lr": self.muon_learning_rate, "momentum": self.muon_momentum, "weight_decay": self.weight_decay}
        groups: list[dict[str, Any]] = [
            {"params": some, "muon": True, "rows": rows, **muon} for rows, some in matrices.items()
        ]
        taken = {id(p) for some in matrices.values() for p in some}
        return Muon(groups + decay_groups(module, self.weight_decay, taken), **options)


def muon_matrices(module: nn.Module) -> dict[tuple[int, ...] | None, list[nn.Parameter]]:
    """Give the trained matrices of residual blocks, by the rows of the matrices that a parameter consists of.

    A fused projection is one matrix for queries, one for keys and one for values; None: a parameter is one matrix.
    """
    found: dict[tuple[int, ...] | None, list[nn.Parameter]] = {}
    for attention in (part for part in module.modules() if isinstance(part, SparseAttention)):
        found.setdefault(attention.widths, []).append(cast(nn.Parameter, attention.project_in.weight))
    fused = {id(p) for some in found.values() for p in some}
    for blocks in (part for part in module.modules() if isinstance(part, nn.ModuleList)):
        for linear in (part for part in blocks.modules() if isinstance(part, nn.Linear)):
            if id(linear.weight) not in fused:
                found.setdefault(None, []).append(cast(nn.Parameter, linear.weight))
    return {rows: [p for p in some if p.requires_grad] for rows, some in found.items()}


def decay_groups(module: nn.Module, weight_decay: float, without: Iterable[int] = ()) -> list[dict[str, Any]]:
    """Split parameters for AdamW: matrices decay, everything else (biases, norms, embeddings) does not.

    Args:
        module: whose parameters are trained.
        weight_decay: for the matrices.
        without: ids of parameters that belong elsewhere.

    Returns:
        Two parameter groups, decayed first.
    """
    matrices = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}

    def group(params: Iterable[nn.Parameter], decay: float) -> dict[str, Any]:
        return {"params": list(params), "weight_decay": decay}

    trained = [p for p in module.parameters() if p.requires_grad and id(p) not in set(without)]
    return [
        group((p for p in trained if id(p) in matrices), weight_decay),
        group((p for p in trained if id(p) not in matrices), 0.0),
    ]
