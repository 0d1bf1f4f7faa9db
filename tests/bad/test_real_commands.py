"""A selection of bad inputs as users meet them, in whole processes; and Ctrl-C while a command starts."""

import csv
import resource
import signal
import subprocess
import sys
import time

import pytest

from tests.bad.door import all_of, file, snapshot
from tests.bad.test_run_directories import CORPUS, LAST, NEW, a_begun_run, cut
from tests.tiny_runs import cold_command, environment

QUICK = {
    "a wrong key": (
        "train modle.depth=3",
        CORPUS,
        "modle.depth is not a key of the configuration: did you mean model.",
    ),
    "an unknown option": ("train --devices=2", CORPUS, "--devices=2 is no option: keys are given as KEY=VALUE"),
    "a wrong mode of wandb": ("train", CORPUS, "WANDB_MODE must be one of online, offline, "),
    "output below a file": (f"{NEW} paths.output_dir=a/b", all_of(CORPUS, file("a")), "paths.output_dir=a/b cannot be"),
    "another model": (
        "train resume=run model.depth=9",
        a_begun_run,
        "model.depth cannot be changed for an existing run",
    ),
    "no such run": ("eval run=gone", CORPUS, "gone is not a run directory: there is no such folder"),
    "a long prompt": (f"sample run=run prompt={'x' * 64}", a_begun_run, "prompt must be shorter than the model's"),
}
WITH_TORCH = {
    "a damaged checkpoint": (
        "train resume=run", lambda f: [a_begun_run(f), (f / "run/checkpoints/best.ckpt").unlink(), cut(f / LAST)], LAST,
    ),
    "a damaged summary": ("job run", all_of(a_begun_run, file("run/summary.json", "{")), "run/summary.json cannot be"),
    "a file that is too short": (NEW, file("corpus.txt", b"x" * 100), "data.context must be at most 45 for the 90"),
    "eval of a damaged checkpoint": ("eval run=run checkpoint=last", lambda f: [a_begun_run(f), cut(f / LAST)], LAST),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [*QUICK.values(), *(pytest.param(case, marks=pytest.mark.slow) for case in WITH_TORCH.values())],
    ids=[*QUICK, *WITH_TORCH],
)  # fmt: skip
def test_the_command_says_one_sentence_and_damages_nothing(case, tmp_path):
    line, prepare, sentence = case
    prepare(tmp_path)
    before = snapshot(tmp_path)
    name, *arguments = line.split()
    done = cold_command(name, *arguments, folder=tmp_path, WANDB_MODE="sometimes" if line == "train" else "offline")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}") and done.stderr.count("\n") == 1, done.stderr
    after = snapshot(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert after.keys() - before.keys() <= {"run/.lock", "run/train.log", "runs"}


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training_ends_with_a_sentence_and_loses_no_figure(tmp_path):
    """No file may become larger than 300 kB: checkpoints fit, the picture of the run or its figures do not for long."""
    CORPUS(tmp_path)
    line = [sys.executable, "-m", "src.train", *NEW.split()[1:], "model.depth=1", "model.width=16", "model.heads=2",
            "trainer.max_steps=4000", "trainer.val_every=4000", "trainer.log_every=1", "optimizer.warmup_steps=1",
            "model.dropout=0", "trainer.checkpoint_every=100", "trainer.progress=false"]  # fmt: skip
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # noqa: E731
    options = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True}
    done = subprocess.run(line, check=False, preexec_fn=limit, timeout=280, **options)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    (run,) = (tmp_path / "runs").iterdir()
    where, _, advice = said.partition(" (File too large): ")
    assert where.removeprefix("error: the end of the run could not be saved in ") in (
        f"runs/{run.name}/metrics.csv", f"runs/{run.name}/checkpoints",
    )  # fmt: skip
    assert advice == f"make room, then go on with python -m src.train resume=runs/{run.name}"
    again = subprocess.run([*line[:3], f"resume={run}"], check=False, timeout=280, **options)
    assert again.returncode == 0, again.stderr
    with (run / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/bits_per_byte"]]
    assert steps == list(range(1, 4001))


@pytest.mark.parametrize("name", ["train", "job", "eval", "sample"])
def test_ctrl_c_while_a_command_starts_is_one_word(name, tmp_path):
    """At any moment of its first second, as soon as our first line has run: no traceback, exit code 130."""
    a_begun_run(tmp_path)
    arguments = {"train": NEW.split()[1:], "job": ["run"], "eval": ["run=run"], "sample": ["run=run"]}[name]
    line = [sys.executable, "-X", "importtime", "-m", f"src.{name}", *arguments]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (background jobs inherit that it is ignored)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": heard}
    process = subprocess.Popen(line, cwd=tmp_path, env=environment(), **options)
    assert process.stderr is not None
    said = []
    for text in process.stderr:  # the list of imports shows how far it has come
        if said and said[-1].rstrip().endswith("src.system.signals"):  # it is imported, and what follows it has begun
            break
        said.append(text)
    time.sleep({"train": 0.05, "job": 0.5, "eval": 0.1, "sample": 0.0}[name])
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    told = [text for text in [*said, *rest.splitlines()] if not text.startswith("import time:")]
    assert process.returncode == 130, told
    assert "Traceback" not in rest and told[-1].strip() == "stopped", told
