"""What wandb would send of a run that was logged offline, read by wandb's own reader (``wandb leet inspect``)."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sent:
    """A wandb run, all starts of it that are in one folder."""

    name: str
    group: str | None
    tags: list[str]
    config: dict[str, Any]
    summary: dict[str, Any]
    history: set[str]
    """Keys that were logged against steps; those of media without what stands behind the first point."""
    exit_code: int | None
    """None where the process was killed before it could say."""


def sent(folder: Path) -> Sent:
    """Read one of wandb's run folders."""
    line = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(record) for record in done.stdout.splitlines()]
    run = next(record["run"] for record in records if record["type"] == "run")
    config, summary = dict(run["config"]["update"]), {}
    for record in records:
        config |= record.get("config", {}).get("update", {})
        summary |= record.get("summary", {}).get("update", {})
    history = {key.partition(".")[0] for record in records for key in record.get("history", {}).get("item", {})}
    codes = [record["exit"].get("exit_code", 0) for record in records if record["type"] == "exit"]
    name, group, tags = run["display_name"], run.get("run_group"), run.get("tags", [])
    return Sent(name, group, tags, config, summary, history, codes[-1] if codes else None)
