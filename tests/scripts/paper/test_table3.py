"""The paper's table 3: rows in proportion to the context, beside the paper's where they belong."""

import pytest

from scripts.paper.table3 import PAPER, main, scaled, table
from tests.tiny_runs import summary, train_tiny

FIGURES = {
    "data/label": "enwik8", "data/partial": False,
    "val/bits_per_byte": 1.5, "val/bits_per_byte@min_context=512": 1.25, "val/bits_per_byte@min_context=100": 1.375,
    "last/val/bits_per_byte@min_context=512": 9.0, "test/bits_per_byte": 8.0,
}  # fmt: skip


def test_rows_are_the_papers_in_proportion():
    assert scaled(12_288) == sorted(PAPER)
    assert scaled(1024) == [512, 768, 896, 992, 1008, 1013]
    assert scaled(2) == [1]


def test_rows_stand_beside_the_papers_and_by_length():
    lines = table(FIGURES, "val", 1024).splitlines()
    assert lines[0] == "validation split of enwik8, every byte scored once in each row; context 1,024"
    assert lines[4:] == ["| 0 | 1.5000 | | |", "| 100 | 1.3750 | | |", "| 512 | 1.2500 | 6,144 | 0.9952 |"]


@pytest.mark.parametrize("change", [{"data/partial": True}, {"data/label": "corpus.txt (1 bytes)"}])
def test_other_data_are_said_to_be_other_data(change):
    said = table(FIGURES | change, "val", 1024)
    assert "Not the paper's data" in said
    assert "(partial)" in said or "corpus.txt" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["split=test"], "error: run has no value"), (["run=nowhere"], "error: nowhere is not a run directory")],
)
def test_mistakes_are_told_in_a_sentence(arguments, sentence, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.slow
def test_a_run_gets_its_table(tmp_path, capfd):
    run = train_tiny(tmp_path)
    assert main([f"run={run}", "trainer.progress=false"]) == 0
    said = capfd.readouterr().out
    assert (run / "table3.md").read_text() in said
    figures = summary(run)
    for least in (0, 32, 48, 56, 62, 63):
        name = f"val/bits_per_byte@min_context={least}" if least else "val/bits_per_byte"
        assert f"| {least:,} | {figures[name]:.4f} |" in said
