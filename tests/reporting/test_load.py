"""Reading what runs leave, whole or not."""

import json
import subprocess
import sys

import pytest

from src.errors import UserError
from src.reporting.load import load
from tests.reporting.made import config, entry, every_state, run, sweep
from tests.tiny_runs import environment


def test_every_state_is_read(tmp_path):
    found = load([every_state(tmp_path / "s")])
    assert found.title == "s"
    assert {r.name: r.state for r in found.runs} == {
        "a-dense": "finished",
        "a-fixed": "finished",
        "a-strided": "interrupted",  # sweep.json says running, and nobody holds the folder
        "a-dense-4": "failed",
        "a-fixed-4": "waiting",
    }
    dense, _, strided, failed, _ = found.runs
    assert [(p.step, p.nbytes, p.seconds, p.bits) for p in dense.val[:2]] == [
        (10, 10_000, 2.0, 5.0),
        (20, 20_000, 4.0, 4.5),
    ]
    assert (dense.partial, strided.partial, failed.partial) == (True, True, None)
    assert (dense.step, strided.step, failed.step) == (30, 10, 0)
    assert failed.error == "it <broke> & ended"
    assert failed.data_name == "enwik8"  # as the others


def test_a_running_job_is_seen_by_its_lock(tmp_path):
    folder = every_state(tmp_path / "s")
    take = f"run_lock.take(Path({str(folder)!r}))"
    program = f"from src.runs import lock as run_lock; from pathlib import Path; {take}; print(1, flush=True); input()"
    line = [sys.executable, "-c", program]
    holder = subprocess.Popen(line, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "1\n"
    assert load([folder]).runs[2].state == ("running" if sys.platform == "linux" else "interrupted")
    holder.communicate("\n")
    assert load([folder]).runs[2].state == "interrupted"


def test_runs_named_one_by_one_are_told_apart_by_their_configurations(tmp_path):
    one = run(tmp_path / "x" / "r", config(), [(10, 1.0, 5.0)], test=5.0)
    two = run(tmp_path / "y" / "r", config("fixed"), [(10, 1.0, 5.0)])
    found = load([one, two])
    assert [(r.name, r.state, r.settings) for r in found.runs] == [
        ("x/r", "finished", {"attention": "dense"}),
        ("y/r", "stopped", {"attention": "fixed"}),
    ]
    assert load([one]).title == "r"


def test_a_sweep_and_a_run_together(tmp_path):
    folder = every_state(tmp_path / "s")
    alone = run(tmp_path / "alone", config(seed=2), [(10, 1.0, 5.0)], test=5.0)
    found = load([folder, alone])
    assert len(found.runs) == 6
    assert found.runs[-1].settings["seed"] == "2"


def test_a_row_that_is_being_written_and_what_is_not_finite_are_left_out(tmp_path):
    folder = run(tmp_path / "r", config(), [(10, 1.0, 5.0), (20, 2.0, 4.0)])
    with (folder / "metrics.csv").open("a") as file:
        file.write("30,30000,3.0,nan,,,,,\r\n40,40000,4.0,3.1")
    (found,) = load([folder]).runs
    assert [p.step for p in found.train] == [10, 20]
    assert found.notes == ["1 logged losses are not finite and are not drawn"]


def test_metrics_of_older_versions_have_no_seconds(tmp_path):
    folder = run(tmp_path / "r", config())
    (folder / "metrics.csv").write_text("step,val/bits_per_byte\n10,5.0\n")
    (found,) = load([folder]).runs
    assert (found.val[0].nbytes, found.val[0].seconds) == (10_000, None)  # 2 sequences of 500 a step


def test_damaged_files_of_one_run_are_noted(tmp_path):
    folder = run(tmp_path / "r", config(), [(10, 1.0, 5.0)], test=5.0)
    (folder / "summary.json").write_text("{")
    (folder / "config.yaml").write_text("a: [")
    (folder / "provenance.jsonl").write_text("")
    (found,) = load([folder]).runs
    assert [note.partition(" ")[0] for note in found.notes] == ["config.yaml", "summary.json", "provenance.jsonl"]
    assert found.val


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("{", "cannot be read as a sweep"), ("[]", "cannot be read as a sweep"), ("{}", "it has no 'jobs'")],
)
def test_a_damaged_sweep_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        load([tmp_path])


def test_a_wrong_folder_is_one_sentence_with_a_hint(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        load([tmp_path / "nowhere"])
    sweep(tmp_path / "sweeps" / "s", [entry(0, "a", "waiting", {})])
    with pytest.raises(UserError, match=r"holds neither sweep\.json .* did you mean .*sweeps/s\?"):
        load([tmp_path / "sweeps"])


def test_a_run_directory_that_the_job_names_is_used(tmp_path):
    run(tmp_path / "s" / "kept", config(), [(10, 1.0, 5.0)])
    sweep(tmp_path / "s", [{**entry(0, "job", "stopped", {"attention": "dense"}), "run": "kept"}])
    assert load([tmp_path / "s"]).runs[0].val
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["jobs"]
