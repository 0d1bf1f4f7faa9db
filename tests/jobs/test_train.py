"""Training as a user sees it: whole processes, from the command line to summary.json."""

import json
import signal
from pathlib import Path

import pytest
import torch
import yaml

from tests.tiny_runs import (
    TINY,
    assert_same_outcome,
    command,
    corpus,
    curve,
    only_run,
    started,
    summary,
    train_tiny,
    wait_for_step,
    weights,
)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """One run that nothing disturbed."""
    return train_tiny(tmp_path_factory.mktemp("unbroken"))


def test_run_directory_holds_everything(unbroken):
    names = {path.name for path in unbroken.iterdir()}
    expected = {"config.yaml", "checkpoints", "metrics.csv", "train.log", "summary.json", "provenance.jsonl"}
    assert expected | {"pattern.png", "samples"} <= names
    assert not set(unbroken.name) & set("=,[] ")
    older = {"best-step-0000010.ckpt", "last-step-0000010.ckpt"}
    assert {path.name for path in (unbroken / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"} | older
    config = yaml.safe_load((unbroken / "config.yaml").read_text())
    assert config["model"]["depth"] == 2
    assert "${" not in (unbroken / "config.yaml").read_text()
    origin = json.loads((unbroken / "provenance.jsonl").read_text().splitlines()[0])
    assert origin["packages"]["torch"] == torch.__version__


def test_summary_has_the_figures_of_the_run(unbroken):
    figures = summary(unbroken)
    assert figures["status"] == "finished"
    assert figures["train/steps"] == 12
    assert figures["test/bytes"] == 1000  # the last 5% of 20,000, each byte once
    assert 0 < figures["val/bits_per_byte"] < 8
    assert figures["train/tokens_per_second"] > 0


def test_last_step_is_validated_though_no_interval_ends_there(unbroken):
    rows = curve(unbroken)
    column = rows[0].index("val/bits_per_byte")
    assert [row[0] for row in rows[1:] if row[column]] == ["5", "10", "12"]


def test_checkpoints_are_plain_and_say_what_they_are(unbroken):
    checkpoint = torch.load(unbroken / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 12
    assert checkpoint["config"]["model"]["depth"] == 2
    assert all(name.startswith("model.") for name in checkpoint["state_dict"])


def test_eval_gives_the_same_figure_twice(unbroken):
    figures = []
    for _ in range(2):
        done = command("eval", f"run={unbroken}", folder=unbroken.parent)
        assert done.returncode == 0, done.stderr
        figures.append(summary(unbroken)["test/bits_per_byte"])
    assert figures[0] == figures[1]


def test_eval_of_the_last_checkpoint_leaves_the_best_figures_alone(unbroken):
    before = summary(unbroken)
    done = command("eval", f"run={unbroken}", "checkpoint=last", "split=validation", folder=unbroken.parent)
    assert done.returncode == 0, done.stderr
    after = summary(unbroken)
    assert {name: after[name] for name in before} == before
    assert after["last/val/bytes"] == 1000


def test_ctrl_c_saves_and_says_how_to_go_on(unbroken, tmp_path):
    process = started("train", *TINY, f"data.path={corpus(tmp_path)}", folder=tmp_path)
    wait_for_step(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    run = only_run(tmp_path)
    assert process.returncode == 130
    assert f"python -m src.train resume={run.relative_to(tmp_path)}" in said
    assert "Traceback" not in said
    stopped = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert stopped >= 2
    refused = command("train", f"resume={run}", "trainer.max_steps=1", folder=tmp_path)
    assert refused.returncode == 2
    assert f"has reached step {stopped}: raise trainer.max_steps above that" in refused.stderr
    done = command("train", f"resume={run}", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_outcome(run, unbroken)


def test_resume_may_split_a_step_otherwise(unbroken, tmp_path):
    """Another micro-batch: same steps, same data; weights equal to rounding."""
    process = started("train", *TINY, f"data.path={corpus(tmp_path)}", "model.dropout=0", folder=tmp_path)
    wait_for_step(tmp_path, 7, process)
    process.kill()
    process.wait()
    run = only_run(tmp_path)
    done = command("train", f"resume={run}", "data.micro_batch=2", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "whole").mkdir()
    whole = train_tiny(tmp_path / "whole", "model.dropout=0")
    assert summary(run)["train/steps"] == 12
    assert [row[0] for row in curve(run)] == [row[0] for row in curve(whole)]
    assert summary(run)["test/bits_per_byte"] == pytest.approx(summary(whole)["test/bits_per_byte"], rel=1e-4)


def test_resume_refuses_what_a_run_cannot_change(unbroken):
    before = (unbroken / "config.yaml").read_bytes()
    done = command("train", f"resume={unbroken}", "model.depth=3", folder=unbroken.parent)
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.depth cannot be changed for an existing run")
    assert (unbroken / "config.yaml").read_bytes() == before


def test_finished_run_goes_on_only_with_more_steps(unbroken, tmp_path):
    done = command("train", f"resume={unbroken}", folder=tmp_path)
    assert done.returncode == 2
    assert "is finished at step 12: raise trainer.max_steps" in done.stderr
    run = train_tiny(tmp_path)
    before = (run / "config.yaml").read_bytes()
    done = command("train", f"resume={run}", "trainer.max_steps=9", folder=tmp_path)
    assert done.returncode == 2
    assert f"{run.name} has reached step 12: raise trainer.max_steps above that to go on, found 9" in done.stderr
    assert (run / "config.yaml").read_bytes() == before
    done = command("train", f"resume={run}", "trainer.max_steps=15", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the cosine is planned anew" in done.stdout
    assert summary(run)["train/steps"] == 15


def test_wandb_goes_offline_by_itself_with_one_id(tmp_path):
    run = train_tiny(tmp_path, "logger.kind=wandb", "trainer.max_steps=5", WANDB_MODE="online", WANDB_API_KEY="")
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert offline.name.endswith((run / "wandb_id").read_text().strip())
    assert list(offline.glob("files/media/table/samples/*"))  # the text sample
    assert list(offline.glob("files/media/images/attention/*"))  # the pattern


def test_data_that_cannot_be_read_leaves_no_run_behind(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    done = command("train", *TINY, "data.path=empty", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data.path must have at least 20 bytes, found 0")
    assert not list((tmp_path / "runs").iterdir())


def test_a_job_touches_nothing_that_is_no_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = command("job", str(tmp_path), folder=tmp_path)
    assert done.returncode == 2
    assert "is not a run directory: it holds no config.yaml" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_early_stopping_ends_the_run(tmp_path):
    """With a learning rate of 0 no validation is better than the first."""
    still = ("optimizer.learning_rate=0", "trainer.early_stopping=1", "trainer.val_every=2")
    run = train_tiny(tmp_path, *still)
    assert summary(run)["train/steps"] == 4
    assert summary(run)["val/best_step"] == 2
    assert not weights(run)["model.output.weight"].any()
    (run / "summary.json").unlink()  # as if it was killed between its last validation and the test
    done = command("train", f"resume={run}", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(run)["train/steps"] == 4
