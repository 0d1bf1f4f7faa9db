"""The metrics file only ever grows, and a resumed run continues it."""

import csv

from src.callbacks.metrics_csv import MetricsCsv


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
