"""The search for learning rate and batch: runs of equal bytes, and a table of what they reached."""

import json

import pytest

from scripts.paper import search_lr
from src.config.command_line import CONF
from tests.scripts.paper.test_table2 import LITTLE
from tests.tiny_runs import corpus


def jobs(*arguments):
    return search_lr.jobs(search_lr.parser().parse_args(list(arguments)))


def test_all_runs_see_equally_many_bytes(tmp_path):
    found, _ = jobs("--text", str(corpus(tmp_path)), "--megabytes", "9.8304")
    assert [config.name for _, config in found[:2]] == ["batch1-lr0.01", "batch1-lr0.02"]
    assert len(found) == 8
    for _, config in found:
        assert config.trainer.max_steps * config.data.batch_size * config.data.context == 9_830_400
        assert config.trainer.val_every == config.trainer.max_steps


def test_the_grid_may_be_another():
    words = ("--", "data.batch_size=2", "optimizer.muon_learning_rate=0.1,0.01", "precision=fp32")
    found, values = jobs("--size", "tiny", *words)
    assert [values for values, _ in found] == [
        {"data.batch_size": "2", "optimizer.muon_learning_rate": rate} for rate in ("0.1", "0.01")
    ]
    assert search_lr.run_names(values) == ["batch2-lr0.1", "batch2-lr0.01"]


def test_the_table_is_in_the_order_of_the_values_and_marks_the_best():
    values = {search_lr.BATCH: ["8", "16"], search_lr.RATE: ["0.002", "0.001"]}
    of = {"data/label": "enwik8, partial", "data/partial": True}
    found = {"batch8-lr0.002": {"val/bits_per_byte": 2.0, **of}, "batch8-lr0.001": {"val/bits_per_byte": 1.5, **of},
             "batch16-lr0.002": {"val/bits_per_byte": 1.75, **of}, "batch16-lr0.001": {}}  # fmt: skip
    lines = search_lr.table(found, values).splitlines()
    assert lines[0] == "| learning rate | batch 8 | batch 16 |"
    assert lines[2:4] == ["| 0.001 | **1.5000** | not yet run |", "| 0.002 | 2.0000 | 1.7500 |"]
    assert "enwik8, partial (part of the official set)" in lines[-1]
    assert "not yet run" in search_lr.table({}, values)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("--megabytes", "0"), "--megabytes must be above 0, found 0.0"),
     (("--minutes", "-1"), "--minutes must be a number of minutes above 0, found -1.0"),
     (("--text", "nowhere"), "--text must be an existing file or folder")],
)  # fmt: skip
def test_mistakes_are_told_in_a_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert search_lr.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


@pytest.mark.slow
def test_a_search_prints_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(CONF.parent))
    grid = ("data.batch_size=2", "optimizer.muon_learning_rate=0.01,0.001")
    kept = [word for word in LITTLE if not word.startswith("data.batch_size")]
    arguments = (
        "--size",
        "tiny",
        "--text",
        str(corpus(tmp_path)),
        "--megabytes",
        "0.0064",
        "--slots",
        "2",
        "--pack",
        "p.tar.gz",
    )
    assert search_lr.main([*arguments, "--", *grid, *kept]) == 0
    folder = tmp_path / "runs" / "sweeps" / "lr"
    text = (folder / "search.md").read_text()
    assert text in capsys.readouterr().out
    figures = [json.loads((folder / f"batch2-lr{rate}" / "summary.json").read_text()) for rate in ("0.01", "0.001")]
    assert {figure["train/steps"] for figure in figures} == {50}
    assert f"| 0.01 | **{figures[0]['val/bits_per_byte']:.4f}** |" in text  # more is learned in so few steps
    assert (tmp_path / "p.tar.gz").is_file()
