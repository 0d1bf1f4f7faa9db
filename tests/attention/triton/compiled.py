"""Kernels compiled in a process of their own, and what a GPU has room for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
KERNELS = {
    "block_forward",
    "block_backward_queries",
    "block_backward_keys",
    "window_forward",
    "window_backward",
    "column_forward",
    "column_backward",
}
DECODING = {"embed_step", "step_vector", "step_linear", "decode_attention", "decode_join"}
FUSED = {
    "add_norm_forward", "add_norm_backward", "column_sums", "act_forward", "act_backward", "join_shares",
    "nats_forward", "nats_backward", "turn_forward", "turn_backward",
}  # fmt: skip
TILED = {"tiled_queries", "tiled_keys", "tiled_key_sums"}
MUON = {"write_kernel", "apply_kernel"}
SMALLEST = 100 * 1024 - 1024  # shared memory a program may have on consumer Ampere and Ada cards
LARGEST = 227 * 1024  # and on those of Hopper


def compiled(*arguments: str) -> list[dict]:
    """Compile in a process of its own: here the interpreter has taken the kernels' place."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.attention.triton.compile_kernels", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(rows: list[dict], spill: int) -> None:
    for row in rows:
        assert row["shared"] <= (LARGEST if row.get("deep") else SMALLEST), row
        assert row["spilled"] <= spill, row
