"""The ``torch`` backend: factorized attention in plain PyTorch, O(n*sqrt(n)) in time and memory, on any device.

Reading order: ``tiles`` (what a piece of work is), ``parts`` (which pieces make up each key set), ``step`` (the
arithmetic of one piece, forward and backward), ``function`` (both passes over all heads), ``operator`` (what PyTorch
sees of them).
"""

from src.attention.factorized.operator import factorized_attention

__all__ = ["factorized_attention"]
