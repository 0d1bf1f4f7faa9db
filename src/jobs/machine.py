"""What this machine can do, asked before anything is written."""

from __future__ import annotations

from pathlib import Path

from src.config.schema import Config
from src.errors import UserError
from src.loggers.wandb_login import check_wandb
from src.processes.ranks import check_ranks
from src.system.gpus import gpu_count


def check_machine(config: Config) -> None:
    """Refuse what this machine cannot do.

    Raises:
        UserError: one sentence with the key, the value found and what is allowed.
    """
    files = {"data.path": config.data.path if config.data.name == "bytes" else None}
    for key, name in (files | {"data.document_offsets": config.data.document_offsets}).items():
        if name is not None and not Path(name).is_file():
            sought = "" if Path(name).is_absolute() else f" (sought from {Path.cwd()})"
            raise UserError(f"{key} must be an existing file, found {name}{sought}")
    check_wandb(config.logger)
    check_ranks(config.trainer.devices, config.trainer.num_nodes)
    wants_gpu = config.trainer.accelerator == "gpu" or config.precision.name == "fp16"
    wants_gpu = wants_gpu or config.attention.backend == "flex"
    if wants_gpu or _asks_for_triton(config) or config.trainer.devices > 1:
        _check_devices(config)


def _check_devices(config: Config) -> None:
    gpus = gpu_count()
    on_gpu = gpus > 0 and config.trainer.accelerator != "cpu"
    if config.trainer.accelerator == "gpu" and not gpus:
        raise UserError("trainer.accelerator=gpu needs a CUDA GPU and this machine has none: take cpu or auto")
    if config.precision.name == "fp16" and not on_gpu:
        raise UserError("precision=fp16 needs a GPU: on a CPU take precision=bf16 or precision=fp32")
    if on_gpu and config.trainer.devices > gpus:
        raise UserError(
            f"trainer.devices must be at most the {gpus} GPUs of this machine, found {config.trainer.devices}"
        )
    if config.trainer.gradient_compression == "bf16" and config.trainer.devices > 1 and not on_gpu:
        raise UserError("trainer.gradient_compression=bf16 needs GPUs: between CPU processes take fp16 or none")
    if config.attention.backend == "flex" and not on_gpu:
        raise UserError("attention.backend=flex needs a GPU, for which FlexAttention is compiled: take auto")
    if asked := _asks_for_triton(config):
        from src.attention.triton import problem  # late: it imports PyTorch, though not its compiler as attend does

        if found := problem("cuda" if on_gpu else "cpu"):
            raise UserError(f"{asked[0]} cannot run here: {found}; take {asked[1]} or auto")


def _asks_for_triton(config: Config) -> tuple[str, str] | None:
    """The key that asks for Triton kernels by name, and the value that does without; None if none does."""
    if config.attention.backend == "triton":
        return "attention.backend=triton", "torch"
    if config.model.backend == "fused":
        return "model.backend=fused", "eager"
    return None
