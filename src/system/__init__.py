"""What the operating system gives: signals, files that are never half-written, progress bars, the GPUs there are."""
