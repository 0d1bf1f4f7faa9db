"""What each choice of a sweep is worth: the mean difference of runs that differ in one setting and in nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from src.reporting.compare import SEED, Estimate, best_within, common_budget, estimate, in_order
from src.reporting.recipe_names import RECIPE, STANDARD
from src.reporting.record import ATTENTION, Record
from src.reporting.tables import NONE, Table, memory_gib, plain

MOST_VALUES = 8  # of a setting: more of them are a search, and have no pairs
MINUS = "−"
Figure = Callable[[Record], "float | None"]
Pair = tuple[Record, Record]


@dataclass(frozen=True)
class Difference:
    """Bits per byte of one value less those of another, over pairs of runs.

    Args:
        bits: mean over the pairs and its spread, bits per byte; below 0 the value is the better one.
        better: pairs in which it is the better one.
    """

    bits: Estimate
    better: int

    @property
    def clear(self) -> bool:
        """Whether all pairs, at least two, agree."""
        return self.bits.count > 1 and self.better in (0, self.bits.count)


@dataclass(frozen=True)
class Effect:
    """One value of a setting against the first one.

    Args:
        value: of the setting.
        against: the first value.
        pairs: a run with ``value`` and one with ``against``, alike in all other settings and the seed.
        at_bytes: after the bytes that both of a pair were trained on.
        at_seconds: when the faster one of a pair had ended.
        step_ms: how many times as long a step takes, geometric mean.
        memory: how many times the peak memory, geometric mean.
    """

    value: str
    against: str
    pairs: tuple[Pair, ...]
    at_bytes: Difference | None
    at_seconds: Difference | None
    step_ms: float | None
    memory: float | None


def setting_of(run: Record, key: str) -> str:
    """Give a run's value of a setting; a sweep that does not vary the attention has no setting of it."""
    return run.attention if key == ATTENTION else run.settings.get(key, "")


def factors(runs: Sequence[Record]) -> dict[str, list[str]]:
    """Name the settings that differ between runs, without the seed: each with its values, the one to compare with first.

    That is dense attention, the paper's recipe, the least number, or what the command line has first.
    """
    keys = dict.fromkeys([ATTENTION, *(key for run in runs for key in run.settings)])
    found = {key: list(dict.fromkeys(setting_of(run, key) for run in runs)) for key in keys if key != SEED}
    return {key: _sorted(key, values) for key, values in found.items() if 1 < len(values) <= MOST_VALUES}


def _sorted(key: str, values: list[str]) -> list[str]:
    if key == ATTENTION:
        return sorted(values, key=in_order)
    if key == RECIPE:
        return sorted(values, key=lambda value: value != STANDARD)
    try:
        return sorted(values, key=float)
    except ValueError:
        return values


def effects(runs: Sequence[Record]) -> dict[str, list[Effect]]:
    """Compare the values of each setting with its first; settings and values without a pair are left out."""
    found = {}
    for key, (first, *others) in factors(runs).items():
        compared = [effect for value in others if (effect := _effect(runs, key, value, first)) is not None]
        if compared:
            found[key] = compared
    return found


def _effect(runs: Sequence[Record], key: str, value: str, against: str) -> Effect | None:
    pairs = paired(runs, key, value, against)
    budgets = [common_budget(pair) for pair in pairs]
    at_bytes = [[best_within(run, nbytes=b.nbytes) for run in pair] for pair, b in zip(pairs, budgets, strict=True)]
    at_time = [[best_within(run, seconds=b.seconds) for run in pair] for pair, b in zip(pairs, budgets, strict=True)]
    of_bytes = _difference(at_bytes)
    return of_bytes and Effect(
        value, against, tuple(pairs), of_bytes, _difference(at_time),
        _ratio(pairs, lambda run: run.typical("train/step_ms")), _ratio(pairs, memory_gib),
    )  # fmt: skip


def paired(runs: Sequence[Record], key: str, value: str, against: str) -> list[Pair]:
    """Find the runs that differ in nothing but a setting."""

    def rest(run: Record) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((name, run.settings[name]) for name in run.settings if name != key)) + (
            () if key == ATTENTION else ((ATTENTION, run.attention),)
        )

    others = {rest(run): run for run in runs if setting_of(run, key) == against and run.val}
    mine = [run for run in runs if setting_of(run, key) == value and run.val]
    return [(run, others[rest(run)]) for run in mine if rest(run) in others]


def _difference(figures: Sequence[Sequence[float | None]]) -> Difference | None:
    known = [mine - other for mine, other in figures if mine is not None and other is not None]
    found = estimate(known)
    return found and Difference(found, sum(each < 0 for each in known))


def _ratio(pairs: Sequence[Pair], figure: Figure) -> float | None:
    known = [(mine, other) for a, b in pairs if (mine := figure(a)) and (other := figure(b))]
    return math.exp(statistics.fmean(math.log(mine / other) for mine, other in known)) if known else None


