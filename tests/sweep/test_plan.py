"""The plan of a sweep: the same jobs find the same folder, names are distinct, earlier runs are known again."""

import json

import pytest

from src.errors import UserError
from src.runs.run import Run
from src.sweep.plan import fingerprint, job_names, planned
from tests.tiny_runs import composed


def jobs(tmp_path, *grid, extra=()):
    """Composed jobs of a grid of override dictionaries."""
    fixed = (f"paths.output_dir={tmp_path}", "logger=none", "experiment=quickstart", *extra)
    return [({**o}, composed(*fixed, *(f"{k}={v}" for k, v in o.items()))) for o in grid]


GRID = ({"attention": "fixed", "model.depth": "1"}, {"attention": "dense", "model.depth": "1"})


def test_the_same_jobs_find_the_same_folder(tmp_path):
    first, second = planned(jobs(tmp_path, *GRID), [], None), planned(jobs(tmp_path, *reversed(GRID)), [], None)
    assert first.folder == second.folder
    assert first.folder.parent == tmp_path / "sweeps"
    other = planned(jobs(tmp_path, *GRID, extra=["optimizer.learning_rate=0.1"]), [], None)
    assert other.folder != first.folder
    assert not first.folder.exists()  # nothing is written by planning


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("trainer.max_steps=9", True),
        ("data.workers=1", True),
        ("logger.group=g", True),
        ("paths.output_dir=elsewhere", True),
        ("name=other", True),
        ("seed=2", False),
        ("model.depth=2", False),
        ("data.context=128", False),
    ],
)
def test_a_run_is_told_by_what_it_computes(change, same):
    assert (fingerprint(composed()) == fingerprint(composed(change))) == same


def test_names_are_readable_and_distinct(tmp_path):
    assert job_names(jobs(tmp_path, *GRID)) == ["quickstart-fixed-d1-fp32", "quickstart-dense-d1-fp32"]
    seeds = jobs(tmp_path, {"seed": "1"}, {"seed": "2"})
    assert job_names(seeds) == ["quickstart-fixed-d3-fp32-seed1", "quickstart-fixed-d3-fp32-seed2"]
    odd = jobs(tmp_path, {"name": "a"}, {"name": "a", "seed": "2"})
    assert len(set(job_names(odd))) == 2


def test_jobs_belong_to_their_sweep(tmp_path):
    sweep = planned(jobs(tmp_path, *GRID), ["-m"], "mine")
    config = sweep.jobs[1].config
    assert sweep.folder == tmp_path / "sweeps" / "mine"
    assert config.paths.output_dir == str(sweep.folder)
    assert config.logger.group == "mine"
    assert config.logger.columns == {"sweep/attention": "dense", "sweep/model.depth": "1"}
    assert planned(jobs(tmp_path, *GRID, extra=["logger.group=ours"]), [], None).jobs[0].config.logger.group == "ours"


def test_two_jobs_of_the_same_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="jobs 0 and 1 of the sweep are the same run"):
        planned(jobs(tmp_path, {"optimizer.eps": "0.1"}, {"optimizer.eps": "1e-1"}), [], None)


def test_what_a_run_may_change_can_vary(tmp_path):
    sweep = planned(jobs(tmp_path, {"model.recompute": "none"}, {"model.recompute": "block"}), [], None)
    assert [job.name.rpartition("-")[2] for job in sweep.jobs] == ["recomputenone", "recomputeblock"]


def written(sweep, number, **summary):
    """Leave a run directory as a job does."""
    job = sweep.jobs[number]
    run = sweep.run_of(job)
    run.checkpoints.mkdir(parents=True)
    run.write_config(job.config)
    if summary:
        run.update_summary(summary)


def test_finished_runs_are_known_again(tmp_path):
    sweep = planned(jobs(tmp_path, *GRID), [], None)
    written(sweep, 0, **{"status": "finished", "train/steps": 700})
    written(sweep, 1, **{"train/steps": 3})
    sweep.jobs[0].seconds = 12.5
    sweep.write()
    again = planned(jobs(tmp_path, *GRID), [], None)
    assert [job.state for job in again.jobs] == ["finished", "waiting"]
    assert [job.run for job in again.jobs] == [job.name for job in again.jobs]
    assert again.jobs[0].seconds == 12.5
    assert again.started == json.loads(sweep.file.read_text())["started"]
    longer = planned(jobs(tmp_path, *GRID, extra=["trainer.max_steps=800"]), [], None)
    assert [job.state for job in longer.jobs] == ["waiting", "waiting"]  # they go on


def test_a_folder_with_other_runs_is_refused(tmp_path):
    sweep = planned(jobs(tmp_path, *GRID), [], "mine")
    written(sweep, 0)
    with pytest.raises(
        UserError, match=r"holds a run with another configuration: give the sweep another hydra\.launcher"
    ):
        planned(jobs(tmp_path, *GRID, extra=["data.context=128"]), [], "mine")
    assert Run(sweep.run_of(sweep.jobs[0]).path).config().data.context == 256
