"""docs/extend.md does what it says, and names only files that are there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import DOCS, ROOT, run_python, sections
from tests.tiny_runs import environment

PAGE = sections(DOCS / "extend.md")
NEW = {
    "conf/attention/powers.yaml", "conf/data/folder.yaml", "conf/optimizer/momentum.yaml", "src/data/folder.py",
    "tests/data/test_folder.py",
}  # fmt: skip
"""What a reader makes."""


def test_there_are_six_examples():
    kinds = [[block.language for block in blocks] for blocks in PAGE.values()]
    assert kinds == [["python"]] * 5 + [["bash"]]


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|Lightning|treespec)")
@pytest.mark.parametrize("title", [title for title, blocks in PAGE.items() if blocks[0].language == "python"])
def test_every_block_runs(title, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_python(PAGE[title])
    assert capsys.readouterr().out


def test_the_optimizer_learns():
    losses = run_python(PAGE["An optimizer"])["losses"]
    assert losses[-1] < losses[0] / 2  # type: ignore[index]


def test_the_callback_saw_every_second_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_python(PAGE["A callback"])
    assert list(names["noted"].norms) == [2, 4, 6]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_sweep_makes_two_runs_and_a_report(tmp_path):
    (block,) = PAGE["A sweep"]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-euc", block.code], cwd=tmp_path, env=environment(PATH=programs), capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 2 jobs to run" in done.stdout
    folder = tmp_path / "runs" / "sweeps" / "widths"
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert [(job["overrides"], job["state"]) for job in jobs] == [
        ({"model.width": "16"}, "finished"), ({"model.width": "32"}, "finished")
    ]  # fmt: skip
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("page", ["extend.md", "library.md"])
def test_files_that_are_named_are_there(page):
    named = set(re.findall(r"`((?:src|conf|tests|scripts)/[\w./-]*)`", (DOCS / page).read_text()))
    assert {name for name in named - NEW if not (ROOT / name).exists()} == set()
    assert not {name for name in NEW if (ROOT / name).exists()}
