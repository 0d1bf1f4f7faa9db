"""One job: ``python -m src.job RUN_DIR`` trains what RUN_DIR/config.yaml says, from the last checkpoint on.

Every way to start training ends here: a single run, each job of a sweep, each rank of several devices, a resumed run.
"""

from __future__ import annotations

if __name__ == "__main__":
    import gc

    from src.system.signals import stop_quietly

    stop_quietly()
    gc.disable()  # while modules are imported, none of which can go: looking takes a third of a second

import logging
import signal
import sys

from src.callbacks.stop_signal import Interrupted
from src.config.command_line import say_error
from src.errors import UserError
from src.jobs import shared
from src.jobs.machine import check_machine
from src.jobs.training import train_run
from src.loggers.wandb_agent import end_for_agent
from src.processes.ranks import end, end_with_supervisor, first_process, place, say_lost, stands_for_job, supervise
from src.runs import lock
from src.runs.log import set_up_logging
from src.runs.run import Run
from src.system import signals
from src.system.output import print_anything, understand_utf8

log = logging.getLogger("src.job")  # by name: run as a module, __name__ is "__main__"


def main(arguments: list[str]) -> int:
    """Run the job of one run directory; returns the exit code."""
    print_anything()
    if len(arguments) != 1:
        say_error(UserError("src.job takes one run directory: start runs with python -m src.train"))
        return 2
    try:
        run = Run.find(arguments[0])
        if stands_for_job():
            lock.take(run.path)
    except UserError as error:
        say_error(error)
        return 2
    end_with_supervisor()
    if (code := started_ranks(run)) is not None:
        return code
    code = 1
    try:
        signals.raise_again()
        set_up_logging(run.path / "train.log")
        train_run(run)
        code = 0
    except UserError as error:
        code = shared.refused(error)
        if first_process():
            run.discard_if_unused()
    except Interrupted as interrupted:
        code = 128 + interrupted.signum
        log.info("stopped by %s; go on with:  python -m src.train resume=%s", interrupted, run.path)
    except (KeyboardInterrupt, SystemExit):  # before or after training; Lightning turns the first into the second
        code = 128 + signal.SIGINT
        log.info("stopped; start again with:  python -m src.train resume=%s", run.path)
    except Exception as error:
        code = failed(run, error)
    finally:
        shared.finish_wandb(code)
    return code


def failed(run: Run, error: Exception) -> int:
    """Say why the job failed and how it goes on, and give its exit code."""
    unknown = "the job failed; its state is in %s"
    code = shared.failed(error, lambda: say_lost(run.path), lambda found: log.error(unknown, run.path, exc_info=found))
    if code == 2 and first_process():
        run.discard_if_unused()
        if run.last_checkpoint is not None:
            log.info("go on with:  python -m src.train resume=%s", run.path)
    return code


def started_ranks(run: Run) -> int | None:
    """Run a job of several devices as so many processes, and give the exit code; None where this process does the work.

    Ranks that torchrun, srun or this function started do it, and so does the one process of a single device.
    """
    if place().launcher != "none":
        return None
    try:
        settings = run.config().trainer
        if settings.devices * settings.num_nodes == 1:
            return None
        check_machine(run.config())
    except UserError as error:
        say_error(error)
        return 2
    job = [sys.executable, "-m", "src.job", str(run.path)]
    return supervise(job, settings.devices, settings.num_nodes, run.path / "train.log")


if __name__ == "__main__":
    gc.enable()
    understand_utf8()
    exit_code = main(sys.argv[1:])
    end_for_agent(exit_code)
    end(exit_code)
