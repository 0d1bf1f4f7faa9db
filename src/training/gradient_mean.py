"""The mean of gradients over all processes, behind the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

PIECE = 1 << 24
"""Elements that travel together: enough for the full speed of the links, and few enough for the copies of one piece to
hide behind the exchange of another."""


class GradientMean:
    """Replaces the gradients of parameters by their mean over all processes.

    They travel in flat pieces, copied together and sent while the next piece is copied: where training steps are CUDA
    graphs all gradients come at once, so there is no backward pass left to hide an exchange behind, and what counts is
    that it is done in few, large operations.

    Args:
        parameters: the same on every process, each with a gradient when called.
        dtype: number format on the way; None for that of the parameters.
        piece: elements of a piece; a larger parameter is a piece by itself.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], dtype: torch.dtype | None = None, piece: int = PIECE
    ) -> None:
        self.pieces = [_Piece(some, dtype) for some in grouped(parameters, piece)]

    def __call__(self) -> None:
        """Exchange; every process must call it. Does not wait for a GPU."""
        world = dist.get_world_size()
        exchanges = []
        for piece in self.pieces:
            torch._foreach_copy_(piece.views, piece.gradients())
            piece.flat.div_(world)  # before the sum, which fp16 might not hold
            exchanges.append(dist.all_reduce(piece.flat, async_op=True))
        for piece, exchange in zip(self.pieces, exchanges, strict=True):
            exchange.wait()
            torch._foreach_copy_(piece.gradients(), piece.views)


class _Piece:
    """Parameters whose gradients travel together, and the memory from which they do."""

    def __init__(self, parameters: list[nn.Parameter], dtype: torch.dtype | None) -> None:
        self.parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.empty(sum(sizes), dtype=dtype or parameters[0].dtype, device=parameters[0].device)
        self.views = [
            view.view(parameter.shape) for view, parameter in zip(self.flat.split(sizes), parameters, strict=True)
        ]

    def gradients(self) -> list[Tensor]:
        found = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        assert len(found) == len(self.parameters), "a parameter has no gradient"
        return found


def grouped(parameters: Sequence[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    """Put neighbouring parameters of one dtype together, up to ``most`` elements or one parameter."""
    group: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if group and (size + parameter.numel() > most or parameter.dtype != group[0].dtype):
            yield group
            group, size = [], 0
        group.append(parameter)
        size += parameter.numel()
    if group:
        yield group


def same_start(module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first one."""
    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor.detach(), src=0)
