"""The Sparse Transformer (Child et al. 2019) as a Lightning and Hydra experiment framework."""
