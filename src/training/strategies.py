"""How the devices of a run work together: Lightning's strategies, and what a run needs beyond them.

``DataParallel`` keeps the weights on every device and averages gradients, in half precision if asked (section 5.6).
``FullyShard`` keeps a share of weights and optimizer state on each device (FSDP2), and still writes plain checkpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from src.checkpoint.file import read
from src.training.gradient_mean import GradientMean, same_start
from src.training.language_model import LanguageModel
from src.training.lightning_internals import CheckpointPath, plain_optimizer

COMPRESSION = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number format of gradients between devices by ``trainer.gradient_compression``; None is their own, float32."""


class DataParallel(DDPStrategy):
    """Every device holds the whole model; behind the backward pass of a step their gradients are averaged.

    The model is not wrapped in PyTorch's DistributedDataParallel, whose hooks send gradients as they appear: a training
    step is a CUDA graph, whose gradients appear all at once, and then ``GradientMean`` does the same in fewer passes.

    Args:
        compression: number format of the gradients on the wire: ``none`` (float32), ``bf16`` or ``fp16``.
    """

    def __init__(self, compression: str = "none") -> None:
        super().__init__()
        self.compression = compression
        self._mean: GradientMean | None = None
        self._within_a_step = False

    def configure_ddp(self) -> None:
        """Begin with the same weights everywhere."""
        assert self.model is not None
        same_start(self.model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._mean = GradientMean(trained, COMPRESSION[self.compression])

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Lightning's word for the micro-batches of a step before its last one: their gradients stay here."""
        self._within_a_step = True
        try:
            yield
        finally:
            self._within_a_step = False

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average the gradients of a whole step, before loss scaling is undone, clipping and the optimizer."""
        super().post_backward(closure_loss)
        if not self._within_a_step:
            assert self._mean is not None
            self._mean()


class FullyShard(ModelParallelStrategy):
    """Weights, gradients and optimizer state in equal shares over all devices (FSDP2, ``fully_shard``).

    Checkpoints are those of a single device: one file, full tensors, the optimizer's state numbered as PyTorch does.
    A run may go on under any strategy.

    Args:
        ranks: devices over all machines.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Collect the whole state, on the first rank, as ``optimizer.state_dict()`` of a single device has it."""
        plain = plain_optimizer(optimizer)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        assert self.model is not None
        named = get_optimizer_state_dict(self.model, plain, options=options)
        return numbered(named) if self.global_rank == 0 else {}

    def load_checkpoint(self, checkpoint_path: CheckpointPath, weights_only: bool | None = None) -> dict[str, Any]:
        """Give each rank its shares of a whole checkpoint, whichever strategy wrote it."""
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = read(path)
        assert self.model is not None and self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=self.lightning_module.strict_loading)
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        if self.lightning_module.trainer.state.fn == TrainerFn.FITTING:
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                named_state = named(state, parameter_names(self.model, optimizer))
                set_optimizer_state_dict(self.model, optimizer, named_state, options=options)
        return checkpoint


class ShardedLanguageModel(LanguageModel):
    """A language model that cuts itself into shares before training, as Lightning's ModelParallelStrategy asks."""

    reduce_dtype: torch.dtype | None = None
    """Number format of gradient sums; None for that of the gradients, float32."""

    unit: int = 1 << 24
    """Parameters that neighbouring blocks must have together to come and go as one: for a small unit Python has more to
    do than the device."""

    def captures(self, device: torch.device) -> bool:
        """No: weights come and go in memory."""
        return False

    def configure_model(self) -> None:
        """Shard units of residual blocks, so that one or two at a time are whole on a device, and then the rest."""
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        if isinstance(self.model, FSDPModule):
            return  # Lightning calls this again before testing
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        policy = MixedPrecisionPolicy(reduce_dtype=self.reduce_dtype)
        for unit in units(self.model.blocks, self.unit):
            fully_shard(unit, mesh=mesh, mp_policy=policy)
        fully_shard(self.model, mesh=mesh, mp_policy=policy)


def units(blocks: Iterable[nn.Module], least: int) -> list[list[nn.Module]]:
    """Put neighbouring blocks together until they have ``least`` parameters; the last unit may have fewer."""
    found: list[list[nn.Module]] = []
    size = least
    for block in blocks:
        if size >= least:
            found.append([])
            size = 0
        found[-1].append(block)
        size += sum(parameter.numel() for parameter in block.parameters())
    return found


@contextlib.contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Let one rank alone run a module inside: weights in shares are gathered before and given up after.

    Every rank must enter and leave together. A module that is not in shares is left as it is.
    """
    from torch.distributed.fsdp import FSDPModule

    shares = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in shares:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in shares:
            part.reshard()
        for part in shares[1:]:  # the outermost one keeps its weights between forward and backward anyway
            part.set_reshard_after_forward(True, recurse=False)


def parameter_names(module: nn.Module, optimizer: Optimizer) -> list[str]:
    """Name the optimizer's parameters in the order of its groups, which is how PyTorch numbers their state."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def numbered(named_state: Mapping[str, Any]) -> dict[str, Any]:
    """Turn an optimizer state keyed by parameter names into PyTorch's own numbering."""
    names = [name for group in named_state["param_groups"] for name in group["params"]]
    number = {name: index for index, name in enumerate(names)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in named_state["param_groups"]]
    return {
        "state": {number[name]: dict(state) for name, state in named_state["state"].items()},
        "param_groups": groups,
    }


def named(state: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Turn PyTorch's numbered optimizer state into one keyed by parameter names; the opposite of ``numbered``."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    name = dict(zip(numbers, names, strict=True))
    groups = [{**group, "params": [name[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {name[number]: value for number, value in state["state"].items()}, "param_groups": groups}
