"""What trained a run, in words: rates and schedule, as its configuration has them."""

from __future__ import annotations

from src.optimizers.schedule import Schedule
from src.reporting.record import Record


def rates(run: Record, of_row: bool = False) -> str:
    """Name the optimizers with their rates; empty where none is known.

    Args:
        run: what was trained.
        of_row: the first rate is another in each row, and is not said.
    """
    get = run.config.get
    if (adamw := get("optimizer.learning_rate")) is None:
        return ""
    if get("optimizer.name") != "muon":
        return "AdamW at the rate of each row" if of_row else f"AdamW {adamw:g}"
    muon = "at the rate of each row" if of_row else f"{get('optimizer.muon_learning_rate'):g}"
    return f"Muon {muon}, AdamW {adamw:g}"


def tuned_by(run: Record) -> str:
    """Name the optimizer whose rate a row looks for."""
    return "Muon's" if run.config.get("optimizer.name") == "muon" else "AdamW's"


def schedule(run: Record) -> str:
    """Say how the rates go; runs from before there was a choice have the paper's cosine."""
    get, steps = run.config.get, run.config.get("trainer.max_steps")
    shape = str(get("optimizer.schedule") or "cosine")
    words = []
    plan = Schedule(
        warmup_steps=get("optimizer.warmup_steps"),
        warmup_share=float(get("optimizer.warmup_share") or 0.0),
        warmup_most=int(get("optimizer.warmup_most") or 0),
    )
    if steps and (warmup := plan.warmup(int(steps))):
        words.append(f"{warmup:,} steps of warm-up")
    share = float(get("optimizer.decay_share") or 0.0)
    words.append(f"constant, then linear to 0 over the last {share:.0%} of the steps" if shape == "linear"
                 else "cosine decay to 0")  # fmt: skip
    return ", ".join(words)
