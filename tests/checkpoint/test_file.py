"""Checkpoint files: kept, chosen, compared, and never run."""

import contextlib
import logging
import os
import pickle
import random
import resource
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from src.checkpoint.file import check_model, differences, entry, inspect, read, usable, usable_for, write
from src.checkpoint.seal import Damaged
from src.checkpoint.shelf import all_rows, remove_drafts, row, sealed_step
from src.errors import UserError
from tests.checkpoint.test_seal import state


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def damage(path: Path, seed: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 0x10
    path.write_bytes(content)


def test_the_newest_is_last_and_as_many_as_asked_for_are_kept(tmp_path):
    last = tmp_path / "last.ckpt"
    for step in (100, 200, 300, 400):
        write(state(step), last, keep=3)
    assert names(tmp_path) == {"last.ckpt", "last-step-0000300.ckpt", "last-step-0000200.ckpt"}
    assert [inspect(path) for path in row(last)] == [400, 300, 200]


def test_keep_one_keeps_one(tmp_path):
    for step in (100, 200):
        write(state(step), tmp_path / "last.ckpt", keep=1)
    assert names(tmp_path) == {"last.ckpt"}


def test_a_run_that_went_back_leaves_no_later_steps(tmp_path):
    last = tmp_path / "last.ckpt"
    for step in (100, 200, 300):
        write(state(step), last, keep=3)
    write(state(150), last, keep=3)  # 200 and 300 were of the course that was left
    assert [inspect(path) for path in row(last)] == [150, 100]


def test_a_reader_never_sees_a_part(tmp_path, monkeypatch):
    """While the new file is written, the old one is there under its name, whole; so it is after a failed write."""
    last = tmp_path / "last.ckpt"
    write(state(100), last)
    seen = []

    def failing(descriptor):
        seen.append(inspect(last))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="No space left"):
        write(state(200), last)
    assert seen == [100]
    assert inspect(last) == 100
    assert names(tmp_path) == {"last.ckpt"}


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """A real limit of the operating system, in the middle of the tensors."""
    last = tmp_path / "last.ckpt"
    write(state(100), last)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(state(200, size=1_000_000), last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert inspect(last) == 100
    assert names(tmp_path) == {"last.ckpt"}


@contextlib.contextmanager
def disk(place, size):
    """A disk of its own."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    with disk(tmp_path / "disk", "1m") as place:
        yield place


@pytest.fixture
def roomy_disk(tmp_path):
    """A disk of 16 MiB."""
    with disk(tmp_path / "roomy", "16m") as place:
        yield place


def test_a_small_disk_keeps_the_last_good_file(small_disk):
    last = small_disk / "last.ckpt"
    write(state(100, size=50_000), last, keep=2)
    with pytest.raises(OSError, match="No space left"):
        write(state(200, size=300_000), last, keep=2)
    assert names(small_disk) == {"last.ckpt"}
    assert inspect(last) == 100


@pytest.mark.parametrize("seed", range(4))
def test_where_the_newest_is_damaged_the_one_before_serves_and_the_log_says_so(tmp_path, caplog, seed):
    last = tmp_path / "last.ckpt"
    for step in (100, 200, 300):
        write(state(step), last, keep=3)
    damage(last, seed)
    os.truncate(tmp_path / "last-step-0000200.ckpt", 1000)
    with caplog.at_level(logging.ERROR):
        assert usable_for(last).name == "last-step-0000100.ckpt"
    (said,) = caplog.messages
    assert said.startswith(f"damaged in {tmp_path}: last.ckpt: ")
    assert "last-step-0000200.ckpt: " in said
    assert said.endswith("; taking last-step-0000100.ckpt of step 100")


def test_a_run_goes_on_from_the_newest_whole_file_of_either_kind(tmp_path):
    for name, steps in (("last", (100, 200, 300)), ("best", (50, 250))):
        for step in steps:
            write(state(step), tmp_path / f"{name}.ckpt", keep=2)
    assert [path.name for path in all_rows(tmp_path)] == [
        "last.ckpt", "best.ckpt", "last-step-0000200.ckpt", "best-step-0000050.ckpt",
    ]  # fmt: skip
    damage(tmp_path / "last.ckpt")
    assert usable(all_rows(tmp_path)).name == "best.ckpt"


def test_all_damaged_is_one_sentence_that_names_them(tmp_path):
    last = tmp_path / "last.ckpt"
    for step in (100, 200):
        write(state(step), last, keep=2)
    for path in row(last):
        path.write_bytes(b"")
    with pytest.raises(UserError) as refused:
        usable_for(last)
    assert str(refused.value) == (
        f"no checkpoint in {tmp_path} can be read: last.ckpt: it is empty; last-step-0000100.ckpt: it is empty"
    )


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.ckpt cannot be read as a checkpoint: .* No such file"):
        usable_for(tmp_path / "nowhere.ckpt")


class Attack:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch {self.target}",))


def attacks(folder: Path, proof: Path) -> list[Path]:
    """The same evil as a sealed checkpoint, as PyTorch's archive, and as a bare pickle."""
    sealed, archive, bare = (folder / name for name in ("sealed.ckpt", "archive.ckpt", "bare.ckpt"))
    content = state(5) | {"extra": Attack(proof)}
    write(content, sealed)
    torch.save(content, archive)
    bare.write_bytes(pickle.dumps(content))
    return [sealed, archive, bare]


def test_a_crafted_checkpoint_is_refused_and_nothing_in_it_runs(tmp_path):
    proof = tmp_path / "proof"
    for path in attacks(tmp_path, proof):
        for door in (inspect, read, lambda at: entry(at, "config"), lambda at: check_model(at, torch.nn.Linear(2, 2))):
            with pytest.raises((Damaged, UserError)) as refused:
                door(path)
            assert len(str(refused.value).splitlines()) == 1
        assert not proof.exists()
    torch.load(tmp_path / "archive.ckpt", weights_only=False)
    assert proof.exists()  # the attack is a real one


def test_names_inside_the_archive_lead_nowhere(tmp_path):
    """An archive whose members climb out of it: nothing is unpacked at all."""
    path = tmp_path / "last.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil", "x")
    with pytest.raises(Damaged):
        inspect(path)
    assert names(tmp_path) == {"last.ckpt"}


