"""A run that was killed at any moment and resumed ends as the unbroken one, to the last bit.

python -m pytest tests/jobs/test_kills.py   20 kills and two of several devices; prints a table for docs/reliability.md
"""

from pathlib import Path

import pytest

from tests.kills import DISTURBED, TWO_DEVICES, assert_as_unbroken, gone_on, of_two_devices, struck, twenty
from tests.tiny_runs import TINY, corpus, train_tiny

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
IN_THE_FAST_SUITE = 1  # the one that is killed while a checkpoint is written
CODES = {"SIGKILL": -9, "node loss": -9, "SIGTERM": 143, "Ctrl-C": 130}


@pytest.fixture(scope="module")
def table(request):
    """Rows of what was done, printed at the end."""
    rows: list[tuple[str, ...]] = []
    yield rows
    lines = [
        "",
        "| kill | exit code | last step before | resumed from | bits equal |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


def undisturbed(folder: Path, *changes: str) -> Path:
    return train_tiny(folder, *DISTURBED, *changes, WANDB_MODE="offline")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """One run that nothing disturbed."""
    return undisturbed(tmp_path_factory.mktemp("unbroken"))


@pytest.fixture(scope="module")
def unbroken_two(tmp_path_factory) -> Path:
    """The same on two devices."""
    return undisturbed(tmp_path_factory.mktemp("unbroken_two"), *TWO_DEVICES)


@pytest.mark.parametrize(
    "kill",
    [
        pytest.param(kill, id=str(kill), marks=[pytest.mark.slow] if number != IN_THE_FAST_SUITE else [])
        for number, kill in enumerate(twenty())
    ],
)
def test_killed_and_resumed_ends_as_the_unbroken_run(kill, unbroken, table, tmp_path):
    fate = struck(kill, tmp_path, *TINY, *DISTURBED, f"data.path={corpus(tmp_path)}")
    assert fate.code == CODES.get(kill.what, fate.code)
    wandb_id = (fate.run / "wandb_id").read_text() if "logger.kind=wandb" in kill.changes else None
    resumed_from = gone_on(fate.run)
    assert_as_unbroken(fate.run, unbroken)
    if wandb_id is not None:
        assert (fate.run / "wandb_id").read_text() == wandb_id
        folders = [path.name for path in (fate.run / "wandb").glob("offline-run-*")]
        assert len(folders) == 2
        assert all(name.endswith(wandb_id.strip()) for name in folders)
    table.append((str(kill), str(fate.code), str(fate.step), str(resumed_from), "yes"))


@pytest.mark.slow
@pytest.mark.parametrize("kill", of_two_devices(), ids=str)
def test_a_job_of_two_devices_ends_as_the_unbroken_one(kill, unbroken_two, table, tmp_path):
    fate = struck(kill, tmp_path, *TINY, *DISTURBED, f"data.path={corpus(tmp_path)}")
    resumed_from = gone_on(fate.run)
    assert_as_unbroken(fate.run, unbroken_two)
    table.append((f"2 devices: {kill}", str(fate.code), str(fate.step), str(resumed_from), "yes"))
