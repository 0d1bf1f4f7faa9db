"""``debug=profile``: a trace of a few steady steps, a memory snapshot, and a table of where the time goes."""

from __future__ import annotations

import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from src.errors import UserError
from src.system.atomic_files import written_whole
from src.system.torch_internals import memory_snapshot, record_memory

log = logging.getLogger(__name__)

# Kinds of work by parts of names in small letters, of kernels (GPU) or operators (CPU); the first that fits counts.
KINDS = (
    ("communication", ("nccl", "gloo", "c10d::", "all_reduce", "allreduce", "reduce_scatter", "all_gather")),
    ("bias sums", ("column_sums", "join_shares")),
    ("norm, dropout, residual", ("add_norm", "layer_norm", "layernorm", "dropout", "bernoulli", "philox",
                                 "distribution_")),
    ("loss and embedding", ("nats_", "cross_entropy", "nll_loss", "log_softmax", "embedding", "indexing_backward",
                            "radix", "sort")),
    ("attention", ("window_", "column_", "block_queries", "block_keys", "sdpa", "flash", "fmha", "flex",
                   "sparse_transformer::", "attention", "softmax")),
    ("matrix products", ("gemm", "gemv", "cutlass", "nvjet", "xmma", "cublas", "splitk", "::mm", "::addmm", "::bmm",
                         "::baddbmm", "mkldnn", "::linear", "scaled_mm")),
    ("optimizer and clipping", ("adam", "multi_tensor", "foreach", "linalg_vector_norm", "lpnorm", "amp_")),
    ("activation", ("gelu", "sigmoid")),
    ("fused by torch.compile", ("triton_",)),
    ("copies and casts", ("memcpy", "memset", "copy", "::to", "contiguous", "::cat", "catarray", "fill", "zero")),
    ("element by element", ("elementwise", "::add", "::mul", "::sub", "::div", "reduce_kernel", "::sum")),
)  # fmt: skip


class Profile(Callback):
    """Traces ``steps`` optimizer steps after ``after`` others, then records one step's memory.

    Leaves ``trace.json.gz`` (open it in https://ui.perfetto.dev), ``table.txt`` and, on a GPU, ``memory.pickle``
    (https://pytorch.org/memory_viz) in ``folder``, from the first process.

    Args:
        folder: where the files go.
        after: optimizer steps of this process before the trace: compiling and warming up are not what is asked.
        steps: optimizer steps in the trace.
    """

    def __init__(self, folder: Path, after: int, steps: int) -> None:
        self.folder = folder
        self.after = after
        self.steps = steps
        self._first = 0
        self._tracer: profile | None = None
        self._began = 0.0
        self._memory = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run that ends before its profile does."""
        self._first = trainer.global_step
        needed = self._first + self.after + self.steps + 1
        if trainer.max_steps < needed:
            raise UserError(
                f"trainer.max_steps must be at least {needed} for debug=profile (debug.trace_after={self.after}, "
                f"debug.trace_steps={self.steps}, and one step), found {trainer.max_steps}"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin the trace, and after it the record of memory."""
        if not trainer.is_global_zero or batch_idx % trainer.accumulate_grad_batches:
            return
        done = trainer.global_step - self._first
        if done == self.after and self._tracer is None:
            _wait(trainer)
            activities = [ProfilerActivity.CPU]
            if trainer.strategy.root_device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._tracer = profile(activities=activities)
            self._tracer.start()
            self._began = time.perf_counter()
        elif done == self.after + self.steps and trainer.strategy.root_device.type == "cuda":
            record_memory(200_000)
            self._memory = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the trace, and the record of memory, and write them."""
        done = trainer.global_step - self._first
        if self._tracer is not None and done == self.after + self.steps:
            _wait(trainer)
            seconds = time.perf_counter() - self._began
            self._tracer.stop()
            self._write_trace(self._tracer, seconds)
            self._tracer = None
        elif self._memory and done == self.after + self.steps + 1:
            memory_snapshot(self.folder / "memory.pickle")
            record_memory(None)
            self._memory = False
            log.info("memory snapshot in %s (open it in https://pytorch.org/memory_viz)", self.folder / "memory.pickle")

    def _write_trace(self, tracer: profile, seconds: float) -> None:
        self.folder.mkdir(exist_ok=True)
        tracer.export_chrome_trace(str(self.folder / "trace.json.gz"))
        text = time_table(tracer, self.steps, seconds)
        with written_whole(self.folder / "table.txt") as file:
            file.write(text.encode())
        log.info("trace in %s (open it in https://ui.perfetto.dev)\n%s", self.folder / "trace.json.gz", text.rstrip())


def kind_of_work(name: str) -> str:
    """Sort a kernel or an operator by its name: ``matrix products``, ``attention``, ..., ``other``."""
    small = name.lower()
    return next((kind for kind, parts in KINDS if any(part in small for part in parts)), "other")


def time_table(tracer: profile, steps: int, seconds: float) -> str:
    """Add up time by kind of work: kernels where there is a GPU, operators on a CPU.

    Args:
        tracer: a stopped profiler.
        steps: optimizer steps that it saw.
        seconds: wall-clock time of them.

    Returns:
        Lines of text, milliseconds a step, the longest first.
    """
    averages = tracer.key_averages()
    # annotations lie over the kernels that they name: to count both would be to count twice
    kernels = [e for e in averages if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    spent: Counter[str] = Counter()
    for event in kernels or averages:
        spent[kind_of_work(event.key)] += event.self_device_time_total if kernels else event.self_cpu_time_total
    wall = 1000 * seconds / steps
    rows = [(kind, time / 1000 / steps) for kind, time in spent.most_common() if time]
    what = "GPU kernels" if kernels else "CPU operators, over all threads that ran them"
    lines = [
        f"{what}, {steps} steps, {wall:.2f} ms a step while traced",
        f"{'kind of work':28}{'ms a step':>12}{'share':>8}",
    ]
    lines += [f"{kind:28}{ms:12.3f}{ms / wall:8.1%}" for kind, ms in rows]
    if kernels:
        idle = max(0.0, wall - sum(ms for _, ms in rows))
        lines.append(f"{'no kernel running':28}{idle:12.3f}{idle / wall:8.1%}")
    return "\n".join(lines) + "\n"


def _wait(trainer: Trainer) -> None:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