def effects_table(runs: Sequence[Record]) -> Table:
    """Show what each value is worth; without rows where attention alone, or nothing, has pairs."""
    columns = ["choice", "bits per byte", "at equal bytes", "better in", "at equal time", "better in", "ms a step", "GiB",
               "MFU"]  # fmt: skip
    table = Table(columns)
    found = effects(runs)
    if set(found) <= {ATTENTION}:
        return table
    for key, compared in found.items():
        table.rows.append([f"{setting_name(key)}: {sentence(compared)}"])
        table.rows.append(_reference(compared))
        for effect in compared:
            if effect.at_bytes and effect.at_bytes.clear and effect.at_bytes.better:
                table.best.add((len(table.rows), 2))
            if effect.at_seconds and effect.at_seconds.clear and effect.at_seconds.better:
                table.best.add((len(table.rows), 4))
            table.rows.append(_compared(effect))
    table.notes.append(
        "Each row against the first of its choice: mean ± standard deviation of the difference in bits per byte of the "
        "validation split, over pairs of runs that are alike in everything else; below 0 is better, marked where all "
        "pairs agree. Equal bytes: what both of a pair were trained on. Equal time: when the faster of the two had "
        "ended. Other columns: means over these runs, and in brackets how many times the first row's."
    )
    return without_empty(table)


def setting_name(key: str) -> str:
    """Write a setting's key in words, such as learning rate."""
    return key.rpartition(".")[2].replace("_", " ")


def sentence(compared: Sequence[Effect]) -> str:
    """Say which value is best at equal bytes and at equal time, with the evidence."""
    of_bytes = _best([(effect, effect.at_bytes) for effect in compared if effect.at_bytes])
    of_time = _best([(effect, effect.at_seconds) for effect in compared if effect.at_seconds])
    told = [(f"at equal {what}", *best) for what, best in (("bytes", of_bytes), ("time", of_time)) if best]
    if len(told) == 2 and told[0][1] == told[1][1]:
        (first, name, one), (second, _, other) = told
        return f"{name} {first} ({one}) and {second} ({other})"
    return "; ".join(f"{name} {where} ({evidence})" for where, name, evidence in told)


def _best(known: Sequence[tuple[Effect, Difference]]) -> tuple[str, str] | None:
    """Name the best value, and how far ahead it is of the first one; the first one itself of the second best."""
    if not known:
        return None
    effect, least = min(known, key=lambda each: each[1].bits.mean)
    ahead, pairs = least.bits.mean < 0, least.bits.count
    count = f"in {least.better if ahead else pairs - least.better} of {pairs} pairs"
    difference = f"{signed(least.bits.mean)}{f' against {effect.against}' if ahead else f' with {effect.value}'}, "
    if not least.clear and abs(least.bits.mean) < (least.bits.spread or math.inf):
        return "no clear difference", f"{difference}{'better' if ahead else 'worse'} {count}"
    return f"{effect.value if ahead else effect.against} is best", f"{difference}{'better' if ahead else 'worse'} {count}"


def _reference(compared: Sequence[Effect]) -> list[str]:
    runs = list({id(other): other for effect in compared for _, other in effect.pairs}.values())
    return [compared[0].against, *_mean_cells(runs, None, None, ["", "", "", ""])]


def _compared(effect: Effect) -> list[str]:
    differences = [*_difference_cells(effect.at_bytes), *_difference_cells(effect.at_seconds)]
    return [effect.value, *_mean_cells([mine for mine, _ in effect.pairs], effect.step_ms, effect.memory, differences)]


def _mean_cells(runs: Sequence[Record], step: float | None, memory: float | None, between: list[str]) -> list[str]:
    def mean(figure: Figure) -> float | None:
        found = estimate(map(figure, runs))
        return found.mean if found else None

    share = mean(lambda run: run.typical("train/mfu"))
    return [
        plain(mean(lambda run: run.best_val), 3), *between,
        _with_ratio(mean(lambda run: run.typical("train/step_ms")), 1, step), _with_ratio(mean(memory_gib), 2, memory),
        percent(share),
    ]  # fmt: skip


def percent(value: float | None) -> str:
    """Write a share."""
    return NONE if value is None else f"{100 * value:.1f}%"


def _with_ratio(value: float | None, digits: int, ratio: float | None) -> str:
    return plain(value, digits) + ("" if ratio is None or value is None else f" ({ratio:.2f}×)")


def _difference_cells(found: Difference | None) -> list[str]:
    if found is None:
        return [NONE, NONE]
    spread = "" if found.bits.spread is None else f" ± {found.bits.spread:.3f}"
    return [f"{signed(found.bits.mean)}{spread}", f"{found.better} of {found.bits.count}"]


def signed(value: float) -> str:
    """Write a difference with its sign."""
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def without_empty(table: Table) -> Table:
    """Leave out the columns in which no row has a figure."""
    wide = [row for row in table.rows if len(row) > 1]
    kept = [i for i in range(len(table.columns)) if i == 0 or any(row[i] not in ("", NONE) for row in wide)]
    place = {old: new for new, old in enumerate(kept)}
    return Table(
        [table.columns[i] for i in kept],
        [row if len(row) == 1 else [row[i] for i in kept] for row in table.rows],
        {place[i] for i in table.words if i in place},
        {(row, place[i]) for row, i in table.best if i in place},
        table.notes,
    )
