"""The ``torch`` backend: factorized attention in plain PyTorch, O(n*sqrt(n)) in time and memory, on any device.

Reading order: ``tiles`` (what a piece of work is), ``parts`` (which pieces make up each key set), ``step`` (the
arithmetic of one piece, forward and backward), ``function`` (the autograd operator over all heads).
"""

from src.attention.factorized.function import factorized_attention

__all__ = ["factorized_attention"]
