"""Checkpoint files: sealed by a checksum, whole or not there, written while training goes on."""
