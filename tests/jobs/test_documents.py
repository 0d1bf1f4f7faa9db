"""Runs with packed documents: figures from nothing but the definition, and a resumed run that is the unbroken one."""

import math
import signal

import pytest
import torch
import torch.nn.functional as F

from src.jobs.shared import prepared_data
from src.runs.run import Run
from src.training import build_model
from tests.tiny_runs import (
    TINY,
    assert_same_outcome,
    command,
    corpus,
    only_run,
    started,
    summary,
    train_tiny,
    wait_for_step,
)

SEPARATOR = b"window "
DOCUMENTS = ("recipe=modern", "attention=local", "attention.options.window=20", f"data.documents={SEPARATOR.decode()}")
CONTEXT = 64


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An unbroken run whose model knows distances alone, so that a document can be moved."""
    return train_tiny(tmp_path_factory.mktemp("documents"), *DOCUMENTS)


def test_a_resumed_run_is_the_unbroken_one(run, tmp_path):
    process = started("train", *TINY, f"data.path={corpus(tmp_path)}", *DOCUMENTS, folder=tmp_path)
    wait_for_step(tmp_path, 4, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = command("train", f"resume={only_run(tmp_path)}", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_outcome(only_run(tmp_path), run)


def test_the_log_says_what_documents_are_and_what_computes_them(run):
    said = (run / "train.log").read_text()
    assert "documents end with b'window '" in said
    assert "attention local (merged), backend torch" in said
    assert "attention stays within documents, every pattern over lists of tiles" in said
    assert "FLOPs and train/mfu count the pattern as if there were one document: an upper bound" in said


def obvious(run, min_context: int) -> float:
    """Score byte after byte, each behind nothing but those of its document that are in its window."""
    config = Run.find(run).config()
    config.attention.backend = "reference"
    model = build_model.language_model(config, 1).double().eval()
    model.load_state_dict(torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"])
    data = prepared_data(config)
    store = data.splits.test.store
    whole, nats = store.path.read_bytes(), []
    for at in range(store.start, store.stop):
        start = store.start
        while at - start >= CONTEXT:
            start += CONTEXT - min_context
        while (found := whole.find(SEPARATOR, max(0, start - len(SEPARATOR) + 1), at)) >= 0:
            start = found + len(SEPARATOR)
        alone = torch.tensor([[*whole[start : at + 1]]])
        with torch.no_grad():
            nats.append(float(F.cross_entropy(model(alone)[0, -1], alone[0, -1])))
    return math.fsum(nats) / len(nats) / math.log(2)


def test_evaluation_stays_within_documents_whatever_the_least_context(run):
    done = command("eval", f"run={run}", "eval.min_context=[0,40]", folder=run.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    for least, name in ((0, ""), (40, "@min_context=40")):
        assert summary(run)[f"test/bits_per_byte{name}"] == pytest.approx(obvious(run, least), abs=2e-4)
