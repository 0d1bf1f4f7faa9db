"""The peer's job: what it leaves, in pieces as unbroken, and how it fails."""

import json
import math
import sys

import pytest
import torch
from torch import nn

from scripts.paper import peer_run, table2
from scripts.paper.peer_run import STATE, PeerRun
from src.callbacks.stop_signal import Interrupted
from src.data.byte_windows import Bytes
from src.errors import UserError
from src.reporting.load import load
from src.runs.run import Run
from tests.scripts.paper.stub import package
from tests.scripts.paper.test_table2 import LITTLE
from tests.tiny_runs import corpus, curve

STEPS = 60


class StopAt:
    """Asks to stop before a step; 0: never."""

    training = False

    def __init__(self, step=0):
        self.step, self.run = step, None

    @property
    def asked(self):
        return 15 if self.step and self.run.at.step == self.step else 0


@pytest.fixture
def stub(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(package(tmp_path)))
    monkeypatch.delitem(sys.modules, "x_transformers", raising=False)
    monkeypatch.setattr(nn.Module, "compile", lambda self, **keys: None)
    yield
    sys.modules.pop("x_transformers", None)


def new_run(tmp_path, name="peer", *words):
    arguments = ["--size", "tiny", "--text", str(corpus(tmp_path)), "--peer", "32", "--", "attention=dense", *LITTLE]
    lengths = (f"trainer.max_steps={STEPS}", "trainer.val_every=25", "trainer.log_every=5")
    wanted = table2.parser().parse_args([*arguments, *lengths, *words])
    ((_, config),) = (job for job in table2.jobs(wanted) if "model" in job[0])
    run = Run(tmp_path / name)
    run.checkpoints.mkdir(parents=True)
    run.write_config(config)
    return run


def trained(run, stop=0):
    asks = StopAt(stop)
    asks.run = PeerRun(run, asks)
    asks.run.train()


def figures(run):
    found = json.loads(run.summary_file.read_text())
    return {name: value for name, value in found.items() if name != "train/seconds"}


def test_it_leaves_what_a_report_reads(tmp_path, stub):
    run = new_run(tmp_path)
    trained(run)
    (found,) = load([run.path]).runs
    assert (found.state, found.step, found.config["data.context"], found.config["data.batch_size"]) == (
        "finished", STEPS, 32, 4,
    )  # fmt: skip
    assert [(point.step, point.nbytes) for point in found.val] == [(25, 3200), (50, 6400), (60, 7680)]
    assert found.best_val == found.val[-1].bits < 8 and abs(found.final("test/bits_per_byte") - found.best_val) < 0.3
    assert found.final("test/bytes") == 1000 and found.final("model/parameters") == 257 * 16 + 17 * 256
    assert len(found.logged["train/step_ms"]) == 12 and found.seconds > 0
    assert found.logged["train/learning_rate"][-1][1] < found.logged["train/learning_rate"][2][1] == 0.001
    assert not list(run.checkpoints.iterdir())


@pytest.mark.parametrize("cuts", [(7,), (1, 25, 58)])
def test_cut_into_pieces_is_as_unbroken_to_the_last_bit(cuts, tmp_path, stub):
    whole, run = new_run(tmp_path, "whole"), new_run(tmp_path, "cut")
    trained(whole)
    for cut in cuts:
        with pytest.raises(Interrupted):
            trained(run, cut)
        assert (run.checkpoints / STATE).is_file()
    trained(run)
    assert figures(run) == figures(whole)
    assert curve(run.path) == curve(whole.path)


def test_a_killed_run_begins_anew(tmp_path, stub):
    whole, run = new_run(tmp_path, "whole"), new_run(tmp_path, "killed")
    trained(whole)
    (run.path / "metrics.csv").write_text("step,train/bits_per_byte\n5,7.0\n")
    trained(run)
    assert curve(run.path) == curve(whole.path)


def test_the_best_weights_are_those_that_are_tested(tmp_path, stub, monkeypatch):
    bits = iter((3.0, 2.0, 2.5, 2.1))
    weights = []

    def score(model, data, split):
        weights.append(model.network.state_dict()["model.out.bias"].clone())
        return next(bits)

    monkeypatch.setattr(peer_run, "score", score)
    run = new_run(tmp_path)
    trained(run)
    assert (figures(run)["val/bits_per_byte"], figures(run)["val/best_step"]) == (2.0, 50)
    assert torch.equal(weights[3], weights[1]) and not torch.equal(weights[2], weights[1])


def test_a_loss_that_is_not_finite_ends_it_in_a_sentence(tmp_path, stub, monkeypatch):
    whole = PeerRun._settle
    monkeypatch.setattr(PeerRun, "_settle", lambda self: (whole(self), self.model.last.fill_(math.nan)))
    with pytest.raises(UserError, match="the loss is nan at step 5: take a lower optimizer"):
        trained(new_run(tmp_path))


def test_ours_and_the_peer_see_the_same_bytes_where_contexts_are_the_same(tmp_path, stub, monkeypatch):
    seen = []
    monkeypatch.setattr(peer_run.LoggedPeer, "step", lambda self, number, x: seen.append(x.clone()))
    monkeypatch.setattr(PeerRun, "_log", lambda self: None)
    monkeypatch.setattr(PeerRun, "_validate", lambda self: None)
    monkeypatch.setattr(PeerRun, "_conclude", lambda self: None)
    run = new_run(tmp_path, "peer", "trainer.max_steps=3", "trainer.val_every=3")
    config = run.config()
    config.data.context, config.data.batch_size = 64, 2
    run.write_config(config)
    trained(run)
    data = PeerRun(run, StopAt()).data
    loaded = iter(data.train_dataloader())
    ours = [next(loaded) for _ in range(3)]
    assert all(isinstance(batch, Bytes) for batch in ours)
    assert all(torch.equal(x, batch.x) for x, batch in zip(seen, ours, strict=True))
