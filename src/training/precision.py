"""Number formats under Lightning (section 5.6): fp32 weights always, bf16 or fp16 activations where asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.optim import Optimizer


class HalfPrecision(MixedPrecision):
    """Autocast to bf16 or fp16 with optimizers of one kernel ("fused"), which Lightning's plugin refuses to clip for.

    It refuses since they can unscale gradients by themselves. PyTorch's scaler lets gradients be unscaled before (then
    they only skip a step that overflowed), and that is what ``LossScaling`` does; bf16 has no scale at all.
    """

    def clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: int | float = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> None:
        """Clip unscaled gradients, for any optimizer."""
        Precision.clip_gradients(self, optimizer, clip_val, gradient_clip_algorithm)


class LossScaling(HalfPrecision):
    """fp16 with dynamic loss scaling, fused optimizers and clipping, and no host-device synchronisation.

    A step whose gradients overflow leaves weights and moments as they are and halves the scale; after 2,000 steps
    without one it doubles. Such a step still counts: the data order and the schedule are functions of the step, so
    ``max_steps``, the batch that comes next and the learning rate are those of a run that never overflowed.

    Args:
        device: ``cuda``; ``cpu`` for tests of the logic.
        initial_scale: of the loss, a power of 2.
    """

    def __init__(self, device: str = "cuda", initial_scale: float = 2.0**16) -> None:
        super().__init__("16-mixed", device, torch.amp.GradScaler(device, init_scale=initial_scale))

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Optimizer, model: LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """Backward, unscale, clip, step unless something overflowed, and adapt the scale."""
        assert self.scaler is not None
        result = closure()
        if result is None:
            return None
        self.scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)
        done = self.scaler.step(optimizer, **kwargs)
        self.scaler.update()
        return done

    def loss_scale(self) -> float:
        """The scale now; waits for the device."""
        assert self.scaler is not None
        return float(self.scaler.get_scale())


def precision_plugin(name: str, device: str = "cuda") -> Precision:
    """Build Lightning's plugin for ``bf16``, ``fp16`` or ``fp32`` on ``device`` (``cuda`` or ``cpu``)."""
    if name == "fp16":
        return LossScaling(device)
    return HalfPrecision("bf16-mixed", device) if name == "bf16" else Precision()


def set_tf32(on: bool) -> None:
    """Let matrix products of float32 matrices on GPUs round their inputs to TF32's 10 bits of mantissa, or not."""
    torch.set_float32_matmul_precision("high" if on else "highest")
