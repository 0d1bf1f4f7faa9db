"""The residual block of a training step as few, large kernels: see ``block``."""
