"""A sweep on a real SLURM: submit, preempt, requeue, finish. Skips itself where there is none to be had."""

import subprocess

import pytest

from src.config.command_line import CONF

SKIPPED = 77


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_preempted_job_is_requeued_into_its_own_run(tmp_path):
    done = subprocess.run(
        [str(CONF.parent / "scripts" / "slurm_demo.sh"), str(tmp_path)],
        capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "demo: 2 finished" in done.stdout
    assert "Restarts=1" in done.stdout
    assert "going on from step" in done.stdout
    sweep = tmp_path / "runs" / "sweeps" / "demo"
    runs = sorted(file.parent.name for file in sweep.glob("*/config.yaml"))
    assert runs == ["bytes-fixed-d2-fp32", "bytes-strided-d2-fp32"]
    ids = {folder.name.rsplit("-", 1)[1] for folder in (sweep / runs[0] / "wandb").glob("offline-run-*")}
    assert ids == {(sweep / runs[0] / "wandb_id").read_text().strip()}
