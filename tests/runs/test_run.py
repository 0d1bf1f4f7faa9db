"""Run directories: made once, found again, written whole."""

import os

import pytest
from omegaconf import OmegaConf

from src.checkpoint.file import write
from src.errors import UserError
from src.runs.run import Run, write_atomically
from tests.tiny_runs import composed


def config(tmp_path):
    return composed(f"paths.output_dir={tmp_path}", "logger=none")


def test_configuration_comes_back_as_it_was_written(tmp_path):
    run = Run.create(config(tmp_path))
    assert Run.find(run.path).config() == config(tmp_path)


def test_runs_of_one_second_do_not_share_a_folder(tmp_path):
    paths = {Run.create(config(tmp_path)).path for _ in range(5)}
    assert len(paths) == 5


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        Run.find(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no config\.yaml"):
        Run.find(tmp_path)


@pytest.mark.parametrize(
    "content", ["model: [", "model: {depth: many}", "model: 3", "attention: {}", "modle: {}", "- 1", "\x00"]
)
def test_damaged_configuration_is_named(tmp_path, content):
    run = Run.create(config(tmp_path))
    run.config_file.write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        run.config()


def test_a_run_of_an_older_version_gets_the_keys_it_lacks(tmp_path):
    run = Run.create(config(tmp_path))
    content = OmegaConf.load(run.config_file)
    del content.trainer["keep"], content.trainer["checkpoint_minutes"], content.model["cuda_graph"], content["debug"]
    content.trainer.clip = 0.5
    OmegaConf.save(content, run.config_file)
    read = run.config()
    assert (read.trainer.keep, read.trainer.checkpoint_minutes, read.model.cuda_graph) == (2, 5, True)
    assert (read.trainer.clip, read.debug.trace_after, read.debug.trace_steps) == (0.5, None, 3)


def test_groups_and_keys_of_today_come_to_an_older_run(tmp_path):
    run = Run.create(config(tmp_path))
    content = OmegaConf.load(run.config_file)
    del content["watch"], content["deterministic"]
    OmegaConf.save(content, run.config_file)
    assert run.config() == config(tmp_path)


def checkpointed(tmp_path):
    """A run with two checkpoints that carry its configuration, as training leaves them."""
    run = Run.create(config(tmp_path))
    for step in (1, 2):
        write({"global_step": step, "state_dict": {}, "config": run.plain_config()}, run.checkpoints / "last.ckpt", 2)
    return run


def test_a_missing_configuration_is_taken_from_the_newest_whole_checkpoint(tmp_path, capsys):
    run = checkpointed(tmp_path)
    run.config_file.unlink()
    os.truncate(run.checkpoints / "last.ckpt", 100)
    assert Run.find(run.path).config() == config(tmp_path)
    newest = run.checkpoints / "last-step-0000001.ckpt"
    assert capsys.readouterr().err == f"{run.config_file} is missing: taken from {newest}\n"


@pytest.mark.parametrize("content", ["", "model: [", "\x00", "model: {depth: many}"])
def test_a_damaged_configuration_is_taken_from_a_checkpoint_and_kept_aside(tmp_path, capsys, content):
    run = checkpointed(tmp_path)
    run.config_file.write_text(content)
    assert Run.find(run.path).config() == config(tmp_path)
    assert "config.yaml is damaged (" in capsys.readouterr().err
    assert (run.path / "config.yaml.damaged").read_text() == content
    assert run.config() == config(tmp_path)


def test_missing_checkpoint_says_how_to_make_it(tmp_path):
    run = Run.create(config(tmp_path))
    with pytest.raises(UserError, match=r"best\.ckpt does not exist.*python -m src\.train resume="):
        run.checkpoint("best")


def test_only_a_run_that_never_began_is_discarded(tmp_path):
    unused, begun = Run.create(config(tmp_path)), Run.create(config(tmp_path))
    begun.provenance_file.write_text("{}\n")
    unused.discard_if_unused()
    begun.discard_if_unused()
    assert not unused.path.exists()
    assert begun.config_file.is_file()


def test_summary_gathers_figures(tmp_path):
    run = Run.create(config(tmp_path))
    run.update_summary({"a": 1, "b": 2})
    run.update_summary({"b": 3})
    assert run.summary() == {"a": 1, "b": 3}


def test_wandb_id_stays(tmp_path):
    run = Run.create(config(tmp_path))
    assert run.wandb_id() == Run.find(run.path).wandb_id()


def test_a_failing_write_leaves_the_old_content(tmp_path, monkeypatch):
    file = tmp_path / "summary.json"
    write_atomically(file, "old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "new")
    assert file.read_text() == "old"


def test_the_id_that_wandb_took_is_kept(tmp_path):
    run = Run.create(config(tmp_path))
    assert run.wandb_id() != "agent123"
    run.keep_wandb_id("agent123")
    assert Run.find(run.path).wandb_id() == "agent123"
