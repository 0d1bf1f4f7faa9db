"""Muon for the matrices of hidden layers and AdamW for everything else, in one optimizer.

Source: Keller Jordan 2024, "Muon: An optimizer for hidden layers in neural networks"; the factor for matrices with
more rows than columns is his as well (arXiv 2502.16982 compares it with others).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from src.attention.triton import availability
from src.optimizers import matrices as plain
from src.optimizers.matrices import Matrix, batches, split
from src.optimizers.orthogonal import orthogonalize

DEFAULTS = {"momentum": 0.95, "nesterov": True, "ns_steps": 5, "rows": None}
ADAMW_STEP = inspect.unwrap(AdamW.step)  # without what PyTorch wraps around a step: Muon's own step has that
# names of PyTorch 2.13, which warns of the older ones
ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Muon(AdamW):
    """AdamW whose groups with ``"muon": True`` hold matrices, which move by orthogonalised momentum.

    Keys of such a group besides ``lr`` and ``weight_decay`` (decoupled), whose defaults are AdamW's: ``momentum``
    (0.95), ``nesterov`` (True), ``ns_steps`` (5, iterations of Newton-Schulz) and ``rows`` (None), the heights of the
    matrices that lie below each other in every parameter of the group, each of which is orthogonalised by itself. An
    update has singular values near lr * sqrt(max(1, rows / columns)).

    ``found_inf`` and ``grad_scale`` are those of fused AdamW: a step with ``found_inf`` 1 changes nothing. A step never
    waits for the GPU. Several processes share the work: with plain parameters, whose gradients must be equal
    everywhere, and with DTensors in shares of rows (FSDP2). Then all processes must step together.

    Args:
        params: parameter groups, or parameters for AdamW.
        lr: of AdamW, as the next four.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of AdamW.
        fused: of AdamW.
        share: share the work of plain parameters; that of DTensors always is.
        dtype: of the orthogonalisation; None: bf16 on CUDA, float32 elsewhere.

    Raises:
        ValueError: a group that is not as described.
    """

    limit = 1 << 26
    """Numbers that are orthogonalised at once; a larger matrix is by itself."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        fused: bool | None = None,
        share: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.share = share
        self.dtype = dtype
        super().__init__(params, lr, betas, eps, weight_decay, fused=fused)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of either kind."""
        muon = param_group.get("muon", False)
        super().add_param_group(DEFAULTS | param_group if muon else param_group)
        if muon and (problem := _problem(self.param_groups[-1])):
            self.param_groups.pop()
            raise ValueError(problem)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"share": self.share, "dtype": self.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, state)
        with self._adamw_alone():  # whose own looks for a count of steps beside every parameter
            super().__setstate__({})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all parameters that have gradients; give what ``closure`` returns, which is called before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._adamw_alone():
            if self.param_groups:
                ADAMW_STEP(self)
        found_inf, grad_scale = _whole(getattr(self, "found_inf", None)), _whole(getattr(self, "grad_scale", None))
        if found_inf is not None and found_inf.device.type == "cpu":  # reading it costs nothing
            if found_inf:
                return loss
            found_inf = None
        for matrices in batches(self._matrices(), self.limit):
            self._move(matrices, found_inf, grad_scale)
        return loss

    @contextlib.contextmanager
    def _adamw_alone(self) -> Iterator[None]:
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("muon")]
        try:
            yield
        finally:
            self.param_groups = groups

    def _matrices(self) -> Iterator[Matrix]:
        for group in self.param_groups:
            for parameter in group["params"] if group.get("muon") else ():
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    yield from split(parameter, state["momentum_buffer"], group)

    def _move(self, matrices: list[Matrix], found_inf: Tensor | None, grad_scale: Tensor | None) -> None:
        m, k, device, exact, mesh, steps = matrices[0].kind
        group = self._processes(mesh)
        world = 1 if group is None else group.size()
        slots = math.ceil(len(matrices) / world) * world
        dtype = self.dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        stack = torch.empty(slots, m, k, dtype=dtype, device=device)
        stack[0 if mesh is not None else len(matrices) :].zero_()  # what no process writes, or another one
        implementation, work = _implementation(matrices, device, exact)
        implementation.write(work, stack, found_inf, grad_scale)
        if group is None:
            stack = orthogonalize(stack, steps)
        else:
            share = slots // world
            mine = stack[group.rank() * share :][:share]
            if mesh is not None:  # rows of others are zeros, so the sum puts matrices together
                mine = torch.empty_like(mine)
                REDUCE_SCATTER(mine, stack, group=group)
            ALL_GATHER(stack, orthogonalize(mine, steps), group=group)
        implementation.apply(work, stack, found_inf)

    def _processes(self, mesh: DeviceMesh | None) -> dist.ProcessGroup | None:
        """Give the processes that share the work; None where there is one."""
        if mesh is not None:
            return mesh.get_group() if mesh.size() > 1 else None
        several = self.share and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return dist.group.WORLD if several else None


def _implementation(matrices: Sequence[Matrix], device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Give the module whose ``write`` and ``apply`` these matrices take, and what it takes for them."""
    if _has_kernels(device) and dtype == torch.float32:
        from src.optimizers import muon_kernels

        return muon_kernels, list(muon_kernels.launches(matrices))
    return plain, matrices


@functools.cache
def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and availability.problem(device) is None


def _whole(scalar: Tensor | None) -> Tensor | None:
    return scalar.full_tensor() if isinstance(scalar, DTensor) else scalar


def _problem(group: dict[str, Any]) -> str | None:
    """Say in one sentence what is wrong with a group for Muon; None if nothing is."""
    for parameter in group["params"]:
        if parameter.ndim != 2:
            return f"Muon moves matrices, found a parameter of shape {tuple(parameter.shape)}"
        if not parameter.is_contiguous():
            return f"Muon moves contiguous matrices, found strides {parameter.stride()}"
        rows = (len(parameter),) if group["rows"] is None else group["rows"]
        if min(rows, default=0) < 1 or sum(rows) != len(parameter):
            return f"rows of a Muon group must add up to the {len(parameter)} rows of its parameters, found {rows}"
    if not 0 <= group["momentum"] < 1:
        return f"momentum of a Muon group must be at least 0 and below 1, found {group['momentum']}"
    if group["lr"] < 0 or group["weight_decay"] < 0:
        return "lr and weight_decay of a Muon group must not be negative"
    return None if group["ns_steps"] >= 1 else f"ns_steps of a Muon group must be at least 1, found {group['ns_steps']}"
