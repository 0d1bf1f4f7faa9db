"""Writing while training goes on: what is written is the state at the moment of the call."""

import threading

import pytest
import torch

from src.checkpoint import file
from src.checkpoint.background import BackgroundWriter, Snapshots


def content(step: int, weight: torch.Tensor) -> dict:
    return {"global_step": step, "state_dict": {"weight": weight}}


def test_training_may_change_the_weights_while_they_are_written(tmp_path, monkeypatch):
    begin, writing = threading.Event(), file.write

    def slow(*arguments):
        assert begin.wait(60)
        writing(*arguments)

    monkeypatch.setattr(file, "write", slow)
    writer, weight = BackgroundWriter(keep=1), torch.ones(1000)
    writer.write(content(1, weight), [tmp_path / "best.ckpt", tmp_path / "last.ckpt"])
    assert writer.busy
    weight.zero_()
    begin.set()
    writer.wait()
    assert not writer.busy
    assert writer.failure() is None
    for name in ("best", "last"):
        assert torch.equal(file.read(tmp_path / f"{name}.ckpt")["state_dict"]["weight"], torch.ones(1000))


def test_one_is_written_after_the_other(tmp_path):
    writer = BackgroundWriter(keep=3)
    for step in range(1, 6):
        writer.write(content(step, torch.full((1000,), float(step))), [tmp_path / "last.ckpt"])
    writer.wait()
    assert [file.inspect(tmp_path / name) for name in ("last.ckpt", "last-step-0000004.ckpt")] == [5, 4]


def test_what_the_disk_refuses_is_told_once_with_step_files_and_reason(tmp_path):
    writer, blocked = BackgroundWriter(keep=1), tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    paths = [tmp_path / "best.ckpt", blocked / "last.ckpt"]
    writer.write(content(7, torch.ones(1)), paths)
    writer.wait()
    failure = writer.failure()
    assert failure is not None
    assert (failure.step, failure.paths) == (7, (paths[1],))
    assert failure.reason in ("File exists", "Not a directory")
    assert writer.failure() is None
    assert file.inspect(paths[0]) == 7


def test_a_fault_of_our_own_is_not_swallowed(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "write", lambda *arguments: 1 / 0)
    writer = BackgroundWriter(keep=1)
    writer.write(content(1, torch.ones(1)), [tmp_path / "last.ckpt"])
    writer.wait()
    with pytest.raises(ZeroDivisionError):
        writer.failure()


def test_a_snapshot_shares_nothing_with_its_source_and_keeps_what_is_shared():
    weight = torch.arange(6.0).view(2, 3)
    source = {"a": weight, "tied": weight, "view": weight[0], "numbers": [1, {"x": (2, torch.tensor(3))}], "none": None}
    taken, complete = Snapshots().take(source)
    complete()
    weight.add_(1)
    source["numbers"][1]["x"] = ()
    assert torch.equal(taken["a"], torch.arange(6.0).view(2, 3))
    assert taken["tied"] is taken["a"]
    assert torch.equal(taken["view"], torch.arange(3.0))
    assert taken["numbers"] == [1, {"x": (2, torch.tensor(3))}]


def test_memory_of_a_snapshot_is_used_again():
    snapshots, weight = Snapshots(), torch.ones(100)
    places = [snapshots.take({"w": weight})[0]["w"].data_ptr() for _ in range(3)]
    assert len(set(places)) == 1
