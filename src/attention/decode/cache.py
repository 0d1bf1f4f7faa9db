"""Keys and values of one layer while it decodes, and attention of one new query against them in plain PyTorch."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from src.attention.decode.layout import Group, HeadLayout, Kind, layer_layout
from src.attention.key_sets import KeySet


class LayerCache:
    """What one layer's heads can still reach, in memory that is allocated once.

    Args:
        layer: the key set of every head.
        batch: sequences that are decoded side by side.
        n: longest sequence, in positions.
        qk_width: width of one head's keys.
        v_width: width of one head's values.
        dtype: of keys and values: the activation type.
        device: where they live.
        kv_heads: heads of keys and values, a divisor of those of queries, neighbours of which share one; None: as many.
    """

    def __init__(
        self,
        layer: tuple[KeySet, ...],
        batch: int,
        n: int,
        qk_width: int,
        v_width: int,
        dtype: torch.dtype,
        device: torch.device,
        kv_heads: int | None = None,
    ) -> None:
        self.n = n
        self.layout = layer_layout(layer, n, kv_heads)
        # (B, slots, D): all slots of head 0, then all of head 1, ...; heads that share keys share slots
        self.keys = torch.zeros(batch, self.layout.slots, qk_width, dtype=dtype, device=device)
        self.values = torch.zeros(batch, self.layout.slots, v_width, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, for all sequences together."""
        return self.keys.nbytes + self.values.nbytes

    def fill(self, k: Tensor, v: Tensor, rows: slice = slice(None)) -> None:
        """Take the keys and values of the first P positions at once; whatever was in the cache is out of reach.

        Args:
            k: (B or 1, Hkv, P, Dqk); one sequence serves all rows.
            v: (B or 1, Hkv, P, Dv).
            rows: the sequences of the cache that they are for.
        """
        for store in self.layout.stores:
            positions, slots = (x.to(k.device) for x in self.layout.heads[store.start].kept(k.shape[2]))
            for cache, new in ((self.keys, k), (self.values, v)):
                cache[rows, store.slot + slots] = new[:, store.key_head, positions].to(cache.dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, t: int, scale: float) -> Tensor:
        """Store the key and value of position ``t`` and let its query see what it may: O(pattern row).

        The products are computed in fp32 at least (section 5.6), whatever the type of the cache.

        Args:
            q: (B, H, Dqk) queries.
            k: (B, Hkv, Dqk) keys of the same position.
            v: (B, Hkv, Dv) its values.
            t: the position; all earlier ones must have been stored.
            scale: factor of the scores.

        Returns:
            (B, H, Dv) in the type of ``q``; 0 where a head sees nothing.

        Raises:
            IndexError: a position beyond the length that the cache was made for.
        """
        if not 0 <= t < self.n:
            raise IndexError(f"the cache is for positions 0 to {self.n - 1}, found {t}")
        self._store(k, v, t)
        return torch.cat([self._group(group, q, t, scale) for group in self.layout.groups], dim=1).to(q.dtype)

    def _store(self, k: Tensor, v: Tensor, t: int) -> None:
        stores, heads = self.layout.stores, self.layout.heads
        pairs = [(store.key_head, store.slot + slot) for store in stores for slot in heads[store.start].writes(t)]
        if pairs:
            from_head, slots = (torch.tensor(x, device=k.device) for x in zip(*pairs, strict=True))
            self.keys[:, slots] = k[:, from_head].to(self.keys.dtype)
            self.values[:, slots] = v[:, from_head].to(self.values.dtype)

    def _group(self, group: Group, q: Tensor, t: int, scale: float) -> Tensor:
        heads = self.layout.heads[group.start : group.stop]
        exact = torch.promote_types(q.dtype, torch.float32)
        query = q[:, group.start : group.stop].unflatten(1, (group.stores, -1)).to(exact) * scale
        longest = max((head.reads(t) for head in heads), key=lambda reads: len(reads.run))
        parts = [p for p in longest if len(p)]
        if not parts:
            return query.new_zeros(len(query), len(heads), self.values.shape[-1])
        keys, values = self._views[group]
        scores = torch.cat([query @ _take(keys, part).to(exact).transpose(-1, -2) for part in parts], dim=-1)
        seen = self._seen(heads, t, scores.shape[-1], scores.device)
        if seen is not None:
            seen = seen.view(scores.shape[1:])
            scores = scores.masked_fill(~seen, -torch.inf)
        probabilities = torch.softmax(scores, dim=-1)
        if seen is not None:
            probabilities = probabilities.masked_fill(~seen, 0.0)  # a row that sees nothing is NaN otherwise
        shares = probabilities.split([len(part) for part in parts], dim=-1)
        products = [p @ _take(values, part).to(exact) for p, part in zip(shares, parts, strict=True)]
        return sum(products[1:], products[0]).flatten(1, 2)

    @cached_property
    def _views(self) -> dict[Group, tuple[Tensor, Tensor]]:
        """Keys and values of each group of heads, (B, stores, slots, D)."""
        found = {}
        for group in self.layout.groups:
            count, capacity = group.stores, self.layout.heads[group.start].capacity
            both = [
                x[:, group.slot : group.slot + count * capacity].unflatten(1, (count, capacity))
                for x in (self.keys, self.values)
            ]
            found[group] = (both[0], both[1])
        return found

    @staticmethod
    def _seen(heads: tuple[HeadLayout, ...], t: int, width: int, device: torch.device) -> Tensor | None:
        """Which slots count for each head, (H, width); None where all do. Summary heads read unlike lengths, and
        sets without slots of their own all that came before."""
        place = torch.arange(width, device=device)
        if heads[0].keys is not None:
            kept = {
                keys: torch.as_tensor(keys.sees(torch.tensor(t, device=device), place))
                for head in heads
                if (keys := head.keys)
            }
            return torch.stack([kept[head.keys] for head in heads if head.keys])
        if heads[0].kind != Kind.CELLS:
            return None
        lengths = torch.tensor([len(head.reads(t).run) for head in heads], device=device)
        return place < lengths[:, None]


def _take(cache: Tensor, part: range) -> Tensor:
    return cache[:, :, part.start : part.stop : part.step]
