"""From a configuration to plain objects: data, callbacks, trainer. ``src.training.build_model`` builds the network."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import Strategy

from src.callbacks.attention_picture import AttentionPicture
from src.callbacks.checkpoints import Checkpoints
from src.callbacks.disk_space import DiskSpace
from src.callbacks.figures import Figures
from src.callbacks.lost_rank import LostRank
from src.callbacks.nonfinite import NonFinite
from src.callbacks.pattern_picture import PatternPicture
from src.callbacks.profile import Profile
from src.callbacks.progress import Progress
from src.callbacks.samples import PictureSamples, TextSamples
from src.callbacks.stalled_data import StalledData
from src.callbacks.stop_signal import StopSignal
from src.checkpoint.lightning_io import SealedCheckpointIO
from src.config.checks import attention_pattern, separator_bytes
from src.config.schema import Config
from src.data.base import ByteDataModule
from src.data.documents import DocumentBounds
from src.data.picture_grid import given_bytes, shown_byte
from src.data.portions import Portions
from src.processes.ranks import first_process, place, say_lost
from src.runs.provenance import versions
from src.runs.run import Run
from src.training.build_model import run_flops
from src.training.determinism import set_deterministic
from src.training.peak_tflops import peak_tflops
from src.training.precision import precision_plugin, set_tf32
from src.training.strategies import DataParallel, FullyShard

PROMPT_BYTES = 128


def data_module(config: Config) -> ByteDataModule:
    """Build the LightningDataModule that ``data`` names."""
    data, data_dir = config.data, Path(config.paths.data_dir)
    sizes = (data.micro_batch, data.eval_batch_size, data.workers)
    portions = Portions(data.context, data.batch_size, config.seed, *sizes, documents=document_bounds(config))
    if data.name == "enwik8":
        from src.data.enwik8 import Enwik8

        return Enwik8(data_dir, portions, allow_partial=data.allow_partial)
    if data.name == "bytes":
        from src.data.bytes_file import BytesFile

        return BytesFile(Path(str(data.path)), portions)
    if data.name in ("cifar10", "imagenet64"):
        from src.data.cifar10 import Cifar10
        from src.data.imagenet64 import ImageNet64

        kind = Cifar10 if data.name == "cifar10" else ImageNet64
        path = None if data.path is None else Path(data.path)
        return kind(data_dir, portions, path=path, allow_partial=data.allow_partial)
    from src.data.quickstart import Quickstart

    return Quickstart(data_dir, portions)


def document_bounds(config: Config) -> DocumentBounds:
    """Say how ``data`` tells documents apart."""
    separator, offsets = config.data.documents, config.data.document_offsets
    return DocumentBounds(
        None if separator is None else separator_bytes(separator),
        None if offsets is None else Path(offsets).expanduser().absolute(),
    )


def callbacks(config: Config, run: Run, data: ByteDataModule) -> list[Callback]:
    """Build what goes along with training."""
    stop = StopSignal()
    saving = checkpoints(config, run, stop)
    step_bytes = config.data.batch_size * config.data.context
    built: list[Callback] = [
        stop,
        Figures(config.trainer.log_every, step_bytes, data.label, data.partial, run_flops(config), peak_flops(config)),
        PatternPicture(
            run.path / "pattern.png",
            attention_pattern(config.attention),
            config.model.heads,
            config.data.context,
            config.model.kv_heads,
        ),
        saving,
        LostRank(functools.partial(say_lost, run.path), lambda: saving.writer.busy),
        *watchdogs(config, run),
    ]
    built += samples(config, run, data)
    built += attention_pictures(config, run, data)
    if config.trainer.early_stopping is not None:
        built.append(EarlyStopping("val/bits_per_byte", patience=config.trainer.early_stopping, mode="min"))
    if config.trainer.progress:
        built.append(Progress())
    if config.debug.trace_after is not None:
        built.append(Profile(run.path / "profile", config.debug.trace_after, config.debug.trace_steps))
    return built


def watchdogs(config: Config, run: Run) -> list[Callback]:
    """Build what looks after a run: numbers that are not finite, data that do not come, a disk that is nearly full."""
    watch = config.watch
    steps = watch.nonfinite_steps if watch.nonfinite == "stop" else None
    built: list[Callback] = [
        NonFinite(run.path, config.trainer.log_every, steps, config.seed),
        DiskSpace(run.checkpoints),
    ]
    if watch.stall_seconds is not None:
        built.append(StalledData(watch.stall_seconds))
    return built


def checkpoints(config: Config, run: Run, stop: StopSignal) -> Checkpoints:
    """Build what saves; each checkpoint carries the whole configuration and the versions of everything."""
    settings = config.trainer
    about = {"config": run.plain_config(), "versions": versions() if first_process() else {}}
    return Checkpoints(
        run.checkpoints, settings.checkpoint_every, settings.checkpoint_minutes, settings.keep, stop, about
    )


def samples(config: Config, run: Run, data: ByteDataModule) -> list[Callback]:
    """Build the callback that continues text, or completes pictures, of the validation split."""
    logger, context, folder = config.logger, config.data.context, run.path / "samples"
    dtype = activation_dtype(config)
    if config.model.positions == "text" and logger.sample_bytes > 0:
        beginning = data.splits.val.batch(np.zeros(1, dtype=np.int64))
        prompt = beginning.x[:, : min(PROMPT_BYTES, context // 2, int(beginning.length[0]))]
        count = min(logger.sample_bytes, context - prompt.shape[1])
        return [TextSamples(folder, prompt, count, config.seed, logger.sample_seconds, dtype)]
    if config.model.positions == "image" and logger.sample_pictures > 0:
        if picture_row(config) is None:
            return []  # bytes of something else: whole rows of pixels alone make a picture
        indices = np.arange(min(logger.sample_pictures, len(data.splits.val)), dtype=np.int64)
        given = given_bytes(0.5, config.model.row, context)
        pictures = data.splits.val.batch(indices).x
        return [PictureSamples(folder, pictures, config.model.row, given, config.seed, logger.sample_seconds, dtype)]
    return []


def attention_pictures(config: Config, run: Run, data: ByteDataModule) -> list[Callback]:
    """Build the callback that draws what heads attend to, for one byte of the first validation sequence."""
    if not config.logger.attention_picture:
        return []
    first = data.splits.val.batch(np.zeros(1, dtype=np.int64))
    row = picture_row(config)
    x = first.x[0] if row is not None else first.x[0, : int(first.length[0])]
    query = len(x) - 1 if row is None else shown_byte(row, len(x))
    documents = None if first.documents is None else first.documents[0, : len(x)]
    return [AttentionPicture(run.path / "attention", x, query, row, documents)]


def picture_row(config: Config) -> int | None:
    """Give the pixels of a row where sequences can be shown as pictures: whole rows of pixels; else None."""
    row = config.model.row
    return row if config.model.positions == "image" and config.data.context % (3 * row) == 0 else None


def activation_dtype(config: Config) -> torch.dtype:
    """Type of activations on a GPU, by ``precision``."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[config.precision.name]


