"""Loss and gradients of a micro-batch as CUDA graphs: a step costs the CPU two launches instead of a thousand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Inputs = tuple[Tensor, Tensor, Tensor | None]
WARM_UP = 2  # calls before the capture: kernels are compiled, and libraries choose theirs


class CapturedLoss:
    """A loss that runs its first call's CUDA graphs, forward and backward, at every later call of the same shape.

    Gradients appear in the same memory at every call, so one that is to be added to must be copied first (see
    ``detach_gradients``). Parameters must stay where they are in memory; their values may change. Whoever waits for
    their gradients gets them all at the end of the backward pass.

    Args:
        model: holds the parameters; in training mode.
        loss: from bytes (B, N), a seed (1,) and documents (B, N) or None to a scalar, with no synchronization and
            nothing drawn by PyTorch.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.loss = _LossOf(model, loss)
        self.graphs: _Graphs | None = None

    def __call__(self, x: Tensor, seed: Tensor, documents: Tensor | None = None) -> Tensor:
        """The loss of bytes (B, N), a scalar with gradient.

        Args:
            x: the bytes.
            seed: (1,) int64, of dropout.
            documents: (B, N) int32, where the document of each byte begins, or None.
        """
        inputs: Inputs = (x, seed, documents)
        parameters = {name: p for name, p in self.loss.named_parameters() if p.requires_grad}
        if self.graphs is None:
            kind = x.device.type
            dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
            with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):  # casts belong into the graph
                self.graphs = _Graphs(self.loss, inputs, parameters)
        if _shapes(inputs) != self.graphs.shapes:
            return self.loss.forward(*inputs)
        loss: Tensor = _Replay.apply(self.graphs, *inputs, *parameters.values())
        return loss

    def forget(self) -> None:
        """Capture anew at the next call: the model computes something else from now on."""
        self.graphs = None

    def detach_gradients(self) -> None:
        """Move gradients out of the memory that the next call writes."""
        for parameter in self.loss.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()


class _LossOf(nn.Module):
    """A loss as a module around the model: ``functional_call`` can put other tensors in its parameters' place."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, x: Tensor, seed: Tensor, documents: Tensor | None) -> Tensor:
        return self.loss(x, seed, documents)


class _Graphs:
    """The two graphs, and the memory that they read and write.

    Gradients are those of aliases, new ones at every pass: the parameters themselves may have nodes in autograd that
    were made on another stream (as DistributedDataParallel's), which a capture must not wait for. Other
    threads (loading, pinning, NCCL's) may use the device meanwhile, so only this thread's calls count for the capture.
    """

    def __init__(self, loss: _LossOf, inputs: Inputs, parameters: dict[str, nn.Parameter]) -> None:
        self.inputs = tuple(None if given is None else given.clone() for given in inputs)
        self.shapes = _shapes(inputs)

        def begun() -> tuple[Tensor, tuple[Tensor, ...]]:
            aliases = {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}
            return functional_call(loss, aliases, self.inputs), tuple(aliases.values())

        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                torch.autograd.grad(*begun())
        torch.cuda.current_stream().wait_stream(aside)
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, capture_error_mode="thread_local"):
            result, aliases = begun()
        self.d_loss = torch.ones_like(result)
        with torch.cuda.graph(self.backward, pool=self.forward.pool(), capture_error_mode="thread_local"):
            self.gradients = torch.autograd.grad(result, aliases, self.d_loss)
        self.result = result.detach()


def _shapes(inputs: Inputs) -> list[torch.Size | None]:
    return [None if given is None else given.shape for given in inputs]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, graphs: _Graphs, x: Tensor, seed: Tensor, documents: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        ctx.graphs = graphs
        for memory, given in zip(graphs.inputs, (x, seed, documents), strict=True):
            if memory is not None and given is not None:
                memory.copy_(given)
        graphs.forward.replay()
        return graphs.result.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        ctx.graphs.d_loss.copy_(d_loss)
        ctx.graphs.backward.replay()
        return (None, None, None, None, *(g.detach() for g in ctx.graphs.gradients))
