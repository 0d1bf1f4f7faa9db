"""Runs of wandb's own sweeps: as an agent's environment makes them, and started by wandb's real agent."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from src.config.checks import check
from src.config.command_line import CONF
from src.config.words import groups
from tests.kills import logged_step, wait_for
from tests.tiny_runs import TINY, command, composed, corpus, environment, only_run, summary
from tests.wandb_server import ENTITY, KEY, Sweeping, serving

AWKWARD = {"logger.group": "x, y [z]", "logger.tags": ["a b", "c,d", "[e]"]}
SMALL = {**dict(word.split("=", 1) for word in TINY), "logger.kind": "wandb", "logger.sample_bytes": 0}
LONG = {"trainer.max_steps": 100_000, "trainer.val_every": 1000}


@pytest.fixture
def server() -> Iterator[Sweeping]:
    made = Sweeping()
    with serving(made):
        yield made


def login(server: Sweeping, folder: Path) -> dict[str, str]:
    """The environment of a user who is logged in to the server."""
    home = {"HOME": str(folder), "NETRC": str(folder / "netrc")}
    return {
        **home,
        "WANDB_BASE_URL": server.address,
        "WANDB_API_KEY": KEY,
        "WANDB_MODE": "online",
        "WANDB_SILENT": "false",
    }


def as_agents_do(server: Sweeping, folder: Path, **values: Any) -> tuple[list[str], dict[str, str]]:
    """The words and the environment that an agent starts a run with where the sweep's file names no command."""
    given = {**SMALL, "data.path": corpus(folder).name, **values}
    file = folder / "config-agent0.yaml"
    file.write_text(yaml.safe_dump({"wandb_version": 1, **{key: {"value": value} for key, value in given.items()}}))
    ids = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "agent0", "WANDB_PROJECT": "theirs", "WANDB_ENTITY": ENTITY}
    places = {"WANDB_DIR": str(folder), "WANDB_SWEEP_PARAM_PATH": str(file)}
    return [f"--{key}={value}" for key, value in given.items()], {**login(server, folder), **ids, **places}


def config_of(run: dict[str, Any]) -> dict[str, Any]:
    """What a run sent as its configuration."""
    return {key: content["value"] for key, content in json.loads(run["config"]).items()}


def assert_awkward(run: Path, sent: dict[str, Any]) -> None:
    """Values with blanks, commas and brackets have arrived as they were."""
    kept = OmegaConf.load(run / "config.yaml").logger
    assert (kept.group, list(kept.tags)) == tuple(AWKWARD.values())
    assert sent["groupName"] == kept.group and sent["tags"][-3:] == list(kept.tags)


