"""Runs as ``scripts.paper.table2`` compares them: text and pictures apart, on the clock of ``clock.py``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.reporting.clock import STEP_MS, Clock, clock, mean
from src.reporting.compare import SEED, Group, common_budget, grouped, settings_of
from src.reporting.load import load
from src.reporting.peers import is_peer, named, stand_beside
from src.reporting.record import ATTENTION, Point, Record
from src.reporting.tuning import RATE, Place, Tuning, counts, place, tunings

KINDS = {"text": "enwik8", "pictures": "cifar10"}
"""What is trained on, and the data set of the paper's table 2 that it stands beside."""
LENGTH = "logger.columns.sweep/length"  # in the configuration of a run whose length was chosen for equal time
# What may differ between runs that are compared: where the data are, and how a step is cut up
ALIKE = ("data.path", "data.micro_batch", "data.eval_batch_size", "trainer.max_steps", "trainer.epochs")
RATES = ("optimizer.muon_learning_rate", "optimizer.learning_rate")  # differ where rows have their own


@dataclass(frozen=True)
class Study:
    """The runs on one kind of data.

    Args:
        kind: ``text`` or ``pictures``.
        runs: that were planned for equally many steps, and so equally many bytes.
        planned: that were planned for equal time: each attention's steps take as long as dense attention's.
        groups: ``runs``, those that differ in attention and seed alone together.
        tried: at rates that were not the best of their row.
        tunings: what each row tried that looked for a rate.
    """

    kind: str
    runs: tuple[Record, ...]
    planned: tuple[Record, ...]
    groups: tuple[Group, ...]
    tried: tuple[Record, ...] = ()
    tunings: Mapping[Place, Tuning] = field(default_factory=dict)

    def tuning(self, group: Group, attention: str) -> Tuning | None:
        """Give what a row of a group tried; None where it did not look for a rate."""
        return self.tunings.get(place(attention, group.settings))


def studies(folders: Sequence[Path]) -> list[Study]:
    """Read run directories and put those on text and those on pictures together; a kind without runs has none.

    Args:
        folders: run directories, also copies of the same run from several machines: the furthest counts.
    """
    runs = furthest([with_failure(run) for run in load(list(folders)).runs] if folders else [])
    return [_study(kind, [on_clock(named(run), data) for run in runs if kind_of(run) == kind])
            for kind, data in KINDS.items()]  # fmt: skip


def _study(kind: str, runs: Sequence[Record]) -> Study:
    """Tell the runs of one kind of data apart, and keep those that count."""
    ours, peers = ([run for run in runs if is_peer(run) is other] for other in (False, True))
    for run, settings in zip(ours, settings_of([run.config for run in ours]), strict=True):
        same = (*ALIKE, *(RATES if RATE in run.config else ()))
        kept = {key: value for key, value in settings.items() if key not in same}
        run.settings = {ATTENTION: run.attention, SEED: str(run.config.get(SEED)), **kept}
    stand_beside(peers, ours)
    found = tunings([run for run in runs if LENGTH not in run.config])
    tried = tuple(run for run in runs if not counts(run, found))
    counted = [run for run in runs if counts(run, found)]
    planned = tuple(run for run in counted if LENGTH in run.config)
    equal = tuple(between(run, common_budget(some).seconds) for some in alike(counted) for run in some)
    return Study(kind, equal, planned, tuple(grouped(equal)), tried, found)


def alike(runs: Sequence[Record]) -> list[list[Record]]:
    """Put the runs that were planned for equally many steps together by what else tells them apart."""
    return [
        [run for row in group.rows for run in row.runs]
        for group in grouped([run for run in runs if LENGTH not in run.config])
    ]


def kind_of(run: Record) -> str:
    """Say whether a run is on text or on pictures."""
    return "pictures" if run.config.get("model.positions") == "image" else "text"


def with_failure(run: Record) -> Record:
    """Take from the sweep.json beside a run whether it failed, and its sentence; a run itself knows of neither."""
    try:
        jobs = json.loads((run.path.parent / "sweep.json").read_text())["jobs"]
        failed = [job["error"] for job in jobs if job["state"] == "failed" and job["run"] == run.path.name]
    except (OSError, ValueError, KeyError, TypeError):
        return run
    return dataclasses.replace(run, state="failed", error=str(failed[0])) if failed else run


def furthest(runs: Sequence[Record]) -> list[Record]:
    """Keep of copies of a run, which have the same folder's name, the one that is furthest."""
    kept: dict[str, Record] = {}
    for run in runs:
        name = run.path.name
        if name not in kept or (run.state == "finished", run.step) > (kept[name].state == "finished", kept[name].step):
            kept[name] = dataclasses.replace(run, name=name)
    return list(kept.values())


def on_clock(run: Record, data: str) -> Record:
    """Give the run with the seconds of its points by its own clock, to stand beside ``data`` of the paper's table."""
    own = clock(run)

    def placed(points: Sequence[Point]) -> list[Point]:
        return [dataclasses.replace(p, seconds=None if own is None else own.seconds(p.step)) for p in points]

    summary = run.summary if own is None else {**run.summary, STEP_MS: own.ms}
    return dataclasses.replace(run, train=placed(run.train), val=placed(run.val), summary=summary, stands_for=data)


def between(run: Record, seconds: float | None) -> Record:
    """Add the validation that a run would have had at a moment between two of its own, on the line between them."""
    if seconds is None:
        return run
    for i in range(1, len(run.val)):
        before, after = run.val[i - 1], run.val[i]
        if before.seconds is None or after.seconds is None or not before.seconds < seconds < after.seconds:
            continue
        share = (seconds - before.seconds) / (after.seconds - before.seconds)
        nbytes = None if before.nbytes is None or after.nbytes is None else _mix(before.nbytes, after.nbytes, share)
        step = int(_mix(before.step, after.step, share))
        point = Point(step, _mix(before.bits, after.bits, share), nbytes, seconds)
        return dataclasses.replace(run, val=[*run.val[:i], point, *run.val[i:]])
    return run


def _mix(low: float, high: float, share: float) -> float:
    return low + share * (high - low)


def equal_time_steps(runs: Sequence[Record]) -> dict[str, int]:
    """Give the steps that take each attention as long as dense attention took: ``{"fixed": 1500, ...}``.

    Args:
        runs: on one kind of data, planned for equally many steps; means over seeds count.

    Returns:
        Empty where a finished run with dense attention is missing; dense attention itself is left out.
    """
    clocks: dict[str, list[Clock]] = {}
    for run in runs:
        if run.state == "finished" and (own := clock(run)):
            clocks.setdefault(run.attention, []).append(own)
    if "dense" not in clocks:
        return {}
    steps = max(run.step for run in runs if run.attention == "dense")
    seconds = mean(clocks.pop("dense")).seconds(steps)
    return {kind: max(1, round(mean(some).steps(seconds))) for kind, some in clocks.items()}
