"""The metrics file only ever grows, and a resumed run continues it."""

import csv
import io
from pathlib import Path

import pytest

from src.loggers import metrics_csv
from src.loggers.metrics_csv import MetricsCsv


def rows(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_rows_are_appended_and_new_columns_join(tmp_path):
    file = tmp_path / "metrics.csv"
    logger = MetricsCsv(file)
    logger.log_metrics({"a": 1.5}, step=1)
    logger.log_metrics({"b": 2.0}, step=2)
    logger.log_metrics({"a": 3.0, "b": 4.0}, step=3)
    assert rows(file) == [
        {"step": "1", "a": "1.5", "b": ""},
        {"step": "2", "a": "", "b": "2.0"},
        {"step": "3", "a": "3.0", "b": "4.0"},
    ]


def test_resumed_run_keeps_what_was_before_its_step(tmp_path):
    file = tmp_path / "metrics.csv"
    first = MetricsCsv(file)
    for step in range(1, 6):
        first.log_metrics({"loss": float(step)}, step=step)
    MetricsCsv(file, after_step=3).log_metrics({"loss": 40.0}, step=4)
    assert [(row["step"], row["loss"]) for row in rows(file)] == [
        ("1", "1.0"),
        ("2", "2.0"),
        ("3", "3.0"),
        ("4", "40.0"),
    ]


def test_half_written_last_line_is_dropped(tmp_path):
    """A kill in the middle of a write leaves a piece of a line; it must not become a row."""
    file = tmp_path / "metrics.csv"
    first = MetricsCsv(file)
    first.log_metrics({"loss": 1.0}, step=1)
    with file.open("a") as opened:
        opened.write("2,0.")
    MetricsCsv(file, after_step=1).log_metrics({"loss": 2.0}, step=2)
    assert [(row["step"], row["loss"]) for row in rows(file)] == [("1", "1.0"), ("2", "2.0")]


@pytest.fixture
def full(monkeypatch):
    """A switch: while it is on, a disk takes the first bytes of a line and no more."""
    state = {"on": False}

    class Disk(io.FileIO):
        def write(self, content):
            return super().write(content[:3] if state["on"] else content)

    opened = Path.open

    def disk(path, mode="r", **how):
        return Disk(path, "rb+") if mode == "r+b" else opened(path, mode, **how)

    monkeypatch.setattr(Path, "open", disk)
    return state


def test_rows_wait_while_the_disk_is_full_and_no_part_of_a_line_stays(tmp_path, full, caplog):
    file = tmp_path / "metrics.csv"
    logger = MetricsCsv(file)
    logger.log_metrics({"a": 1.0}, step=1)
    full["on"] = True
    for step in (2, 3):
        logger.log_metrics({"a": float(step)}, step=step)
        logger.save()
    assert file.read_text().splitlines() == ["step,a", "1,1.0"] and logger.count == 1
    assert caplog.messages == [f"{file} takes no rows (No space left on device): they wait in memory"]
    assert logger.waiting == [{"step": "2", "a": "2.0"}, {"step": "3", "a": "3.0"}]
    full["on"] = False
    logger.save()
    assert [row["a"] for row in rows(file)] == ["1.0", "2.0", "3.0"] and logger.count == 3
    full["on"] = True
    logger.log_metrics({"a": 4.0, "b": 1.0}, step=4)
    full["on"] = False
    logger.log_metrics({"b": 2.0}, step=5)
    assert [(row["a"], row["b"]) for row in rows(file)][-2:] == [("4.0", "1.0"), ("", "2.0")]
    assert len(caplog.messages) == 2


def test_a_file_that_is_removed_begins_anew_and_a_resumed_run_continues_that(tmp_path, caplog):
    file = tmp_path / "metrics.csv"
    logger = MetricsCsv(file)
    for step in (1, 2, 3):
        logger.log_metrics({"a": float(step)}, step=step)
    file.unlink()
    for step in (4, 5):
        logger.log_metrics({"a": float(step)}, step=step)
    assert caplog.messages == [f"{file} is gone: a new one begins at step 4"]
    assert logger.count == 2 and [row["step"] for row in rows(file)] == ["4", "5"]
    MetricsCsv(file, after_step=4, count=1).log_metrics({"a": 50.0}, step=5)
    assert [(row["step"], row["a"]) for row in rows(file)] == [("4", "4.0"), ("5", "50.0")]


def test_rows_that_wait_go_on_with_the_checkpoint(tmp_path, full):
    file = tmp_path / "metrics.csv"
    first = MetricsCsv(file)
    first.log_metrics({"a": 1.0, "b": None}, step=1)
    full["on"] = True
    first.log_metrics({"a": 2.0}, step=2)
    resumed = MetricsCsv(file, after_step=2, count=first.count, waiting=first.waiting)
    resumed.log_metrics({"a": 3.0}, step=3)  # what was there stays, though it cannot be written anew
    assert [row["a"] for row in rows(file)] == ["1.0"]
    full["on"] = False
    resumed.log_metrics({"a": 4.0}, step=4)
    assert [(row["step"], row["a"], row["b"]) for row in rows(file)] == [
        ("1", "1.0", ""), ("2", "2.0", ""), ("3", "3.0", ""), ("4", "4.0", ""),
    ]  # fmt: skip


def test_a_resumed_run_removes_nothing_while_the_disk_is_full(tmp_path, monkeypatch):
    file = tmp_path / "metrics.csv"
    first = MetricsCsv(file)
    for step in (1, 2, 3):
        first.log_metrics({"a": float(step)}, step=step)
    before = file.read_text()
    resumed = MetricsCsv(file, after_step=2, count=2)
    with monkeypatch.context() as patch:
        patch.setattr(metrics_csv, "written_whole", lambda path: (_ for _ in ()).throw(OSError(28, "No space left")))
        for _ in range(2):
            resumed.save()
            resumed.log_metrics({"a": 30.0}, step=3)
        assert file.read_text() == before
    resumed.save()
    assert [row["a"] for row in rows(file)] == ["1.0", "2.0", "30.0", "30.0"]
