"""Precisions: what they are called, what is refused, and loss scaling that survives overflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from src.attention import Pattern
from src.config.checks import check
from src.data.bytes_file import BytesFile
from src.data.portions import Portions
from src.errors import UserError
from src.models.sparse_transformer import SparseTransformer
from src.optimizers.build import OptimizerSettings
from src.optimizers.schedule import Schedule
from src.training.language_model import LanguageModel
from src.training.precision import LossScaling, set_tf32
from src.training.step_guard import StepGuard
from tests.tiny_runs import TINY, command, composed, corpus

STEPS, OVERFLOW = 8, 3
OPTIMIZERS = {
    name: OptimizerSettings(name=name, learning_rate=0.01, muon_learning_rate=0.01, schedule=Schedule(warmup_steps=2))
    for name in ("adamw", "muon")
}


class Overflow(Callback):
    """Puts an infinity into one gradient of one step, and writes down what each step did."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.seen: list[torch.Tensor] = []
        self.scales: list[float] = []
        self.rates: list[float] = []
        self.weights: list[torch.Tensor] = []
        self.moments: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch.x.cpu().clone())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.at:
            pl_module.model.output.weight.grad[0, 0] = torch.inf

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.scales.append(trainer.precision_plugin.loss_scale())
        both = pl_module.model.output.weight, pl_module.model.blocks[0].attention.project_out.weight
        self.weights.append(torch.cat([weight.detach().cpu().flatten() for weight in both]))
        states = [trainer.optimizers[0].state.get(weight, {}) for weight in both]
        moments = [value for state in states for name, value in state.items() if name in ("exp_avg", "momentum_buffer")]
        self.moments.append(torch.cat([moment.cpu().flatten() for moment in moments] or [torch.zeros(0)]))


def fp16_run(folder: Path, device: str, overflow: Overflow, scaling: LossScaling, optimizer: str) -> Trainer:
    """Train a tiny model for ``STEPS`` steps in fp16 with a fused, clipped optimizer."""
    torch.manual_seed(0)
    model = SparseTransformer(pattern=Pattern("fixed", 8, 2), context=64, depth=1, width=16, heads=2, backend="torch")
    language_model = LanguageModel(model, max_steps=STEPS, optimizer=OPTIMIZERS[optimizer], fused=True)
    data = BytesFile(corpus(folder), Portions(64, 4, seed=1))
    data.setup()
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        max_steps=STEPS,
        max_epochs=-1,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=[scaling],
        callbacks=[overflow],
    )
    trainer.fit(language_model, datamodule=data)
    return trainer


def check_one_overflow(folder: Path, device: str, optimizer: str) -> None:
    """A step that overflows changes nothing but the scale; everything counted by steps goes on as if it had not."""
    plain, broken = Overflow(None), Overflow(OVERFLOW)
    fp16_run(folder, device, plain, LossScaling(device), optimizer)
    scaling = LossScaling(device)
    trainer = fp16_run(folder, device, broken, scaling, optimizer)
    assert trainer.global_step == STEPS
    assert int(trainer.lightning_module.guard.counts[StepGuard.SKIPPED]) == 1
    assert broken.scales == [2.0**16] * OVERFLOW + [2.0**15] * (STEPS - OVERFLOW)
    assert plain.scales == [2.0**16] * STEPS
    assert torch.equal(broken.weights[OVERFLOW], broken.weights[OVERFLOW - 1])
    assert torch.equal(broken.moments[OVERFLOW], broken.moments[OVERFLOW - 1])
    assert not torch.equal(broken.weights[OVERFLOW + 1], broken.weights[OVERFLOW])
    assert not torch.equal(plain.weights[OVERFLOW], plain.weights[OVERFLOW - 1])
    assert all(torch.equal(a, b) for a, b in zip(broken.seen, plain.seen, strict=True))
    assert broken.rates == plain.rates
    assert broken.rates == [0.01 * OPTIMIZERS[optimizer].schedule.factor(step, STEPS) for step in range(STEPS)]
    assert all(weight.isfinite().all() for weight in broken.weights)


def check_real_overflow(folder: Path, device: str, optimizer: str) -> None:
    """With a scale far too large fp16 gradients overflow by themselves, until the scale has come down."""
    steps = Overflow(None)
    scaling = LossScaling(device, initial_scale=2.0**21)
    trainer = fp16_run(folder, device, steps, scaling, optimizer)
    outputs = [weights[: 256 * 16] for weights in steps.weights]
    before = [torch.zeros_like(outputs[0]), *outputs]  # the output matrix begins as zeros
    skipped = [torch.equal(old, new) for old, new in zip(before, outputs, strict=False)]
    assert int(trainer.lightning_module.guard.counts[StepGuard.SKIPPED]) == sum(skipped)
    assert skipped[0] and not skipped[-1]
    assert steps.scales == [2.0 ** (21 - sum(skipped[: step + 1])) for step in range(STEPS)]
    assert all(weight.isfinite().all() for weight in steps.weights)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_overflow_skips_the_step_and_halves_the_scale(tmp_path, optimizer):
    check_one_overflow(tmp_path, "cpu", optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_scale_that_is_too_large_comes_down(tmp_path, optimizer):
    check_real_overflow(tmp_path, "cpu", optimizer)


def test_the_scale_survives_a_checkpoint():
    scaling, again = LossScaling("cpu", initial_scale=2.0**7), LossScaling("cpu")
    again.load_state_dict(scaling.state_dict())
    assert again.loss_scale() == 2.0**7


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_each_precision_composes_and_states_tf32(name):
    config = composed(f"precision={name}")
    check(config)
    assert (config.precision.name, config.precision.tf32) == (name, False)


def test_fp16_is_refused_with_fsdp2():
    with pytest.raises(UserError, match=r"precision=fp16 does not go with trainer\.strategy=fsdp2: take bf16 or fp32"):
        check(composed("precision=fp16", "trainer.strategy=fsdp2"))


def test_fp16_is_refused_on_a_cpu_before_anything_is_written(tmp_path):
    done = command("train", *TINY, "precision=fp16", f"data.path={corpus(tmp_path)}", folder=tmp_path,
                   CUDA_VISIBLE_DEVICES="")  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: precision=fp16 needs a GPU: on a CPU take precision=bf16 or precision=fp32\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("on", "precision"), [(True, "high"), (False, "highest")])
def test_tf32_is_what_the_configuration_says(on, precision):
    before = torch.get_float32_matmul_precision()
    try:
        set_tf32(on)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
