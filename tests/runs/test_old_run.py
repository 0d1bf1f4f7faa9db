"""A run that was begun before there were recipes goes on, evaluates and samples as it did."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from src.config.restore import read_config
from tests.golden import TOLERANCE
from tests.tiny_runs import command, corpus

OLD = Path(__file__).with_name("old_run")


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "runs" / "old"))


def rows(file):
    with file.open(newline="") as opened:
        return {int(row["step"]): row for row in csv.DictReader(opened) if row["train/bits_per_byte"]}


def test_keys_that_it_lacks_have_their_old_meaning():
    config = read_config(OLD / "config.yaml")
    assert (config.optimizer.name, config.optimizer.schedule, config.optimizer.warmup_steps) == ("adamw", "cosine", 2)
    model = config.model
    assert (model.rotary, model.qk_norm, model.zero_outputs, model.embedding_std) == (None, None, False, None)
    assert model.kv_heads is None
    assert (model.norm, model.bias, model.activation, model.position_embeddings) == ("layer", True, "gelu", "always")


def test_it_goes_on_to_the_same_losses(run, tmp_path):
    data = f"data.path={corpus(tmp_path)}"
    done = command("train", f"resume={run}", data, "trainer.progress=false", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found, wanted = rows(run / "metrics.csv"), rows(OLD / "metrics_of_all_12_steps.csv")
    assert sorted(found) == list(range(7, 13))
    for step, row in found.items():
        for name in ("train/bits_per_byte", "train/learning_rate"):
            assert float(row[name]) == pytest.approx(float(wanted[step][name]), rel=TOLERANCE, abs=1e-12)
    before = json.loads((OLD / "summary_after_12_steps.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test/bits_per_byte"] == pytest.approx(before["test/bits_per_byte"], rel=TOLERANCE)


def test_it_evaluates_and_samples(run, tmp_path):
    data = f"data.path={corpus(tmp_path)}"
    for name, *keys in (("eval", "eval.min_context=[0,32]"), ("sample", "length=20", "batch=1")):
        done = command(name, f"run={run}", "checkpoint=last", data, *keys, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
