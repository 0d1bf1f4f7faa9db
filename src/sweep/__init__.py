"""Sweeps: many runs from one command, each a process that reads its own RUN_DIR/config.yaml."""