def test_a_run_is_that_of_its_agent_and_stays_it_when_it_goes_on(tmp_path, server):
    words, env = as_agents_do(server, tmp_path, attention="dense", **AWKWARD)
    done = command("train", *words, folder=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    run, sent = only_run(tmp_path), server.runs["theirs", "agent0"]
    assert (sent["sweep"], sent["displayName"], server.exit_codes["agent0"]) == ("sweep1", run.name, [0])
    assert_awkward(run, sent)
    assert config_of(sent)["attention"] == "dense"
    assert config_of(sent)["run/attention"]["pattern"] == "dense"
    assert "run/model" not in config_of(sent)
    assert (run / "wandb_id").read_text() == "agent0\n"
    again = command("train", f"resume={run}", "trainer.max_steps=14", folder=tmp_path, **login(server, tmp_path))
    assert again.returncode == 0, again.stderr
    assert list(server.runs) == [("theirs", "agent0")] and server.exit_codes == {"agent0": [0, 0]}


@pytest.mark.slow
def test_a_stop_of_the_agent_saves_and_is_no_failure_to_it(tmp_path, server):
    words, env = as_agents_do(server, tmp_path, **LONG)
    line = [sys.executable, "-m", "src.train", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(line, cwd=tmp_path, env=environment(**env), text=True, **pipes)
    wait_for(lambda: list(tmp_path.glob("runs/*")) and logged_step(only_run(tmp_path)) > 1, "steps", process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM, said  # an agent takes codes above 0 for failures
    assert server.exit_codes == {"agent0": [128 + signal.SIGTERM]}
    run = only_run(tmp_path)
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert f"stopped by SIGTERM; go on with:  python -m src.train resume=runs/{run.name}" in said


def test_a_wrong_value_is_told_and_leaves_nothing(tmp_path, server):
    words, env = as_agents_do(server, tmp_path, **{"model.depth": "abc"})
    done = command("train", *words, folder=tmp_path, **env)
    assert (done.returncode, done.stderr) == (2, "error: model.depth must be an integer, found 'abc'\n")
    assert not (tmp_path / "runs").exists() and not server.runs


def test_a_sweep_of_ours_is_refused_where_an_agent_waits_for_one_run(tmp_path):
    done = command("train", "-m", "seed=1,2", "logger=wandb", folder=tmp_path, WANDB_SWEEP_ID="sweep1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: -m must be left out where an agent of wandb waits for one run, found WANDB_")


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Sweeping, dict[str, Path], str]:
    """The file of conf/wandb/ by wandb's own commands: two agents, a run that ends, a mistake, one that is stopped.

    The last one goes on in a plain shell. Given are the server, run directories by wandb's ids, and what was said.
    """
    folder = tmp_path_factory.mktemp("agent")
    values = {**SMALL, "data.path": corpus(folder).name}
    server = Sweeping({**values, "attention": "dense", **AWKWARD}, {**values, "model.depth": "abc"}, {**values, **LONG})
    server.stop_at = {"agent2": 5}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    env, said = environment(**login(server, folder), PATH=path), []

    def python(*words: str) -> None:
        line = [sys.executable, "-m", *words]
        done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=200)
        said.append(done.stdout + done.stderr)
        assert done.returncode == 0, said[-1]

    with serving(server):
        python("wandb", "sweep", str(CONF / "wandb" / "quickstart.yml"))
        python("wandb", "agent", "--count", "2", f"{ENTITY}/sparse-transformer/sweep1")
        python("wandb", "agent", f"{ENTITY}/sparse-transformer/sweep1")
        runs = {(run / "wandb_id").read_text().strip(): run for run in (folder / "runs").iterdir()}
        steps = logged_step(runs["agent2"]) + 3
        python("src.train", f"resume=runs/{runs['agent2'].name}", f"trainer.max_steps={steps}")
    return server, runs, "\n".join(said)


@pytest.mark.slow
def test_real_agents_start_one_run_after_the_other(swept):
    server, runs, said = swept
    assert "wandb agent mine/sparse-transformer/sweep1" in said
    assert list(server.runs) == [("sparse-transformer", name) for name in ("agent0", "agent2")]
    assert sorted(runs) == ["agent0", "agent2"]
    for name, run in runs.items():
        sent = server.runs["sparse-transformer", name]
        assert (sent["sweep"], sent["displayName"]) == ("sweep1", run.name)
    assert_awkward(runs["agent0"], server.runs["sparse-transformer", "agent0"])


@pytest.mark.slow
def test_real_agents_go_on_after_a_mistake_and_a_stop_which_goes_on_in_a_plain_shell(swept):
    server, runs, said = swept
    assert "\nerror: model.depth must be an integer, found 'abc'\n" in said
    assert f"stopped by SIGTERM; go on with:  python -m src.train resume=runs/{runs['agent2'].name}" in said
    assert server.exit_codes == {"agent0": [0], "agent2": [143, 0]}
    assert said.count("still wants this run stopped") == 1
    assert [summary(run)["status"] for run in runs.values()] == ["finished", "finished"]


def test_the_files_for_wandb_make_configurations_and_are_no_choices():
    assert "wandb" not in groups()
    for file in (CONF / "wandb").iterdir():
        content = yaml.safe_load(file.read_text())
        *command_line, values = content["command"]
        assert command_line[:4] == ["${env}", "${interpreter}", "-m", "src.train"] and values == "${args_no_hyphens}"
        drawn = {key: space.get("values", [space.get("min")])[0] for key, space in content["parameters"].items()}
        check(composed(*command_line[4:], *(f"{key}={value}" for key, value in drawn.items())))
