"""Training of one run, from its last checkpoint to its summary."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer

from src.attention.backends import resolve_backend, triton_problem
from src.callbacks.checkpoints import Checkpoints
from src.callbacks.figures import Figures
from src.checkpoint.file import METRICS_ROWS, METRICS_WAITING, check_model, entry, inspect, usable, usable_for
from src.checkpoint.shelf import all_rows, remove_drafts
from src.config.schema import Config
from src.data.base import ByteDataModule
from src.data.documents import ONE_TEXT
from src.errors import UserError, said_if_out_of_memory
from src.jobs import build
from src.jobs.machine import check_machine
from src.jobs.memory_advice import sentence
from src.jobs.shared import check_count, prepared_data
from src.jobs.tables import results_table
from src.loggers.build import loggers
from src.loggers.lookup import wandb_loggers
from src.models.residual_block import resolve_block_backend
from src.processes.ranks import first_process
from src.runs.provenance import append_provenance, data_changes
from src.runs.run import Run
from src.training import build_model
from src.training.build_model import optimizer_settings
from src.training.language_model import LanguageModel

log = logging.getLogger("src.job")


def train_run(run: Run) -> None:
    """Train, keep the best, score the test split with it, write summary.json.

    Raises:
        UserError: what the user can mend: data, keys, a finished run.
        Interrupted: a signal asked to stop; the state is saved.
    """
    config = run.config()
    check_machine(config)
    data = prepared_data(config)
    max_steps = config.trainer.max_steps or data.steps(config.trainer.epochs)
    checkpoint, resumed_step = newest_checkpoint(run)
    check_steps(run, resumed_step, max_steps)
    if run.summary().get("status") == "finished" and run.summary().get("train/steps", 0) >= max_steps:
        raise UserError(f"{run.path} is finished at step {max_steps}: raise trainer.max_steps to go on")
    facts = data.facts() if first_process() else {}  # they may hash a large file
    built = loggers(config, run, logged_before(checkpoint, resumed_step), facts)
    callbacks = build.callbacks(config, run, data)
    ranks = config.trainer.devices * config.trainer.num_nodes
    accumulate = data.micro_batches(ranks)
    trainer = build.trainer(config, run, max_steps, accumulate, logger=built, callbacks=callbacks)
    language_model = build_model.language_model(config, max_steps)
    if checkpoint is not None:
        check_model(checkpoint, language_model)
    if trainer.is_global_zero:
        remove_drafts(run.path)
        if changes := data_changes(run.provenance_file, facts):
            log.warning("the data is not what this run was trained on so far: %s", "; ".join(changes))
        append_provenance(run.provenance_file, facts)
        introduce(run, config, facts, language_model, trainer, resumed_step)
    with said_if_out_of_memory(lambda: sentence(config, run.path)):
        trainer.fit(language_model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    figures = training_figures(trainer)
    trainer.strategy.barrier()  # the first rank has waited for its files, the others have not
    best = usable_for(run.checkpoint("best"))
    trainer.test(language_model, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)
    if trainer.is_global_zero:
        figures |= best_figures(trainer)
        conclude(run, data, language_model, trainer, figures)


def check_steps(run: Run, reached: int, max_steps: int) -> None:
    """Refuse to end a run before the step that it has reached.

    Raises:
        UserError: it has gone further.
    """
    if reached > max_steps:
        raise UserError(
            f"{run.path} has reached step {reached:,}: raise trainer.max_steps above that to go on, found {max_steps:,}"
        )


def newest_checkpoint(run: Run) -> tuple[Path | None, int]:
    """Find the newest whole checkpoint and its optimizer step; None and 0 before the first one.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    candidates = all_rows(run.checkpoints)
    if not candidates:
        return None, 0
    newest = usable(candidates)
    return newest, inspect(newest)


def logged_before(checkpoint: Path | None, step: int) -> dict[str, Any]:
    """Say what of metrics.csv a checkpoint of ``step`` has seen, as ``MetricsCsv`` takes it."""
    if checkpoint is None:
        return {}
    rows, waiting = entry(checkpoint, METRICS_ROWS), entry(checkpoint, METRICS_WAITING)
    return {"after_step": step, "count": rows, "waiting": waiting or ()}


