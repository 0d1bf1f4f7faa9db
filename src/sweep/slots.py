"""The slots of this machine: which GPUs, or how many of its cores, a job of a sweep has to itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from src.config.schema import Config
from src.errors import UserError
from src.sweep.plan import Sweep
from src.system.gpus import gpu_count


@dataclass
class Slots:
    """Hands out the devices of this machine, so that no two jobs share one.

    Args:
        gpus: names of the GPUs that may be used, as CUDA_VISIBLE_DEVICES has them.
        most: jobs at a time; None for as many as there are GPUs, or one on a machine's processors.
        cores: processors of the machine.
    """

    gpus: list[str]
    most: int | None
    cores: int
    _free: list[str] = field(init=False)
    _running: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._free = list(self.gpus)

    @classmethod
    def of_this_machine(cls, most: int | None) -> Slots:
        """Look at the machine; the GPUs are those that CUDA_VISIBLE_DEVICES leaves, if it is set."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(visible_gpus(os.environ, gpu_count()), most, cores)

    def on_gpu(self, config: Config) -> bool:
        """Say whether a job computes on GPUs."""
        return bool(self.gpus) and config.trainer.accelerator != "cpu"

    def at_a_time(self, config: Config) -> int:
        """Most jobs such as this one side by side."""
        if self.on_gpu(config):
            return min(self.most or len(self.gpus), len(self.gpus) // config.trainer.devices)
        return self.most or 1

    def check(self, config: Config) -> None:
        """Refuse a job that this machine never has room for.

        Raises:
            UserError: it wants more GPUs than there are.
        """
        if self.on_gpu(config) and config.trainer.devices > len(self.gpus):
            raise UserError(f"trainer.devices must be at most the {len(self.gpus)} GPUs that this sweep may use, "
                            f"found {config.trainer.devices}")  # fmt: skip

    def take(self, config: Config) -> tuple[list[str], dict[str, str]] | None:
        """Take the devices of a job: their names, and what its environment says of them; None if they are not free."""
        if self._running >= self.at_a_time(config):
            return None
        devices, side_by_side = config.trainer.devices, self.at_a_time(config)
        environment = {}
        taken: list[str] = []
        if self.on_gpu(config):
            if len(self._free) < devices:
                return None
            taken, self._free = self._free[:devices], self._free[devices:]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
        if "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, self.cores // (side_by_side * devices)))
        self._running += 1
        return taken, environment

    def give_back(self, taken: list[str]) -> None:
        """Free the devices of a job that ended."""
        self._free = [gpu for gpu in self.gpus if gpu in self._free or gpu in taken]
        self._running -= 1


def slots_for(sweep: Sweep, configs: Sequence[Config], most: int | None) -> Slots:
    """Look what this machine has for the jobs of a sweep, and note in it how many run side by side.

    Raises:
        UserError: not enough for one of them.
    """
    slots = Slots.of_this_machine(most)
    for config in configs:
        slots.check(config)
    sweep.slots = max(map(slots.at_a_time, configs))
    return slots


def visible_gpus(environment: Mapping[str, str], count: int) -> list[str]:
    """Name the GPUs that may be used, out of ``count`` that PyTorch sees."""
    names = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (names or [str(number) for number in range(count)])[:count]
