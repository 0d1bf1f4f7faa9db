"""The rows of ``scripts.bench.quality``: which there are, and their results as tables and drawings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from src.reporting.charts import Curve, Lines, Palette
from src.reporting.markdown import Files, plain, table
from src.reporting.tables import NONE, Table
from src.reporting.tables import plain as figure

Result = dict[str, Any]

BEGIN = "<!-- quality against time: written by scripts.bench.quality -->"
END = "<!-- end of quality against time -->"
EXPERIMENTS = {"text": "text_short", "pictures": "pictures_short"}
PEER = "x-transformers"
RATES = (0.0005, 0.001, 0.002)
SHORT = ("data.context=1024", "data.batch_size=12")  # as many bytes a step as one sequence of 12,288
OF_PEER = ("recipe=paper", "optimizer.schedule=linear", "optimizer.warmup_share=0.05", "optimizer.warmup_most=100")
OWN_KEYS = ("experiment", "recipe", "attention")
FIGURES = ("val", "val_half", "test", "test_half")
HUE_OF_PEER = "hue-3"  # the colours before it are those of dense, fixed and strided


@dataclass(frozen=True)
class Row:
    """What is trained.

    Args:
        kind: of its data, ``text`` or ``pictures``.
        name: in tables.
        peer: a model of x-transformers; else ours.
        hue: what its colour in drawings tells.
        style: what its dashes tell.
        keys: words of its configuration.
        rates: learning rates of AdamW that are tried in short runs; none: that of the configuration.
    """

    kind: str
    name: str
    peer: bool
    hue: str
    style: str
    keys: tuple[str, ...]
    rates: tuple[float, ...] = ()

    def job(self, words: Sequence[str], minutes: float, share: float) -> Result:
        """Say in plain values what is to be done; words behind ``--`` overrule those of the row."""
        keys = [f"experiment={EXPERIMENTS[self.kind]}", "logger=none", *self.keys, *words]
        about = {**asdict(self), "keys": keys, "rates": list(self.rates), "words": list(words)}
        return {**about, "minutes": minutes, "rate_share": share if self.rates else None}


def rows(kind: str, rates: Sequence[float] = RATES) -> list[Row]:
    """Lay out the rows of one kind of data."""
    modern, paper = ("recipe=modern",), ("recipe=paper",)

    def ours(pattern: str, recipe: tuple[str, ...], style: str, name: str = "") -> Row:
        keys = (f"attention={pattern}", *recipe)
        return Row(kind, f"ours, {pattern}{name}", False, pattern, style, keys)

    def peer(name: str, style: str, keys: tuple[str, ...] = ()) -> Row:
        return Row(kind, PEER + name, True, PEER, style, ("attention=dense", *OF_PEER, *keys), tuple(rates))

    whole, short, old = "whole context", "context 1,024", "recipe of the paper"
    patterns = [ours(pattern, modern, whole) for pattern in ("dense", "fixed", "strided")]
    if kind == "pictures":
        return [peer("", whole), *patterns, ours("strided", paper, old, ", paper's recipe")]
    return [
        peer(", context 1,024", short, SHORT),
        peer(", context 12,288", whole),
        ours("dense", modern + SHORT, short, ", context 1,024"),
        *patterns,
        ours("fixed", (*paper, "model.heads=8"), old, ", paper's recipe"),
    ]


def identity(job: Mapping[str, Any]) -> tuple[str, ...]:
    """Give what makes a result that of a job: started again, a row that is done with the same is not done again."""
    parts = ("kind", "name", "minutes", "keys", "rates", "rate_share", "val_bytes")
    return tuple(str(job.get(part)) for part in parts)


def newest(results: Iterable[Result]) -> list[Result]:
    """Keep the last result of each row on each card and data; a failed one goes where there is another."""
    found: dict[tuple[Any, ...], Result] = {}
    for result in results:
        place = (_card(result), result["label"]) if "val" in result else None
        found[(*identity(result), place)] = result
    done = {identity(result) for result in found.values() if "val" in result}
    return [result for result in found.values() if "val" in result or identity(result) not in done]


def report(results: Sequence[Result], folder: str) -> tuple[str, Mapping[str, bytes]]:
    """Write the results of any number of runs.

    Args:
        results: of all runs.
        folder: where the drawings will be, as the Markdown names it.

    Returns:
        The Markdown, between marks that ``put_into`` knows, and the drawings by file name.
    """
    files = Files(folder)
    groups = _titled(grouped(newest(results)))
    parts = [BEGIN, *(part for title, group in groups for part in _section(title, group, files))]
    return "\n\n".join([*parts, END]) + "\n", files.content


def grouped(results: Sequence[Result]) -> list[list[Result]]:
    """Put together what may stand in one table: the same data, minutes and card.

    A failed row that does not know its data or its card comes to the first table of its kind and minutes.
    """
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in sorted(results, key=lambda one: ("val" not in one, one["kind"] != "text", one["minutes"])):
        key = (result["kind"], result["minutes"], _card(result), result.get("label"))
        if "val" not in result:
            key = next((other for other in groups if other[:2] == key[:2]), key)
        groups.setdefault(key, []).append(result)
    return list(groups.values())


def ranked(group: Sequence[Result]) -> list[Result]:
    """Sort by validation, failed rows last."""
    return sorted(group, key=lambda one: one.get("val", math.inf))


def _card(result: Result) -> str:
    return str(result.get("made", {}).get("card", "a card unknown"))


def _titled(groups: Sequence[Sequence[Result]]) -> list[tuple[str, Sequence[Result]]]:
    """Give every group a title of its own: other data for as many minutes on the same card get a number."""
    found: dict[str, Sequence[Result]] = {}
    for group in groups:
        kind, minutes = group[0]["kind"].capitalize(), f"{group[0]['minutes']:g}"
        title = f"{kind}, {minutes} minute{'s' * (minutes != '1')} on one {_card(group[0])}"
        names = itertools.chain([title], (f"{title} ({number})" for number in itertools.count(2)))
        found[next(name for name in names if name not in found)] = _told_apart(group)
    return list(found.items())


def _told_apart(group: Sequence[Result]) -> list[Result]:
    """Add to the names of rows the words behind ``--`` that not all of them have."""
    words = [list(one.get("words", ())) for one in group]
    common = set.intersection(*map(set, words))
    own = [" ".join(word for word in each if word not in common) for each in words]
    return [{**one, "name": f"{one['name']} ({more})" if more else one["name"]}
            for one, more in zip(group, own, strict=True)]  # fmt: skip


def _section(title: str, group: Sequence[Result], files: Files) -> list[str]:
    parts = [f"## {plain(title)}: ours beside {PEER}", _origin(group), _of_data(group), table(_table(group))]
    curves = [
        Curve(one["name"], one["hue"], one["style"], tuple((seconds, bits) for seconds, _, bits in one["curve"]))
        for one in ranked(group)
        if one.get("curve")
    ]
    if curves:
        hues, styles = (list(dict.fromkeys(getattr(curve, what) for curve in curves)) for what in ("hue", "style"))
        palette = Palette(hues, styles)
        palette.classes = {**palette.classes, PEER: HUE_OF_PEER}
        name = f"{title}: validation against time"
        parts.append(files.chart(Lines(name, "seconds of training", "bits per byte", tuple(curves), 0.2), palette))
    return parts


def _origin(group: Sequence[Result]) -> str:
    """Name hardware, versions, dates, commits and commands of a table."""
    made = [one["made"] for one in group if "made" in one]
    packages = {name: [one.get("packages", {}).get(name) for one in made] for name in ("torch", "triton", PEER)}
    words = [*_each(one.get("card") for one in made)]
    words += [f"{name} {version}" for name, versions in packages.items() for version in _each(versions)]
    words += [*_each(one.get("date") for one in made)]
    words += [f"commit {commit}" for commit in _each(one.get("commit") for one in made)]
    commands = " and ".join(f"`{command}`" for command in _each(one.get("command") for one in group))
    return f"{plain(', '.join(words))}: {commands}"


def _each(values: Iterable[Any]) -> list[str]:
    return [str(value) for value in dict.fromkeys(values) if value]


def _of_data(group: Sequence[Result]) -> str:
    labels = _each(one.get("label") for one in group)
    words = "; ".join(labels) or "unknown"
    if any(one.get("partial") for one in group):
        words += ", partial" if "partial" not in words else ""
    elif not all(one.get("official") for one in group if "val" in one):
        words += ", a stand-in"
    return f"> **{plain(f'Data: {words}. Trained for minutes: NOT comparable with published figures.')}**"


def _table(group: Sequence[Result]) -> Table:
    columns = ["row", "rate", "parameters", "ms a step", "seconds", "MB seen", "validation",
               "validation, half overlap", "test", "test, half overlap"]  # fmt: skip
    found, ordered = Table(columns, words={1}), ranked(group)
    for one in ordered:
        if "val" not in one:
            found.rows.append([f"{one['name']}: failed, {one.get('error')}", *[NONE] * 9])
            continue
        cells = [f"{one['parameters']:,}", figure(one["ms"], 1), figure(one["seconds"], 0),
                 figure(one["bytes"] / 1e6, 1)]  # fmt: skip
        found.rows.append([one["name"], _rate(one), *cells, *(figure(one[name], 3) for name in FIGURES)])
    for column, name in enumerate(FIGURES, start=6):
        known = [one[name] for one in ordered if one.get(name) is not None]
        found.best |= {(i, column) for i, one in enumerate(ordered) if len(known) > 1 and one.get(name) == min(known)}
    found.notes += [f"{one['name']}: rates by validation in runs of {one['rate_share']:.0%} of the minutes: {tried}."
                    for one in ordered if (tried := _tried(one))]  # fmt: skip
    found.notes.append(
        "Bits per byte. All rows see equally many bytes a step; the steps are planned so that the learning rate "
        "reaches 0 when the minutes end. Compilation and validation do not count as training. Half overlap: windows "
        "that overlap by half, of which the second half alone is scored (text alone). "
        f"{PEER} is a Decoder with rotary positions and flash attention, compiled with CUDA graphs, trained by AdamW."
    )
    return found


def _rate(result: Result) -> str:
    adamw = f"AdamW {result['rate']:g}"
    return adamw if result.get("muon_rate") is None else f"Muon {result['muon_rate']:g}, {adamw}"


def _tried(result: Result) -> str:
    tried = result.get("rates_tried") or {}
    return ", ".join(f"{float(rate):g}: {'no figure' if bits is None else f'{bits:.3f}'}"
                     for rate, bits in tried.items())  # fmt: skip
