"""Generation byte by byte: caches, kernels, sampling."""
