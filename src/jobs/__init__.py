"""Whole jobs on a run directory: train, evaluate, sample."""
