"""Loss and gradients of a micro-batch as CUDA graphs: a step costs the CPU two launches instead of a thousand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
WARM_UP = 2  # calls before the capture: kernels are compiled, and libraries choose theirs


class CapturedLoss:
    """A loss that runs its first call's CUDA graphs, forward and backward, at every later call of the same shape.

    Gradients appear in the same memory at every call, so one that is to be added to must be copied first (see
    ``detach_gradients``). Parameters must stay where they are in memory; their values may change.

    Args:
        model: holds the parameters; in training mode.
        loss: from bytes (B, N) and a seed (1,) to a scalar, with no synchronization and nothing drawn by PyTorch.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model = model
        self.loss = loss
        self.graphs: _Graphs | None = None

    def __call__(self, x: Tensor, seed: Tensor) -> Tensor:
        """The loss of bytes (B, N), a scalar with gradient; ``seed`` (1,) int64 is dropout's."""
        parameters = tuple(p for p in self.model.parameters() if p.requires_grad)
        if self.graphs is None:
            kind = x.device.type
            dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
            with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):  # casts belong into the graph
                self.graphs = _Graphs(self.loss, x.clone(), seed.clone(), parameters)
        if x.shape != self.graphs.x.shape:
            return self.loss(x, seed)
        loss: Tensor = _Replay.apply(self.graphs, x, seed, *parameters)
        return loss

    def detach_gradients(self) -> None:
        """Move gradients out of the memory that the next call writes."""
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()


class _Graphs:
    """The two graphs, and the memory that they read and write.

    Other threads (loading, pinning) may allocate meanwhile, so only this thread's calls count for the capture.
    """

    def __init__(self, loss: Loss, x: Tensor, seed: Tensor, parameters: tuple[Tensor, ...]) -> None:
        self.x, self.seed = x, seed
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                torch.autograd.grad(loss(x, seed), parameters)
        torch.cuda.current_stream().wait_stream(aside)
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, capture_error_mode="thread_local"):
            result = loss(x, seed)
        self.d_loss = torch.ones_like(result)
        with torch.cuda.graph(self.backward, pool=self.forward.pool(), capture_error_mode="thread_local"):
            self.gradients = torch.autograd.grad(result, parameters, self.d_loss)
        self.result = result.detach()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graphs: _Graphs, x: Tensor, seed: Tensor, *parameters: Tensor) -> Tensor:
        ctx.graphs = graphs
        graphs.x.copy_(x)
        graphs.seed.copy_(seed)
        graphs.forward.replay()
        return graphs.result.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        ctx.graphs.d_loss.copy_(d_loss)
        ctx.graphs.backward.replay()
        return (None, None, None, *(g.detach() for g in ctx.graphs.gradients))
