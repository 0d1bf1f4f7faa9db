"""What this machine can do, asked before anything is written."""

from __future__ import annotations

from pathlib import Path

from src.config import Config
from src.errors import UserError
from src.gpus import gpu_count
from src.ranks import check_ranks
from src.wandb_login import check_wandb


def check_machine(config: Config) -> None:
    """Refuse what this machine cannot do.

    Raises:
        UserError: one sentence with the key, the value found and what is allowed.
    """
    if config.data.name == "bytes" and not Path(str(config.data.path)).is_file():
        raise UserError(f"data.path must be an existing file, found {config.data.path}")
    check_wandb(config.logger)
    check_ranks(config.trainer.devices, config.trainer.num_nodes)
    wants_gpu = config.trainer.accelerator == "gpu" or config.precision.name == "fp16"
    wants_triton = config.attention.backend == "triton" or config.model.backend == "fused"
    if wants_gpu or wants_triton or config.trainer.devices > 1:
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
    if config.attention.backend == "triton" or config.model.backend == "fused":
        _check_triton(config, "cuda" if on_gpu else "cpu")


def _check_triton(config: Config, device: str) -> None:
    from src.attention.triton import problem  # late: it imports PyTorch, though not its compiler as attend does

    if (found := problem(device)) is None:
        return
    if config.attention.backend == "triton":
        raise UserError(f"attention.backend=triton cannot run here: {found}; take torch or auto")
    raise UserError(f"model.backend=fused cannot run here: {found}; take eager or auto")
