"""Any configuration trains a step or is refused in a sentence: combinations of values that nobody thought of."""

import json
import math
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from src.config.schema import schema_leaves
from tests.bad.door import outcome
from tests.tiny_runs import TINY, corpus

ONE_STEP = (
    *TINY, "trainer.max_steps=1", "trainer.val_every=1", "trainer.checkpoint_every=null", "logger.sample_bytes=0",
    "trainer.progress=false", "data.workers=0",
)  # fmt: skip

counts, few = st.integers(-1, 9), st.integers(1, 6)
switches = st.sampled_from(["true", "false", "maybe"])


def one_of(*values):
    return st.sampled_from(values)


VALUES = {
    "name": one_of("a", "a b", "x.y", "", "null"),
    "seed": one_of(0, 1, 2**31 - 1, 2**31, "x"),
    "deterministic": switches,
    "attention": one_of("dense", "fixed", "strided", "local", "bigbird", "mix", "custom", "dens"),
    "attention.pattern": one_of("dense", "fixed", "strided", "longformer", "mix", "math:pi", "none"),
    "attention.options": one_of("{}", "{window: 9}", "{window: 9, first: 2}", "{blocks: [fixed]}", "3"),
    "attention.stride": st.integers(0, 70),
    "attention.summary": st.integers(0, 12),
    "attention.mode": one_of("merged", "interleaved", "multihead", "both"),
    "attention.distinct": switches,
    "attention.interleave": one_of("'1:1'", "'2:1'", "'1:3'", "'0:1'", "'1'"),
    "attention.backend": one_of("auto", "torch", "reference", "triton", "flex"),
    "model.depth": counts,
    "model.width": st.integers(0, 40),
    "model.heads": counts,
    "model.kv_heads": counts | one_of("null"),
    "model.half_size_qk": switches,
    "model.half_size_ff": switches,
    "model.dropout": one_of(0, 0.1, 0.999, 1, -0.1, "nan"),
    "model.positions": one_of("text", "image"),
    "model.row": st.integers(0, 40),
    "model.init_scale": one_of(1, 8, 0.001, 1000, 0, -1, "nan"),
    "model.position_embeddings": one_of("always", "images", "never", "sometimes"),
    "model.rotary": one_of("null", 10000, 1, 1e30, 0.5, "nan"),
    "model.qk_norm": one_of("null", 1, 1.2, 0.001, 0, "nan", "true"),
    "model.norm": one_of("layer", "rms", "batch"),
    "model.bias": switches,
    "model.activation": one_of("gelu", "relu2", "swish"),
    "model.zero_outputs": switches,
    "model.embedding_std": one_of("null", 0, 0.5, 1000, -1, "inf"),
    "model.recompute": one_of("none", "light", "block", "all"),
    "model.backend": one_of("auto", "eager", "fused"),
    "model.cuda_graph": switches,
    "data.context": st.integers(0, 80) | one_of(20_000),
    "data.batch_size": counts | one_of(300),
    "data.micro_batch": counts | one_of("null"),
    "data.eval_batch_size": counts | one_of("null", 1000),
    "data.allow_partial": switches,
    "data.documents": one_of("null", "block", "' '", "a", r"\q", "''", "nowhere"),
    "data.document_offsets": one_of("null", "corpus.txt", "nowhere.npy"),
    "recipe": one_of("paper", "modern", "old"),
    "optimizer": one_of("adamw", "muon", "sgd"),
    "optimizer.name": one_of("adamw", "muon", "sgd"),
    "optimizer.learning_rate": one_of(0, 1e-9, 0.1, 1e30, -1, "inf"),
    "optimizer.muon_learning_rate": one_of(0, 1e-9, 0.1, 1e30, -1, "inf"),
    "optimizer.muon_momentum": one_of(0, 0.95, 0.9999999, 1, -1),
    "optimizer.schedule": one_of("cosine", "linear", "constant"),
    "optimizer.decay_share": one_of(0, 0.4, 1, 1.5, -1),
    "optimizer.warmup_steps": one_of("null", 0, 1, 10**9, -1),
    "optimizer.warmup_share": one_of(0, 0.5, 1, 1.5, -1),
    "optimizer.warmup_most": one_of(0, 1, 10**9, -1),
    "optimizer.short_context": counts | one_of(0, 1000),
    "optimizer.short_context_steps": one_of(0, 1, 10**9, -1),
    "optimizer.weight_decay": one_of(0, 0.1, 1e30, -1),
    "optimizer.beta1": one_of(0, 0.9, 1, "nan"),
    "optimizer.beta2": one_of(0, 0.9999999, 1),
    "optimizer.eps": one_of(0, 1e-30, 1),
    "precision": one_of("bf16", "fp16", "fp32", "fp8"),
    "precision.tf32": switches,
    "trainer.epochs": counts,
    "trainer.max_steps": one_of(1, 2, 0, "1.5"),
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "tpu"),
    "trainer.devices": one_of(1, 0, 3),
    "trainer.num_nodes": one_of(1, 0, 2),
    "trainer.strategy": one_of("auto", "ddp", "fsdp2", "deepspeed"),
    "trainer.gradient_compression": one_of("none", "bf16", "fp16", "int8"),
    "trainer.clip": one_of(0, 1e-9, 1e9, -1, "inf"),
    "trainer.val_every": one_of(1, 10**9, 0),
    "trainer.checkpoint_every": one_of(1, 10**9, "null", 0),
    "trainer.checkpoint_minutes": one_of(0.001, 1e9, "null", 0),
    "trainer.keep": one_of(1, 1000, 0),
    "trainer.log_every": one_of(1, 10**9, 0),
    "trainer.early_stopping": one_of(1, 10**9, "null", 0),
    "trainer.progress": switches,
    "trainer.peak_tflops": one_of(0.001, 1e9, "null", 0),
    "logger": one_of("csv", "none", "tensorboard"),
    "logger.project": one_of("p", "a/b", "''"),
    "logger.entity": one_of("e", "null", "a#b"),
    "logger.group": one_of("g", "null"),
    "logger.tags": one_of("[]", "[a,b]", "['']", "x"),
    "logger.columns": one_of("{}", "{a:b}", "[1]"),
    "logger.sample_bytes": one_of(0, 3, 63, 64, 65, 10**6, -1),
    "logger.sample_pictures": one_of(0, 1, -1),
    "logger.sample_seconds": one_of(0, 1, "null", -1),
    "logger.attention_picture": switches,
    "watch.nonfinite": one_of("stop", "skip", "ignore"),
    "watch.nonfinite_steps": one_of(1, 10**9, 0),
    "watch.stall_seconds": one_of(60, "null", 0),
    "debug.trace_after": one_of(0, 10**9, "null", -1),
    "debug.trace_steps": one_of(1, 10**9, 0),
}
ELSEWHERE = {  # files and folders, processes of their own: the other tables
    "resume", "paths.data_dir", "paths.output_dir", "data.name", "data.path", "data.workers", "logger.kind",
    "precision.name",
}  # fmt: skip


