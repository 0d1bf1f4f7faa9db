"""Make the wandb dashboard of a project or a sweep: a saved view of its page.

python -m scripts.dashboard                                    the project of conf/logger/wandb.yaml
python -m scripts.dashboard --project P --entity E --group G   runs of one group
python -m scripts.dashboard --sweep runs/sweeps/NAME           a sweep: its group, its varied keys as columns
python -m scripts.dashboard --sweep runs/sweeps/NAME --print   what would be sent, as JSON: no login, no network
python -m scripts.dashboard --update URL                       bring a dashboard of this script up to date

What each choice of a sweep is worth (a row of charts for each varied key), bits per byte against steps, bytes and
seconds, loss, speed, MFU, memory, samples, attention pictures, the table of runs. Needs an account (wandb login) and
pip install '.[dashboard]'.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from src.config.command_line import CONF
from src.errors import UserError, exit_code
from src.loggers.wandb_login import login_known, without_login
from src.reporting.compare import SEED
from src.reporting.effects import MOST_VALUES
from src.reporting.record import ATTENTION

WAIT = 10.0  # seconds for the server's first answer
NO_LOGIN = (
    "a dashboard is kept by a wandb server: log in by wandb login (or set WANDB_API_KEY); --print shows what would be "
    "sent, and wandb leet FOLDER/wandb shows runs without an account"
)


@dataclass(frozen=True)
class Wanted:
    """Which runs the dashboard is of.

    Args:
        project: of wandb.
        entity: of wandb: a user or team; None for the one that is logged in.
        group: runs of this group alone; None for all of the project.
        varied: keys that a sweep varies.
        factors: those of them with a few values, which charts can have a line for each of; without the seed.
    """

    project: str
    entity: str | None = None
    group: str | None = None
    varied: list[str] = field(default_factory=list)
    factors: list[str] = field(default_factory=list)

    @property
    def by(self) -> str:
        """The key that charts have a line for each value of, where the command line names none."""
        from scripts.dashboard_sections import column

        return column(self.factors[0]) if self.factors and ATTENTION not in self.factors else "attention.pattern"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the dashboard that the command line asks for; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.dashboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--project", help="default: that of the sweep, or of conf/logger/wandb.yaml")
    parser.add_argument("--entity", help="user or team (default: that of the sweep, or yours)")
    parser.add_argument("--group", help="runs of this group alone (default: that of the sweep, or all runs)")
    parser.add_argument("--sweep", type=Path, metavar="FOLDER", help="a sweep's folder")
    parser.add_argument("--by", metavar="KEY", help="a line for each value (default: attention.pattern, or the first "
                        "key that the sweep varies)")  # fmt: skip
    parser.add_argument("--update", metavar="URL", help="replace this saved view instead of making a new one")
    parser.add_argument("--print", action="store_true", help="print what would be sent, as JSON, and send nothing")
    options = parser.parse_args(arguments)
    return exit_code(lambda: print(made(options)))


def made(options: argparse.Namespace) -> str:
    """Make the dashboard and say where it is, or what would be sent.

    Raises:
        UserError: no such sweep, no login, or a server that does not take it.
    """
    wanted = asked_for(options)
    by = options.by or wanted.by
    if options.print:
        return json.dumps(sent(workspace(wanted, by)), indent=2)
    return saved(wanted, by, options.update)


def asked_for(options: argparse.Namespace) -> Wanted:
    """Put together what the command line says, what the sweep says, and what runs take by themselves.

    Raises:
        UserError: no such sweep, or none of its jobs has begun.
    """
    found = of_sweep(options.sweep) if options.sweep else Wanted(project_of_runs())
    given = {each: getattr(options, each) for each in ("project", "entity", "group")}
    return replace(found, **{each: value for each, value in given.items() if value})


def project_of_runs() -> str:
    """Give the project that runs are logged to where their command line does not say."""
    from omegaconf import OmegaConf

    return str(OmegaConf.load(CONF / "logger" / "wandb.yaml").project)


def of_sweep(folder: Path) -> Wanted:
    """Read where the runs of a sweep are logged, and which keys it varies.

    Raises:
        UserError: it is no sweep's folder, or none of its jobs has begun.
    """
    from src.runs.run import Run

    try:
        content = json.loads((folder / "sweep.json").read_text())
        varied, begun = list(content["varied"]), [job["run"] for job in content["jobs"] if job["run"]]
        values = {key: {job["overrides"].get(key) for job in content["jobs"]} for key in varied}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--sweep must be a sweep's folder with its sweep.json, found {folder}") from error
    if not begun:
        raise UserError(f"none of the jobs of {folder} has begun: there is nothing to show yet")
    logger = Run.find(folder / begun[0]).config().logger
    factors = [key for key in varied if key != SEED and 1 < len(values[key]) <= MOST_VALUES]
    return Wanted(logger.project, logger.entity, logger.group, varied, factors)


def workspace(wanted: Wanted, by: str) -> Any:
    """Build the dashboard as an object of the wandb-workspaces library (``Workspace``); nothing is sent.

    Raises:
        UserError: the library is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ImportError as error:
        raise UserError("the dashboard needs wandb-workspaces: pip install '.[dashboard]'") from error
    from scripts.dashboard_sections import BEST, MOST_RUNS, STEP, columns, sections

    return ws.Workspace(
        entity=wanted.entity or "",
        project=wanted.project,
        name=f"Sparse Transformer: {wanted.group or 'all runs'}",
        sections=sections(by, wanted.factors),
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == wanted.group) if wanted.group else "",
            order=[expr.Ordering(expr.Summary(BEST), ascending=True)],
            pinned_columns=columns(wanted.varied),
        ),
    )


def sent(built: Any) -> dict[str, Any]:
    """Give the content of the request that saving a workspace makes."""
    view = built._to_model()
    spec = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"entityName": view.entity, "projectName": view.project, "displayName": view.display_name, "spec": spec}


def saved(wanted: Wanted, by: str, update: str | None) -> str:
    """Save the dashboard on the server and give its address.

    Args:
        wanted: which runs it is of.
        by: a line for each value of this key.
        update: address of the saved view to replace; None for a new one.

    Raises:
        UserError: nobody is logged in, or the server does not answer or refuses.
    """
    built = workspace(wanted, by)
    if not login_known():
        raise UserError(NO_LOGIN)
    import wandb

    server = wandb.setup().settings.base_url
    check_reachable(server)
    try:
        if not built.entity:
            built.entity = wandb.Api().default_entity or ""
        if update is not None:
            before = type(built).from_url(update)
            for part in ("name", "sections", "settings", "runset_settings"):
                setattr(before, part, getattr(built, part))
            built = before
        return str(built.save().url)
    except Exception as error:  # the library lets through whatever the server, or the way to it, makes of a request
        reason = without_login(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__
        raise UserError(f"{urlsplit(server).hostname} did not take the dashboard ({reason})") from error


def check_reachable(server: str) -> None:
    """Ask a server for a sign of life; wandb itself would wait for minutes.

    Raises:
        UserError: there is none.
    """
    import requests

    try:
        requests.get(server, timeout=WAIT)
    except requests.RequestException as error:
        host = urlsplit(server).hostname
        raise UserError(
            f"the wandb server {host} does not answer ({type(error).__name__}): see the network"
            f"{' and WANDB_BASE_URL' if 'WANDB_BASE_URL' in os.environ else ''}, or look at runs by wandb leet"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