def peak_flops(config: Config) -> float | None:
    """FLOP/s that all devices of the run could reach together; None where the device's peak is not known."""
    peak = config.trainer.peak_tflops
    if peak is None and on_gpu(config):
        peak = peak_tflops(torch.cuda.get_device_name())
    return None if peak is None else peak * 1e12 * config.trainer.devices * config.trainer.num_nodes


def on_gpu(config: Config) -> bool:
    """Say whether the run computes on GPUs."""
    return config.trainer.accelerator != "cpu" and torch.cuda.is_available()


def strategy(config: Config) -> Strategy | str:
    """Build what makes the devices work together; a single one needs nothing."""
    if math.prod(devices_and_nodes(config)) == 1 and config.trainer.strategy == "auto":
        return "auto"
    if config.trainer.strategy == "fsdp2":
        return FullyShard(math.prod(devices_and_nodes(config)))
    return DataParallel(config.trainer.gradient_compression)


def devices_and_nodes(config: Config) -> tuple[int, int]:
    """Give the devices of each machine and the machines; one of each where nobody started ranks, as in ``src.eval``."""
    return (config.trainer.devices, config.trainer.num_nodes) if place().world > 1 else (1, 1)


def cluster() -> ClusterEnvironment:
    """Build Lightning's view of who started the ranks. Lightning's own guess takes any SLURM allocation for srun."""
    launcher = place().launcher
    if launcher == "srun":
        return SLURMEnvironment(auto_requeue=False)  # a job that is started again goes on by itself
    return TorchElasticEnvironment() if launcher == "torchrun" else LightningEnvironment()


def trainer(config: Config, run: Run, max_steps: int, accumulate: int, **parts: Any) -> Trainer:
    """Build Lightning's Trainer.

    Args:
        config: the run's configuration.
        run: the run's directory.
        max_steps: optimizer steps of the whole run.
        accumulate: micro-batches of one optimizer step on one device.
        parts: loggers and callbacks, as Trainer takes them.
    """
    settings = config.trainer
    devices, num_nodes = devices_and_nodes(config)
    set_tf32(config.precision.tf32)
    set_deterministic(config.deterministic)
    precision = precision_plugin(config.precision.name, "cuda" if on_gpu(config) else "cpu")
    return Trainer(
        accelerator=settings.accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy(config),
        max_steps=max_steps,
        max_epochs=-1,
        gradient_clip_val=settings.clip or None,
        accumulate_grad_batches=accumulate,
        val_check_interval=settings.val_every * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=settings.progress,
        log_every_n_steps=1,
        default_root_dir=run.path,
        plugins=[SealedCheckpointIO(), precision, cluster()],
        **parts,
    )