@st.composite
def overrides(draw):
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=6, unique=True))
    groups = sorted(keys, key=lambda key: "." in key)  # a group's choice first: what follows changes its values
    return [f"{key}={draw(VALUES[key])}" for key in groups]


def test_every_key_of_the_schema_is_drawn_here_or_tried_elsewhere():
    groups = {"attention", "precision", "logger", "recipe", "optimizer"}
    assert VALUES.keys() - groups == schema_leaves().keys() - ELSEWHERE


def trains_or_is_refused(folder, changes, monkeypatch, capfd):
    """Run the command in this process: exit code 0 and a finished run, or 2, one sentence and no run left behind."""
    here = folder / "here"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    monkeypatch.chdir(here)
    arguments = [*ONE_STEP, f"data.path={corpus(here)}", *changes]
    environment = dict(os.environ)
    try:
        code, _, err = outcome("train", arguments, monkeypatch, capfd)
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.clear()  # as for the next process: Lightning leaves what a process group was told
        os.environ.update(environment)
        os.chdir(folder)
    note(err)
    runs = list(here.glob("runs/*"))
    assert "Traceback" not in err
    if code == 0:
        summary = json.loads((runs[0] / "summary.json").read_text())
        assert (summary["status"], summary["train/steps"] in (1, 2)) == ("finished", True)
        assert math.isfinite(summary["test/bits_per_byte"]) or "watch.nonfinite=skip" in changes
    else:
        assert code == 2
        sentences = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(sentences) == 1, err
    return code


def tried(folder, monkeypatch, capfd, examples):
    codes = []

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(overrides())
    def property_(changes):
        codes.append(trains_or_is_refused(folder, changes, monkeypatch, capfd))

    property_()
    assert {0, 2} <= set(codes)  # the draws mean something


def test_some_configurations(tmp_path, monkeypatch, capfd):
    tried(tmp_path, monkeypatch, capfd, examples=12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_configurations(tmp_path, monkeypatch, capfd):
    tried(tmp_path, monkeypatch, capfd, examples=600)
