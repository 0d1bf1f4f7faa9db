"""What ``scripts.bench.step`` sets side by side: each row builds a model that gives the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from src.attention.key_sets import Fixed
from src.config.schema import Config
from src.models.residual_block import ResidualBlock, SparseAttention
from src.training import build_model
from src.training.language_model import Batch, LanguageModel


class Network(nn.Module):
    """A model of ours as a function from bytes (B, N) to the mean loss in nats."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        length = torch.full(x.shape[:1], x.shape[1], device=x.device)
        loss = self.model.training_step(Batch(x, length), 0)
        self.model.step_losses.clear()
        return loss


def ours(attention: str, recompute: str = "none") -> Callable[[Config], nn.Module]:
    """Our model as a user gets it."""

    def made(config: Config) -> nn.Module:
        config.attention.pattern, config.model.recompute, config.model.backend = attention, recompute, "auto"
        return Network(build_model.language_model(config, max_steps=1000))

    return made


def plain(compiled: bool, attention: Callable[[SparseAttention, int], nn.Module] | None = None) -> Any:
    """The same network in plain PyTorch: dense attention, or another in its place; blocks compiled or not."""

    def made(config: Config) -> nn.Module:
        config.attention.pattern, config.model.recompute, config.model.backend = "dense", "none", "eager"
        model = build_model.language_model(config, max_steps=1000)
        torch._dynamo.reset()
        for block in model.model.blocks:
            assert isinstance(block, ResidualBlock)
            if attention is not None:
                block.attention = cast(SparseAttention, attention(block.attention, config.data.context))
            if compiled:
                block.compile()
        return Network(model)

    return made


class Flex(nn.Module):
    """The fixed pattern as a mask of PyTorch's FlexAttention."""

    masks: dict[Any, Any] = {}  # noqa: RUF012  one mask for all blocks of a model

    def __init__(self, like: SparseAttention, context: int) -> None:
        super().__init__()
        self.like, self.heads = like, len(like.layer)
        self.mask = Flex.masks.setdefault((self.heads, context), None) or self._mask(context)
        Flex.masks[self.heads, context] = self.mask

    def _mask(self, context: int) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        keys = [Fixed(128, 32, head % 4) for head in range(self.heads)]
        first = torch.tensor([one.first_cell for one in keys], device="cuda")

        def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            cell = j % 128 - first[h]
            return (j <= i) & ((j // 128 == i // 128) | ((cell >= 0) & (cell < 32)))

        return create_block_mask(mask, None, self.heads, context, context, device="cuda")

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        q, k, v = (part.transpose(1, 2) for part in self.like.queries_keys_values(x, table))
        out: Any = flex_attention(q, k, v, block_mask=self.mask)
        return self.like.project_out(out.transpose(1, 2).flatten(2))


class Nothing(nn.Module):
    """Projections alone: what a step costs before any attention."""

    def __init__(self, like: SparseAttention, context: int) -> None:
        super().__init__()
        self.like = like

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        q, k, v = self.like.project_in(x).split(self.like.widths, dim=-1)
        joined = q + k if q.shape == v.shape else torch.cat([q, k], -1)
        return self.like.project_out(joined + v)


class XTransformers(nn.Module):
    """A decoder of the same size from the x-transformers package, with its flash attention; rotary where ours is."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        from x_transformers import Decoder, TransformerWrapper  # type: ignore[import-not-found]

        model = config.model
        self.model = TransformerWrapper(
            num_tokens=256,
            max_seq_len=config.data.context,
            use_abs_pos_emb=model.rotary is None,
            attn_layers=Decoder(
                dim=model.width,
                depth=model.depth,
                heads=model.heads,
                attn_dim_head=model.width // model.heads,
                attn_flash=True,
                rotary_pos_emb=model.rotary is not None,
                ff_mult=2 if model.half_size_ff else 4,
                layer_dropout=0.0,
                ff_dropout=model.dropout,
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x.long())
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), x[:, 1:].long().flatten())


def x_transformers(compiled: bool) -> Any:
    """x-transformers as it comes, or compiled whole."""

    def made(config: Config) -> nn.Module:
        torch._dynamo.reset()
        model = XTransformers(config)
        if compiled:
            model.model.compile()
        return model

    return made


ROWS: dict[str, Callable[[Config], nn.Module]] = {
    "dense, SDPA cuDNN, blocks compiled": plain(True),
    "dense, SDPA cuDNN, eager": plain(False),
    "fixed in FlexAttention, blocks compiled": plain(True, Flex),
    "no attention (q + k + v), blocks compiled": plain(True, Nothing),
    "x-transformers, flash": x_transformers(False),
    "x-transformers, flash, compiled": x_transformers(True),
    "ours, dense": ours("dense"),
    "ours, fixed": ours("fixed"),
    "ours, strided": ours("strided"),
    "ours, fixed, recompute light": ours("fixed", "light"),
    "ours, fixed, recompute block": ours("fixed", "block"),
    "ours, strided, recompute light": ours("strided", "light"),
    "ours, strided, recompute block": ours("strided", "block"),
}
