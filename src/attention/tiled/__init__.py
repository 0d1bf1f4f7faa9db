"""Lists of tiles for any key set, made from ``sees``, and attention over them in plain PyTorch."""
