"""What a residual block computes beside its sizes: the paper's choices, which are the defaults, and later ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

Activation = Literal["gelu", "relu2"]
NormKind = Literal["layer", "rms"]
BlockBackend = Literal["auto", "fused", "eager"]
Recompute = Literal["none", "light", "block"]
EPS = 1e-5  # of every norm


@dataclass(frozen=True)
class BlockOptions:
    """The parts of a residual block that a recipe chooses.

    Args:
        norm: before each branch and before the output: ``layer``, layer norm with learned weights (section 5.2), or
            ``rms``, division by the root mean square and no weights.
        bias: whether matrices and layer norms have biases.
        activation: ``gelu``, x * sigmoid(1.702 x) (section 5.2), or ``relu2``, max(x, 0)^2 (So et al. 2021).
        qk_norm: root mean square that each head's queries and keys are given (Henry et al. 2020), so that no score is
            above qk_norm^2 * sqrt(d_head); None: they stay as they are.
    """

    norm: NormKind = "layer"
    bias: bool = True
    activation: Activation = "gelu"
    qk_norm: float | None = None

    def norm_module(self, width: int) -> nn.Module:
        """Build a norm over ``width`` numbers."""
        if self.norm == "rms":
            return nn.RMSNorm(width, eps=EPS, elementwise_affine=False)
        return nn.LayerNorm(width, eps=EPS, bias=self.bias)


PAPER = BlockOptions()