def test_another_model_is_refused_by_the_names_of_its_weights(tmp_path):
    path = tmp_path / "last.ckpt"
    write({"global_step": 1, "state_dict": torch.nn.Linear(3, 2).state_dict()}, path)
    check_model(path, torch.nn.Linear(3, 2))
    with pytest.raises(UserError) as refused:
        check_model(path, torch.nn.Sequential(torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(3, 2)))
    assert "0.weight 2x4 is not in the file" in str(refused.value)
    with pytest.raises(UserError, match=r"weight is 2x3 in the file and 2x5 in the model$"):
        check_model(path, torch.nn.Linear(5, 2))


def test_differences_name_both_sides():
    wanted = {"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": torch.zeros(1)}
    found = differences({"a": torch.zeros(3, 2), "c": torch.zeros(1), "d": torch.zeros(4)}, wanted)
    assert found == [
        "a is 3x2 in the file and 2x3 in the model", "b a number is not in the file", "d 4 is not in the model",
    ]  # fmt: skip


def test_drafts_of_killed_processes_are_removed_from_the_whole_run_and_nothing_else(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    drafts = [tmp_path / ".metrics.csv.123.draft", tmp_path / "checkpoints" / ".last.ckpt.123.draft"]
    kept = [tmp_path / "metrics.csv", tmp_path / "checkpoints" / "last.ckpt", tmp_path / ".gitignore"]
    for path in (*drafts, *kept):
        path.touch()
    remove_drafts(tmp_path)
    assert not any(path.exists() for path in drafts)
    assert all(path.exists() for path in kept)


def test_a_file_without_a_seal_has_no_step(tmp_path):
    path = tmp_path / "last.ckpt"
    assert sealed_step(path) is None
    path.write_bytes(b"no checkpoint")
    assert sealed_step(path) is None
