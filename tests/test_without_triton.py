"""Everything but the Triton backend works where Triton is not installed, as on macOS."""

import subprocess
import sys

from tests.tiny_runs import TINY, corpus, environment, only_run, summary

HIDE = """
import importlib.machinery
found = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] == "triton" else found(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
"""


def test_training_runs_and_triton_is_refused_in_a_sentence(tmp_path):
    """``sitecustomize`` hides the package in every process that a command starts."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(HIDE)
    env = environment()
    env["PYTHONPATH"] = f"{tmp_path / 'hidden'}:{env['PYTHONPATH']}"
    check = subprocess.run([sys.executable, "-c", "import triton"], env=env, capture_output=True, check=False)
    assert check.returncode != 0  # it is hidden indeed

    line = [sys.executable, "-m", "src.train", *TINY, f"data.path={corpus(tmp_path)}"]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(only_run(tmp_path))["status"] == "finished"

    done = subprocess.run(
        [*line, "attention.backend=triton"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: attention.backend=triton cannot run here: ")
