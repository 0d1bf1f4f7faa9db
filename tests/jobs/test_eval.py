"""Evaluation: every byte of a split once, with the context asked for, the same on any number of devices."""

import hashlib
import json
import math
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from src.config import command_line
from src.config.checks import check_eval
from src.config.composing import raw
from src.config.schema import EvalConfig
from src.errors import UserError
from src.eval import evaluate
from src.jobs.shared import check_count, prepared_data
from src.runs.run import Run
from src.training import build_model
from tests.subprocesses import said_without_second_rank
from tests.tiny_runs import command, composed, started, summary, train_tiny
from tests.warm import Started

CONTEXT = 64


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A trained run of a text model."""
    return train_tiny(tmp_path_factory.mktemp("eval"), "logger.kind=wandb", "logger.sample_bytes=0")


def scored(run: Path, *arguments: str) -> str:
    done = command("eval", f"run={run}", *arguments, folder=run.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(run.glob(".evaluation*"))
    return done.stdout


def obvious(run: Path, min_context: int) -> float:
    """Score byte after byte, each in a row of its own in float64, from nothing but the definition."""
    config = Run.find(run).config()
    config.attention.backend = "reference"
    model = build_model.language_model(config, 1).double().eval()
    model.load_state_dict(torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"])
    data = prepared_data(config)
    text = torch.from_numpy(data.splits.test.store.read([0], data.test_bytes)[0])
    seen, place = torch.zeros(len(text), CONTEXT, dtype=torch.uint8), torch.zeros(len(text), dtype=torch.int64)
    for position in range(len(text)):
        start = 0
        while position - start >= CONTEXT:  # the first window that holds the byte and gives it enough context
            start += CONTEXT - min_context
        place[position] = position - start
        seen[position, : position - start] = text[start:position]  # the byte itself and all after it stay hidden
    with torch.no_grad():
        logits = torch.cat(
            [model(rows)[range(len(rows)), at] for rows, at in zip(seen.split(50), place.split(50), strict=True)]
        )
    return float(F.cross_entropy(logits, text.long())) / math.log(2)


def test_the_table_is_that_of_an_obvious_implementation(run):
    shown = scored(run, "eval.min_context=[0,24,63]")
    for least, name in ((0, ""), (24, "@min_context=24"), (63, "@min_context=63")):
        figure = summary(run)[f"test/bits_per_byte{name}"]
        assert figure == pytest.approx(obvious(run, least), abs=1e-5)
        assert re.search(rf"│ +{least} │ +{figure:.4f} │ +1,000 │", shown), shown
    assert summary(run)["test/bytes"] == 1000
    assert len({summary(run)[f"test/bits_per_byte{name}"] for name in ("", "@min_context=24", "@min_context=63")}) == 3


def test_two_processes_give_the_same_figures(run):
    names = ("val/bits_per_byte", "val/bits_per_byte@min_context=40")
    rows = ("split=validation", "eval.min_context=[0,40]", "data.eval_batch_size=3")
    scored(run, *rows)
    alone = [summary(run)[name] for name in names]
    scored(run, *rows, "trainer.devices=2")
    assert [summary(run)[name] for name in names] == pytest.approx(alone, rel=1e-13)


def test_the_last_checkpoint_has_figures_of_its_own(run):
    before = summary(run)
    scored(run, "checkpoint=last", "eval.min_context=16")
    added = summary(run).keys() - before.keys()
    assert added == {"last/test/bits_per_byte@min_context=16", "last/test/bytes"}
    assert {name: summary(run)[name] for name in before} == before


def test_wandb_gets_the_figures_under_the_same_id(run):
    scored(run, "eval.min_context=[0,8]")
    folders = list((run / "wandb").glob("offline-run-*"))
    assert len(folders) > 1
    assert {folder.name.rsplit("-", 1)[1] for folder in folders} == {(run / "wandb_id").read_text().strip()}
    assert any(b"test/bits_per_byte@min_context=8" in file.read_bytes() for file in (run / "wandb").glob("*/*.wandb"))
    tables = (run / "wandb").glob("*/files/media/table/evaluation/best-test_*.table.json")
    assert [0, 8] in [[row[0] for row in json.loads(table.read_text())["data"]] for table in tables]


def test_a_figure_over_other_bytes_than_the_split_is_never_given(run):
    data = prepared_data(Run.find(run).config())
    check_count(1000, data, "test")
    with pytest.raises(RuntimeError, match="999 bytes of the test split were scored, and it has 1,000"):
        check_count(999, data, "test")


def evaluating(run: Path, first: int, *arguments: str) -> Started:
    """Start an evaluation of two rows, the first by so many bytes of context at least, and return when that is done."""
    line = (f"run={run}", f"eval.min_context=[{first},63]", "data.eval_batch_size=1")
    process = started("eval", *line, *arguments, folder=run.parent)
    deadline = time.monotonic() + 120
    while f"test/bits_per_byte@min_context={first}" not in summary(run) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def test_ctrl_c_ends_quietly_and_keeps_finished_rows(run):
    figures = summary(run)
    process = evaluating(run, 5)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.count("stopped: rows that were finished are in summary.json") == 1
    assert "Traceback" not in said
    assert summary(run).keys() - figures.keys() <= {"test/bits_per_byte@min_context=5"}
    assert not list(run.glob(".evaluation*"))


@pytest.mark.slow
def test_an_evaluation_that_loses_a_process_says_so_on_every_rank(run):
    said = said_without_second_rank(evaluating(run, 6, "trainer.devices=3"))
    for sentence in (
        "rank 0: another rank is gone: run the same again",
        "rank 2: another rank is gone: run the same again",
        "error: rank 1 ended with exit code 137, so all ranks were stopped",
    ):
        assert said.count(sentence) == 1, said
    assert "Traceback" not in said
    assert not list(run.glob(".evaluation*"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("eval.min_context=-1", "eval.min_context must be at least 0 and below data.context (64), found -1"),
        ("eval.min_context=64", "eval.min_context must be at least 0 and below data.context (64), found 64"),
        ("eval.min_context=[0,0]", "eval.min_context must name each number once, found [0, 0]"),
        ("eval.min_context=[]", "eval.min_context must be a whole number or a list such as [0,1024], found []"),
        ("eval.min_context=much", "eval.min_context must be a whole number or a list such as [0,1024], found 'much'"),
        ("eval.min_context=1.5", "eval.min_context must be a whole number or a list such as [0,1024], found 1.5"),
        ("eval.min_contest=1", "eval.min_contest is not a key of the configuration: did you mean eval.min_context?"),
        ("split=train", "split must be one of validation, test, found 'train'"),
        ("checkpoint=first", "checkpoint must be one of best, last, found 'first'"),
        ("model.depth=3", "model.depth cannot be changed for an existing run: allowed are"),
        ("trainer.num_nodes=2", "trainer.num_nodes must be 1 for src.eval, found 2"),
        ("data.path=gone.txt", "data.path must be an existing file, found gone.txt"),
        ("run=nowhere", "nowhere is not a run directory: there is no such folder"),
    ],
)
def test_wrong_requests_are_refused_in_a_sentence(run, given, sentence, monkeypatch, capsys):
    before = contents(run)
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr(sys, "argv", ["eval", *([] if given.startswith("run=") else [f"run={run}"]), given])
    with pytest.raises(SystemExit) as ended:
        command_line.command("eval", evaluate)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(f"error: {sentence}")
    assert said.count("\n") == 1
    assert contents(run) == before


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:3000]), r"best\.ckpt cannot be read as a checkpoint: "),
        pytest.param(
            lambda file: torch.save({"state_dict": {}}, file),
            r"best\.ckpt is of another model than the configuration",
            marks=pytest.mark.slow,
        ),
        (lambda file: file.unlink(), r"best\.ckpt does not exist: the run has no best checkpoint yet"),
    ],
    ids=["damaged", "of another model", "missing"],
)
def test_wrong_checkpoints_are_refused_in_a_sentence(run, tmp_path, damage, sentence):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    for file in (copy / "checkpoints").glob("best-*"):
        file.unlink()
    damage(copy / "checkpoints" / "best.ckpt")
    before = contents(copy)
    done = command("eval", f"run={copy}", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(f"error: .*{sentence}.*\n", done.stderr)
    assert contents(copy) == before


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def eval_line(*overrides: str) -> EvalConfig:
    return command_line.typed(raw("eval", ["run=x", *overrides]), EvalConfig)


def test_pictures_have_no_overlapping_windows():
    config = composed("experiment=cifar10")
    with pytest.raises(UserError, match=r"eval\.min_context must be 0 for pictures, found 1024"):
        check_eval(eval_line("eval.min_context=1024"), config)
    assert check_eval(eval_line(), config) == [0]
