"""Decoding: one query against a cache that keeps only what the pattern can still reach."""

from src.attention.decode.cache import LayerCache
from src.attention.decode.layout import HeadLayout, Kind, LayerLayout, head_layout, layer_layout

__all__ = ["HeadLayout", "Kind", "LayerCache", "LayerLayout", "head_layout", "layer_layout"]
