"""GPUs are counted by another process, mostly without PyTorch, as PyTorch would; and here if that one cannot."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.system import gpus
from tests.tiny_runs import environment

CODE = "import sys; from src.system import gpus; {broken}; gpus.ask(); print(gpus.gpu_count(), 'torch' in sys.modules)"
CHOICES = st.lists(
    st.sampled_from(["0", "1", "2", "7", "00", "-1", "", " 1", "GPU-8932f937", "MIG-1", "x"]), max_size=4
)


@pytest.mark.parametrize(
    ("script", "here"),
    [(None, False), ("print(1); raise SystemExit(1)", True), ("print()", True)],
    ids=["counted", "failed", "silent"],
)
def test_counts_as_pytorch_does(script, here, tmp_path):
    (tmp_path / "script.py").write_text(script or "")
    line = [sys.executable, "-c", CODE.format(broken="gpus.__file__ = 'script.py'" if script else "pass")]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(torch.cuda.device_count()), str(here)]


@given(chosen=st.none() | CHOICES.map(",".join), there=st.integers(1, 8))
def test_what_nvml_settles_is_what_pytorch_says(chosen, there):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpus, "_built_for", lambda: "cuda")
        patch.setattr(gpus, "_by_nvml", lambda: there)
        patch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: there)
        patch.setattr(torch.cuda, "_raw_device_uuid_nvml", lambda: ["GPU-8932f937-d72c"] * there)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if chosen is not None:
            patch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        counted = gpus._without_pytorch()
        assert counted in (None, torch.cuda._device_count_nvml())
        if chosen is None or (chosen in ("0", "1", "0,1") and there > 1):
            assert counted is not None  # PyTorch is not asked where it is plain


@pytest.mark.parametrize(
    ("version", "built_for"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", "cpu"),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None", "cuda"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'", "rocm"),
        (None, None),
    ],
)
def test_what_pytorch_was_built_for(version, built_for, tmp_path):
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('PyTorch is imported')")
    if version is not None:
        (package / "version.py").write_text(f"from typing import Optional\n{version}\n")
    code = "from src.system import gpus; print(gpus._built_for())"
    path = f"{tmp_path}:{Path(gpus.__file__).parents[2]}"
    done = subprocess.run([sys.executable, "-c", code], env=environment(PYTHONPATH=path), cwd=tmp_path,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == str(built_for)


def test_without_nvml_pytorch_is_asked(monkeypatch):
    monkeypatch.setattr(gpus, "_built_for", lambda: "cuda")
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert gpus._by_nvml() is None
    assert gpus._without_pytorch() is None
