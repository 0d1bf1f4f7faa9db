"""Data sets: one file each, on shared parts that make the order of training reproducible."""
