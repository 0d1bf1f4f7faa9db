"""One process of an evaluation: ``python -m src.jobs.evaluation REQUEST``, started by ``src.eval``, one a device.

Every byte of the split is scored once. The batches are the same on any number of devices and their sums are kept in
float64, so the figure does not depend on the devices.
"""

from __future__ import annotations

if __name__ == "__main__":
    import gc

    from src.system.signals import stop_quietly

    stop_quietly()
    gc.disable()  # while modules are imported, none of which can go: looking takes a third of a second

import functools
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from src.callbacks.lost_rank import LostRank
from src.callbacks.scoring import ScoreProgress, StopBetweenBatches
from src.checkpoint.file import check_model, read, usable_for
from src.errors import UserError, said_if_out_of_memory
from src.jobs import build, shared
from src.jobs.evaluation_request import Request
from src.jobs.tables import evaluation_table
from src.loggers.build import wandb_logger
from src.processes.ranks import end, end_with_supervisor, first_process, place
from src.runs.log import quiet_libraries
from src.runs.run import Run
from src.system.output import print_anything
from src.system.signals import raise_again
from src.training import build_model


class Row(NamedTuple):
    """One pass over the split.

    Attributes:
        min_context: least bytes of context, but for the first window.
        bits_per_byte: over the whole split.
        nbytes: bytes scored: all of the split.
        windows: windows read.
        seconds: by the wall clock.
    """

    min_context: int
    bits_per_byte: float
    nbytes: int
    windows: int
    seconds: float


def main(arguments: list[str]) -> int:
    """Run one process of an evaluation; returns the exit code."""
    print_anything()
    end_with_supervisor()
    code = 1
    try:
        raise_again()
        evaluate(Request.read(Path(arguments[0])))
        code = 0
    except UserError as error:
        code = shared.refused(error)
    except Exception as error:
        code = shared.failed(error, say_lost, traceback.print_exception)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        code = 128 + signal.SIGINT
        if first_process():
            print("stopped: rows that were finished are in summary.json", file=sys.stderr)
    finally:
        shared.finish_wandb(code)
    return code


@functools.cache  # once: whoever notices first
def say_lost() -> None:
    """Say that another rank is gone, and what to do."""
    print(f"rank {place().rank}: another rank is gone: run the same again", file=sys.stderr, flush=True)


def evaluate(request: Request) -> None:
    """Score the split once for each row, keep each row as soon as it is there, and show the table.

    Raises:
        UserError: what the user can mend: data, checkpoint, memory.
    """
    quiet_libraries()
    run, config = Run.find(request.run), request.config
    checkpoint = usable_for(run.checkpoint(request.checkpoint))
    scoring = Scoring(request, checkpoint)
    data, rows = scoring.data, list[Row]()
    figures: dict[str, Any] = {"data/label": data.label, "data/partial": data.partial}
    for min_context in request.min_context:
        rows.append(scoring.row(min_context))
        figures |= named_figures(checkpoint, request.split, rows[-1])
        if first_process():
            run.update_summary(figures)
    if first_process():
        unit = "bits per dim" if config.model.positions == "image" else "bits per byte"
        split = "test" if request.split == "test" else "validation"
        evaluation_table(f"{run.path.name}, {checkpoint.name}, {split} split of {data.label}", unit, rows)
        if config.logger.kind == "wandb" and run.has_wandb_id():
            log_to_wandb(request, run, figures, rows)


class Scoring:
    """A model and a split, which can be scored again and again.

    Args:
        request: what is asked for.
        checkpoint: a whole file of weights.

    Raises:
        UserError: data that cannot be had, or the checkpoint of another model.
    """

    def __init__(self, request: Request, checkpoint: Path) -> None:
        self.request = request
        self.data = shared.prepared_data(request.config)
        self.model = build_model.language_model(request.config, max_steps=1)
        check_model(checkpoint, self.model)
        self.model.load_state_dict(read(checkpoint)["state_dict"])
        # one trainer for all rows: at its end Lightning takes WORLD_SIZE out of the environment
        self.here, self.bar = place(), ScoreProgress()
        callbacks = [StopBetweenBatches(), LostRank(say_lost), *([self.bar] if request.config.trainer.progress else [])]
        self.data.trainer = self.trainer = build.trainer(
            request.config, Run.find(request.run), 1, 1, logger=False, enable_checkpointing=False, callbacks=callbacks
        )

    def row(self, min_context: int) -> Row:
        """Score the whole split once.

        Raises:
            UserError: a batch does not fit the memory of the device.
        """
        request, here = self.request, self.here
        self.bar.title = self._title(min_context)
        loader = self.data.score_dataloader(request.split, request.batch_size, min_context, here.rank, here.world)
        run_pass: Callable[..., Any] = self.trainer.test if request.split == "test" else self.trainer.validate
        started = time.monotonic()
        with said_if_out_of_memory(lambda: "the model alone does not fit the memory that the device has left"):
            run_pass(self.model, dataloaders=loader, verbose=False)
        seconds = time.monotonic() - started
        figure = self.model.figures[request.split]
        shared.check_count(figure.nbytes, self.data, request.split)
        return Row(min_context, figure.bits_per_byte, figure.nbytes, len(loader.dataset), seconds)  # type: ignore[arg-type]

    def _title(self, min_context: int) -> str:
        rows = self.request.min_context
        number = f" ({rows.index(min_context) + 1} of {len(rows)})" if len(rows) > 1 else ""
        return (f"Least context {min_context:,}" if any(rows) else "Scoring") + number


def named_figures(checkpoint: Path, split: str, row: Row) -> dict[str, Any]:
    """Name the figures of a row as summary.json and wandb have them; files other than the best one's stand apart."""
    which = checkpoint.stem.partition("-")[0]
    prefix = "" if which == "best" else f"{which}/"
    where = f"@min_context={row.min_context}" if row.min_context else ""
    return {f"{prefix}{split}/bits_per_byte{where}": row.bits_per_byte, f"{prefix}{split}/bytes": row.nbytes}


def log_to_wandb(request: Request, run: Run, figures: dict[str, Any], rows: list[Row]) -> None:
    """Add the figures to the summary of the run's own wandb run, and the table to its media."""
    import wandb

    experiment = wandb_logger(request.config, run, {}).experiment
    experiment.summary.update(figures)
    table = wandb.Table(columns=list(Row._fields), data=[list(row) for row in rows])
    experiment.log({f"evaluation/{request.checkpoint}-{request.split}": table})


if __name__ == "__main__":
    gc.enable()
    end(main(sys.argv[1:]))
