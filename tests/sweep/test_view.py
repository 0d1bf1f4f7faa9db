"""What the terminal shows of a sweep: which jobs run, their figures, the time left, on narrow and on wide terminals."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from src.sweep import view
from src.sweep.plan import Job, Sweep, now
from src.sweep.view import View, most_telling, shortened
from tests.tiny_runs import composed

LONG = [f"enwik8-{kind}-d30-bf16-learning-rate{rate}" for kind in ("fixed", "strided") for rate in ("0.001", "0.0001")]


def sweep(folder: Path, names: list[str], states: list[str], max_steps: int = 20_000) -> Sweep:
    config = composed("experiment=quickstart", f"trainer.max_steps={max_steps}")
    jobs = [Job(i, name, {}, config, state) for i, (name, state) in enumerate(zip(names, states, strict=True))]
    for job in jobs:
        if job.state != "waiting":
            job.run, job.started = job.name, now()
            (folder / job.name).mkdir(parents=True)
    return Sweep(folder, [], [], jobs, slots=2)


def logged(at: Path, step: int) -> None:
    row = f"{step},1.23456,412345,\n{step},,,1.0512\n"
    (at / "metrics.csv").write_text(f"step,train/bits_per_byte,train/tokens_per_second,val/bits_per_byte\n{row}")


def drawn(shown: View, of: Sweep, rows: int | None = None) -> list[str]:
    shown.console.print(shown.table(of, rows))
    text = shown.console.file.getvalue()
    shown.console.file.seek(0)
    shown.console.file.truncate()
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def viewed(width: int, terminal: bool = False) -> View:
    return View(Console(file=io.StringIO(), width=width, height=24, force_terminal=terminal, color_system=None))


@pytest.mark.parametrize(("width", "step"), [(80, "62%"), (120, "12,300/20,000")])
def test_every_figure_is_whole(tmp_path, width, step):
    of, shown = sweep(tmp_path / "s", LONG, ["running", "finished", "failed", "waiting"]), viewed(width)
    for job in of.jobs[:3]:
        logged(of.folder / job.name, 12_300)
    lines = drawn(shown, of)
    assert lines[0] == "s: 1 running, 1 finished, 1 failed, 1 waiting"
    assert all(len(line) <= width for line in lines)
    assert re.search(rf"fixed.*0\.001 +running +{step} +1\.235 +1\.051 +412\.3", lines[3]), lines[3]
    assert re.search(rf"fixed.*0\.0001 +finished +{step} +1\.235 +1\.051", lines[4]), lines[4]
    assert re.search(r"strided.*0\.0001 +waiting", lines[6]), lines[6]


def test_time_left_of_a_job_and_of_the_sweep(tmp_path, monkeypatch):
    of, shown = (
        sweep(tmp_path / "s", ["a", "b", "c", "d"], ["running", "running", "waiting", "waiting"], 100),
        viewed(90),
    )
    clock = [1000.0]
    monkeypatch.setattr(view.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(view, "seconds_since", lambda moment: 60.0)
    for step in (10, 40):  # 30 steps in 60 seconds, so 60 steps still take 120
        for name in ("a", "b"):
            logged(of.folder / name, step)
        lines = drawn(shown, of)
        clock[0] += 60
    assert lines[3].endswith("0:02:00")
    # two slots: the rest of the two that run, and each slot one that waits, as long as those take in all
    assert lines[0] == "s: 2 running, 2 waiting, about 0:05:00 left"


def test_jobs_that_run_or_failed_are_shown_first_where_there_is_no_room(tmp_path):
    states = ["finished", "failed", "finished", "running", "waiting", "waiting"]
    of, shown = sweep(tmp_path / "s", list("abcdef"), states), viewed(100)
    assert [job.name for job in most_telling(of.jobs, 3)] == ["b", "d", "e"]
    assert most_telling(of.jobs, 6) == of.jobs
    assert drawn(shown, of, rows=3)[-1].strip() == "and 2 finished, 1 waiting"


def test_names_are_told_apart_however_short():
    assert shortened(LONG, 99) == LONG
    assert shortened(LONG, 30) == ["…fixed…rate0.001", "…fixed…rate0.0001", "…strided…rate0.001", "…strided…rate0.0001"]
    assert shortened(["one-long-name"], 8) == ["…ng-name"]
    assert shortened(["bytes-fixed", "bytes"], 6) == ["…fixed", "bytes"]


def test_a_failure_is_told_at_once_and_only_once(tmp_path):
    of, shown = sweep(tmp_path / "s", ["a", "b"], ["running", "running"]), viewed(80, terminal=True)
    with shown.shown(of):
        of.jobs[0].state, of.jobs[0].error = "failed", "the sentence of the job"
        shown.ended(of.jobs[0])
        assert "a failed after 0:00:00: the sentence of the job" in shown.console.file.getvalue()
    assert shown.console.file.getvalue().count("the sentence of the job") == 1


def test_a_search_that_has_no_trial_yet(tmp_path):
    assert drawn(viewed(80), Sweep(tmp_path / "s", [], [], []))[0] == "s: no jobs yet"
