"""The table of what each choice of a sweep is worth: a sentence for each setting, a row for each of its values."""

from __future__ import annotations

from collections.abc import Sequence

from src.reporting.compare import estimate, named, setting_name
from src.reporting.effects import Difference, Effect, Figure, effects
from src.reporting.interactions import interactions
from src.reporting.record import ATTENTION, Record
from src.reporting.tables import NONE, Table, memory_gib, percent, plain, times, without_empty

MINUS = "−"
DEPENDENT = 3  # sentences about choices that depend on each other
COLUMNS = ("choice", "bits per byte", "at equal bytes", "better in", "at equal time", "better in", "ms a step", "GiB",
           "MFU")  # fmt: skip
EXPLAINED = (
    "Each row against the first of its choice: mean ± standard deviation of the difference in bits per byte of the "
    "validation split, over pairs of runs that are alike in everything else; below 0 is better, marked where all pairs "
    "agree. Equal bytes: what both of a pair were trained on. Equal time: when the faster of the two had ended; "
    "a pair whose slower run was not validated until then does not count. Other columns: means over these runs, and in "
    "brackets how many times the first row's."
)


def effects_table(runs: Sequence[Record]) -> Table:
    """Show what each value is worth; without rows where attention alone, or nothing, has pairs."""
    table, found = Table(list(COLUMNS)), effects(runs)
    if set(found) <= {ATTENTION}:  # table 2 shows that
        return table
    for key, compared in found.items():
        table.rows.append([f"{setting_name(key)}: {sentence(compared)}"])
        table.rows.append(_reference(compared))
        for effect in compared:
            for column, each in ((2, effect.at_bytes), (4, effect.at_seconds)):
                if each and each.clear and each.better:
                    table.best.add((len(table.rows), column))
            table.rows.append(_compared(effect))
    table.notes += [*dependent(runs), EXPLAINED]
    return without_empty(table)


def dependent(runs: Sequence[Record]) -> list[str]:
    """Say which differences at equal bytes depend on another setting most."""
    told = []
    for each in interactions(runs)[:DEPENDENT]:
        cases = ", ".join(f"{signed(bits)} with {named({each.other: value})}" for value, bits in each.bits.items())
        told.append(f"It depends: {named({each.key: each.value})} against {each.against} is {cases} (equal bytes).")
    return told


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
    evidence = f"{difference}{'better' if ahead else 'worse'} {count}"
    if not least.clear and abs(least.bits.mean) < (least.bits.spread or 0.0):
        return "no clear difference", f"{effect.value} {evidence}" if ahead else evidence
    return f"{effect.value if ahead else effect.against} is best", evidence


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


def _with_ratio(value: float | None, digits: int, ratio: float | None) -> str:
    return plain(value, digits) + ("" if ratio is None or value is None else f" ({times(ratio)})")


def _difference_cells(found: Difference | None) -> list[str]:
    if found is None:
        return [NONE, NONE]
    spread = "" if found.bits.spread is None else f" ± {found.bits.spread:.3f}"
    return [f"{signed(found.bits.mean)}{spread}", f"{found.better} of {found.bits.count}"]


def signed(value: float) -> str:
    """Write a difference with its sign."""
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"