def introduce(
    run: Run, config: Config, facts: dict[str, Any], model: LanguageModel, trainer: Trainer, resumed_step: int
) -> None:
    """Say what is about to happen."""
    parameters = model.model.parameter_count()
    layer = model.model.pattern.layer(config.model.heads)
    device = trainer.strategy.root_device
    documents = build.document_bounds(config) != ONE_TEXT
    backend = resolve_backend(cast(Any, config.attention.backend), layer, device, documents)
    blocks = resolve_block_backend(cast(Any, config.model.backend), device, torch.float32)
    log.info("run directory %s", run.path)
    log.info("data %s", ", ".join(f"{key} {value}" for key, value in facts.items()))
    log.info("model with %s parameters, context %s", f"{parameters:,}", f"{config.data.context:,}")
    log.info("attention %s (%s), backend %s", config.attention.pattern, config.attention.mode, backend)
    if documents:
        lists = ", every pattern over lists of tiles" if backend in ("triton", "torch") else ""
        log.info("attention stays within documents%s", lists)
        log.info("FLOPs and train/mfu count the pattern as if there were one document: an upper bound")
    log.info("residual blocks %s, recompute %s", blocks, config.model.recompute)
    if device.type == "cuda" and (problem := triton_problem(device)):
        log.warning("no kernels of our own on this GPU: %s", problem)
    log.info("%s steps of %s bytes", f"{trainer.max_steps:,}", f"{config.data.batch_size * config.data.context:,}")
    what = f"{trainer.world_size} devices" if trainer.world_size > 1 else "1 device"
    log.info("%s (%s), precision %s", what, trainer.strategy.root_device.type, config.precision.name)
    optimizer = config.optimizer
    log.info("%s; %s steps of warm-up, then %s", *training_words(config, trainer.max_steps))
    if short := optimizer.short_context_steps:
        log.info("attention within pieces of %s bytes for the first %s steps", optimizer.short_context, f"{short:,}")
    if (optimizer.warmup_steps or 0) > trainer.max_steps:
        what = "optimizer.warmup_steps=%d is longer than the run of %d steps: the learning rate never reaches its peak"
        log.warning(what, optimizer.warmup_steps, trainer.max_steps)
    if resumed_step:
        log.info("going on from step %s", f"{resumed_step:,}")


def training_words(config: Config, max_steps: int) -> tuple[str, str, str]:
    """Say what trains the weights and how its rate goes."""
    keys, schedule = config.optimizer, optimizer_settings(config).schedule
    rates = f"AdamW at {keys.learning_rate}"
    if keys.name == "muon":
        rates = f"Muon at {keys.muon_learning_rate} for the blocks' matrices, {rates} for the rest"
    shape = f"linear over the last {keys.decay_share:.0%}" if keys.schedule == "linear" else "a cosine"
    return rates, f"{schedule.warmup(max_steps):,}", shape


def training_figures(trainer: Trainer) -> dict[str, Any]:
    """Collect the figures of training; before testing, which takes the callbacks back to the best checkpoint."""
    checkpoints = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]
    figures = next(c for c in trainer.callbacks if isinstance(c, Figures))  # type: ignore[attr-defined]
    return {
        "train/seconds": round(figures.whole_seconds(), 1),
        "train/steps": trainer.global_step,
        "train/checkpoint_seconds": round(checkpoints.seconds, 3),
        **{name: round(value, 4) for name, value in figures.whole().items()},
    }


def best_figures(trainer: Trainer) -> dict[str, Any]:
    """Say which model was tested; after testing, which takes the callbacks to where its checkpoint was."""
    checkpoints = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]
    return {"val/best_step": checkpoints.best_step, "val/bits_per_byte": checkpoints.best}


def conclude(run: Run, data: ByteDataModule, model: LanguageModel, trainer: Trainer, figures: dict[str, Any]) -> None:
    """Write the final figures and say where everything is."""
    test_figure, test_bytes = model.figures["test"]
    check_count(test_bytes, data, "test")
    summary = {
        **figures,
        "status": "finished",
        "data/label": data.label,
        "data/partial": data.partial,
        "model/parameters": model.model.parameter_count(),
        "test/bits_per_byte": test_figure,
        "test/bytes": test_bytes,
    }
    run.update_summary(summary)
    for logger in trainer.loggers:
        logger.log_metrics({"test/bits_per_byte": test_figure}, step=figures["train/steps"])
    for logger in wandb_loggers(trainer):
        cast(Any, logger).summarize(summary)  # it is a RunLogger, whose import takes a second
    results_table(run.path.name, summary)
    log.info("everything is in %s", run.path)
    if (run.path / "wandb").is_dir():
        log.info("look at it in the terminal with:  wandb leet %s", run.path / "wandb" / "latest-run")
