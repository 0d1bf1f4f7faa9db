"""Evaluate: ``python -m src.eval run=RUN_DIR`` scores every byte of a split with a run's best checkpoint.

``'eval.min_context=[0,1024]'`` makes the rows of the paper's table 3, ``trainer.devices=2`` shares the work out.
"""

from __future__ import annotations

if __name__ == "__main__":
    from src.system.signals import stop_quietly

    stop_quietly()

import sys
from typing import cast

from omegaconf import DictConfig

from src.config.checks import check, check_eval, check_fields
from src.config.command_line import command, overridden_keys, typed
from src.config.restore import restore
from src.config.schema import EvalConfig
from src.errors import UserError
from src.jobs.evaluation_request import Request
from src.jobs.machine import check_machine
from src.processes.ranks import GRACE, place, supervise
from src.runs.run import Run

OWN_KEYS = ("run", "checkpoint", "split", "eval.min_context")


def evaluate(cfg: DictConfig) -> None:
    """Score the run that the command line names, with its own configuration."""
    command_line = cast(EvalConfig, typed(cfg, EvalConfig))
    check_fields(command_line)  # the run says what goes with what
    if place().world > 1:
        raise UserError(f"src.eval starts its processes itself: run it without {place().launcher}, trainer.devices=N")
    run = Run.find(command_line.run)
    wanted = request(run, command_line)
    run.checkpoint(command_line.checkpoint)
    with wanted.written() as file:
        sys.stdout.flush()
        line = [sys.executable, "-m", "src.jobs.evaluation", str(file)]
        code = supervise(line, wanted.config.trainer.devices, 1, grace=GRACE)
    if code:
        sys.exit(code)


def request(run: Run, command_line: EvalConfig) -> Request:
    """Work out what is to be done: one device unless the command line says more, whatever the run was trained on.

    Raises:
        UserError: one sentence with the key, the value found and what is allowed.
    """
    changed = [key for key in overridden_keys() if key not in OWN_KEYS]
    trained = run.config()
    config = restore(trained, command_line, changed)
    config.trainer.devices = command_line.trainer.devices if "trainer.devices" in changed else 1
    config.trainer.num_nodes = command_line.trainer.num_nodes if "trainer.num_nodes" in changed else 1
    if config.trainer.num_nodes > 1:
        raise UserError(f"trainer.num_nodes must be 1 for src.eval, found {config.trainer.num_nodes}")
    if config.trainer.devices == 1:
        config.trainer.strategy = "auto"
    share = trained.data.batch_size // (trained.trainer.devices * trained.trainer.num_nodes)
    data = config.data
    batch_size = data.eval_batch_size or data.micro_batch or share
    data.batch_size = batch_size * config.trainer.devices  # of no consequence, but it must divide
    data.micro_batch = None
    check(config)
    min_context = check_eval(command_line, config)
    check_machine(config)
    return Request(
        run=str(run.path),
        config=config,
        checkpoint=command_line.checkpoint,
        split="test" if command_line.split == "test" else "val",
        min_context=min_context,
        batch_size=batch_size,
    )


if __name__ == "__main__":
    command("eval", evaluate)
