"""The wheel of this project, installed elsewhere, trains and attends: it holds conf/ and the kernels' tiles."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import TINY, corpus

ROOT = Path(__file__).parents[1]
SOURCES = ("src", "scripts", "conf", "pyproject.toml", "README.md", "LICENSE")

pytestmark = pytest.mark.slow


def run(*line: str, folder: Path, **env: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | env
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Where the wheel is installed, without what it needs: that comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "made", str(source), folder=folder)
    (wheel,) = (folder / "made").glob("*.whl")
    run(*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel), folder=folder)
    shutil.rmtree(source)
    return folder / "site"


def test_an_installed_wheel_trains(site, tmp_path):
    where = run(sys.executable, "-c", "import src; print(src.__file__)", folder=tmp_path, PYTHONPATH=str(site))
    assert Path(where.strip()).is_relative_to(site)
    arguments = (*TINY, f"data.path={corpus(tmp_path)}", "trainer.max_steps=2", "trainer.progress=false")
    run(sys.executable, "-m", "src.train", *arguments, folder=tmp_path, PYTHONPATH=str(site))
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 1


def test_an_installed_wheel_has_every_file_that_is_no_python(site):
    for folder in ("src", "conf"):
        wanted = {file.relative_to(ROOT) for file in (ROOT / folder).rglob("*.*") if file.suffix not in (".py", ".pyc")}
        missing = {file for file in wanted if not (site / file).is_file()}
        assert wanted and not missing


def test_an_installed_wheel_attends_with_stored_tiles(site, tmp_path):
    program = (
        "import torch; from src.attention import Pattern; from src.attention.backends import attend; "
        "from src.attention.triton import tuning; q = torch.randn(1, 2, 32, 8); "
        "print(attend(q, q, q, Pattern('fixed', 8, 2).layer(2)).shape, sorted(tuning._table()))"
    )
    out = run(sys.executable, "-c", program, folder=tmp_path, PYTHONPATH=str(site))
    assert out.split() == ["torch.Size([1,", "2,", "32,", "8])", "['sm_90']"]
