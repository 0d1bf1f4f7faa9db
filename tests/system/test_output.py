"""No output stops a run, whatever the terminal's character set is."""

import os
import pty
import subprocess
import sys

import pytest

from tests.tiny_runs import TINY, corpus, environment, summary

LATIN = {"PYTHONIOENCODING": "latin-1"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "settings",
    [ASCII | {"PYTHONIOENCODING": "ascii"}, *(pytest.param(one, marks=pytest.mark.slow) for one in (LATIN, ASCII))],
    ids=["ascii everywhere", "latin output", "ascii locale"],
)
def test_training_ends_well_on_a_terminal_that_knows_ascii_alone(settings, tmp_path):
    folder = tmp_path / "döner"
    folder.mkdir()
    path = corpus(folder).rename(folder / "añb.txt")
    line = [sys.executable, "-m", "src.train", *TINY, f"data.path={path}", "trainer.progress=true", "logger=csv"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(line, cwd=folder, env=environment(**settings), stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b"".join(iter(lambda: _read(ours), b""))
    assert process.returncode == 0, said.decode(errors="replace")
    (run,) = (folder / "runs").iterdir()
    assert summary(run)["status"] == "finished"
    assert path.name in (run / "config.yaml").read_text(encoding="utf-8")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux says that the other side is closed
        return b""
