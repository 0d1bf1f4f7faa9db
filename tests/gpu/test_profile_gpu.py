"""``debug=profile`` on a GPU: a trace, a table by kind of work that knows our own kernels, and a snapshot of memory."""

import gzip
import json
import pickle

import pytest
import torch

from tests.tiny_runs import TINY, cold_command, corpus, only_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("cuda_graph", ["true", "false"])
def test_profile_shows_where_time_and_memory_go(cuda_graph, tmp_path):
    words = (
        *TINY, "debug=profile", "debug.trace_after=3", "debug.trace_steps=2", "trainer.max_steps=7", "precision=bf16",
        "data.context=1024", "model.width=256", "model.heads=4", "attention.stride=32", "attention.summary=8",
        "trainer.accelerator=gpu", "trainer.progress=false", "data.workers=0", f"model.cuda_graph={cuda_graph}",
    )  # fmt: skip
    done = cold_command("train", *words, f"data.path={corpus(tmp_path)}", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path) / "profile"
    title, _, *rows = (folder / "table.txt").read_text().splitlines()
    assert title.startswith("GPU kernels, 2 steps")
    share = {row[:28].strip(): float(row.split()[-1].rstrip("%")) for row in rows}
    kinds = {"attention", "matrix products", "norm, dropout, residual", "activation", "optimizer and clipping"}
    assert all(share[kind] > 0 for kind in kinds)
    busy = 100 - share["no kernel running"]
    assert share.get("other", 0) < 0.1 * busy
    with gzip.open(folder / "trace.json.gz") as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    assert any("add_norm" in name for name in names)
    with (folder / "memory.pickle").open("rb") as file:
        snapshot = pickle.load(file)
    assert snapshot["segments"]
    assert any(snapshot["device_traces"]), "not one allocation of the recorded step"
