"""Results of ``scripts.paper.table2`` as Markdown with drawings: the paper's table 2 beside ours, with its limits."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.reporting import draw, recipe
from src.reporting.charts import Palette
from src.reporting.compare import ORDER, Group, Row, best_within, estimate, grouped, named
from src.reporting.content import facts
from src.reporting.load import Loaded
from src.reporting.markdown import Files, plain, table
from src.reporting.paper import TABLE2, TITLES
from src.reporting.peers import described as peer_note
from src.reporting.peers import is_peer
from src.reporting.ranking import runs_table
from src.reporting.record import Record
from src.reporting.study import KINDS, Study, studies
from src.reporting.tables import NONE, Table, comparable_notes, duration, number, times, volume
from src.reporting.tuning import RATE

NOT_RUN = "not yet run"
BEGIN, END = "<!-- table 2: written by scripts.paper.table2 -->", "<!-- end of table 2 -->"
OF_TIME = (
    "Time is training alone: a run's steps times the median time of a step (of its own for steps with a short "
    "context); start-up, compilation, validation and checkpoints are left out."
)


def results(folders: Sequence[Path], pictures: str) -> tuple[str, Mapping[str, bytes]]:
    """Write the results.

    Args:
        folders: run directories; none gives the tables with every figure marked as not yet run.
        pictures: the folder of the drawings, as the Markdown names it.

    Returns:
        The Markdown, between marks that ``put_into`` knows, and the drawings by file name.
    """
    files = Files(pictures)
    found = studies(folders)
    runs = [run for study in found for run in (*study.runs, *study.planned, *study.tried)]
    parts = [BEGIN, *(part for study in found for part in section(study, files))]
    if runs:
        parts += ["### What was run", *what_was_run(runs)]
    return "\n\n".join(filter(None, [*parts, END])) + "\n", files.content


def section(study: Study, files: Files) -> list[str]:
    """Write what there is on text, or on pictures."""
    title = study.kind.capitalize()
    if not study.runs:
        return [f"## {title}: {NOT_RUN}", table(table2(None, study.kind))]
    runs = list(study.runs)
    parts = [f"## {title}: {plain(data_of(runs))}", *warnings(runs)]
    for group in study.groups:
        planned = [run for run in study.planned if grouped([run])[0].settings == group.settings]
        equal_bytes = table2(group, study.kind)
        equal_bytes.notes += row_notes(study, group)
        parts += [described(group), table(equal_bytes), table(equal_time(group, planned))]
    palette, charts = draw.palette(runs), draw.line_charts(runs)
    for chart in charts[:3]:  # validation against time and bytes, training loss against time
        parts.append(files.chart(_titled(chart, title), Palette(palette.hues, palette.styles)))
    if study.planned:
        planned = [*(run for run in runs if run.attention == "dense"), *study.planned]
        for chart in draw.line_charts(planned)[:1]:
            parts.append(files.chart(_titled(chart, f"{title}, planned for equal time"), draw.palette(planned)))
    return parts


def _titled(chart: draw.Lines, before: str) -> draw.Lines:
    return draw.Lines(f"{before}: {chart.title.lower()}", chart.x, chart.y, chart.curves, chart.skipped)


def data_of(runs: Sequence[Record]) -> str:
    """Name the data by what the runs say; of unfinished ones the name of the data set is all that is known."""
    labels = dict.fromkeys(run.label for run in runs if run.label)
    partial = any(run.partial for run in runs)
    names = (Path(str(run.config.get("data.path") or run.data_name)).name for run in runs)
    text = "; ".join(labels) or ", ".join(dict.fromkeys(names))
    return f"{text} (part of the official set)" if partial and "partial" not in text else text


def warnings(runs: Sequence[Record]) -> list[str]:
    """Say what keeps figures from standing beside published ones or each other; name runs that are not finished."""
    notes = comparable_notes([run for run in runs if not is_peer(run)] or runs)[:-1]
    unfinished = [run for run in runs if run.state != "finished"]
    if unfinished:
        names = ", ".join(f"{run.name} (step {run.step:,})" for run in unfinished)
        notes.append(f"Not finished: {names}. Theirs are the figures so far.")
    machines = {", ".join(sorted(set(run.provenance.get("gpus") or ["no GPU"]))) for run in runs if run.provenance}
    if len(machines) > 1:
        notes.append(f"Runs of different machines ({'; '.join(sorted(machines))}): their times of a step and figures "
                     "at equal time are NOT comparable.")  # fmt: skip
    if any(run.label is None and run.partial for run in runs):
        notes.append("Partial data.")
    return [f"> **{plain(note)}**" for note in notes]


def described(group: Group) -> str:
    """Say what all runs of ours share in a group: model, batch, length, optimizer, how much was seen and scored."""
    runs = [run for row in group.rows for run in row.runs]
    ours = [run for run in runs if not is_peer(run)] or runs
    run = next((run for run in ours if run.state == "finished"), ours[0])
    get = run.config.get
    batch = int(get("data.batch_size") or 0) * int(get("data.context") or 0)
    words = [named(group.settings)] if group.settings else []
    depth = int(get("model.depth") or 0)
    shared = get("model.kv_heads")
    heads = f"{get('model.heads')} heads" + (f" ({shared} of keys and values)" if shared else "")
    words.append(f"{depth} block{'s' * (depth != 1)} of width {get('model.width')}, {heads}, "
                 f"context {get('data.context'):,}, dropout {get('model.dropout')}")  # fmt: skip
    if (parameters := run.final("model/parameters")) is not None:
        words.append(f"{parameters:,.0f} parameters")
    words.append(f"{get('trainer.max_steps') or run.step:,} steps of {batch:,} bytes")
    trained = recipe.rates(run, of_row=any(RATE in each.config for each in ours))
    words.append(", ".join(filter(None, (trained, recipe.schedule(run), str(get("precision.name"))))))
    if short := int(get("optimizer.short_context_steps") or 0):
        words.append(f"attention within pieces of {get('optimizer.short_context')} bytes for the first {short:,} steps")
    if group.budget.nbytes is not None:
        words.append(f"{volume(group.budget.nbytes)} trained on by each")
    if (scored := run.final("test/bytes")) is not None:
        words.append(f"test split of {scored:,.0f} bytes, each scored once")
    return plain("; ".join(words)) + "."


def row_notes(study: Study, group: Group) -> list[str]:
    """Say below a table at which rates its rows were tried, and what another library's model is."""
    notes = []
    for row in group.rows:
        if (tuning := study.tuning(group, row.attention)) is not None:
            tried = ", ".join(f"{rate}: {'no figure' if bits is None else f'{bits:.3f}'}"
                              for rate, bits in tuning.tried.items())  # fmt: skip
            edge = "; the best is at the edge of what was tried" if tuning.at_the_edge else ""
            what = f"{recipe.tuned_by(row.runs[0])} rate"
            notes.append(f"{row.attention}: validation at the end of seed {tuning.seed} by {what}: {tried}{edge}.")
        if is_peer(run := next((run for run in row.runs if run.state == "finished"), row.runs[0])):
            notes.append(peer_note(row.attention, run))
    return notes


def rows_of(group: Group | None) -> dict[str, Row | None]:
    """Give the row of each kind of attention of the paper's table, then others; None for one that has no runs."""
    rows = {row.attention: row for row in group.rows} if group else {}
    return {kind: rows.get(kind) for kind in dict.fromkeys([*ORDER, *rows])}


def table2(group: Group | None, kind: str) -> Table:
    """The paper's table 2 beside ours, after equally many bytes; without a group every figure of ours is missing."""
    data = KINDS[kind]
    theirs = [f"paper, {TITLES[data]}: bits per byte", "paper: ms a step (V100)", "paper: times dense"]
    columns = ["equal bytes", "rate", "seeds", "test bits per byte", "validation", "ms a step", "times dense", *theirs]
    found, dense = Table(columns, words={1}), TABLE2[data]["dense"]
    for attention, row in rows_of(group).items():
        ours = [NONE, NOT_RUN, *[NONE] * 4]
        if row is not None:
            finished = [run for run in row.runs if run.state == "finished"]
            ours = ["; ".join(dict.fromkeys(map(recipe.rates, row.runs))) or NONE,
                    f"{len(finished)} of {len(row.runs)}" if len(finished) < len(row.runs) else str(len(finished)),
                    number(row.test, 3), number(row.at_bytes, 3), number(row.step_ms, 1),
                    times(row.times_dense)]  # fmt: skip
        paper = TABLE2[data].get(attention)
        beside = [NONE] * 3
        if paper is not None:
            beside = [f"{paper.bits:.2f}", f"{1000 * paper.seconds:,.0f}", times(dense.seconds / paper.seconds)]
        found.rows.append([attention, *ours, *beside])
    peers = any(is_peer(run) for row in (group.rows if group else ()) for run in row.runs)
    same = "Rows of ours: same model" if peers else "Same model"
    found.notes.append(f"{same}, same data in the same order. Mean ± standard deviation where there are several "
                       "seeds. Milliseconds are of other machines than the paper's: compare the ratios.")  # fmt: skip
    return found


def equal_time(group: Group, planned: Sequence[Record]) -> Table:
    """Bits per byte after equally much time: cut off there, and of runs that were planned to end there."""
    found = Table(["equal time", "cut off: validation", "trained on", "planned: validation", "planned: test", "steps",
                   "trained on"])  # fmt: skip
    for attention, row in rows_of(group).items():
        cut = [NOT_RUN, NONE] if row is None else [number(row.at_seconds, 3), _seen_then(row, group.budget.seconds)]
        mine = [run for run in planned if run.attention == attention and run.state == "finished"]
        if attention == "dense" and row is not None:
            mine = [run for run in row.runs if run.state == "finished"]
        found.rows.append([attention, *cut, *_planned(mine)])
    spent = NONE if group.budget.seconds is None else duration(group.budget.seconds)
    found.notes.append(
        f"Cut off: validation after {spent}, when the fastest had ended; between two validations a line is drawn. The "
        "slower ones are then in the middle of their schedule, at a high learning rate, and look worse than they are. "
        "Planned: each row has as many steps as fit into the time of dense attention, and its schedule ends "
        f"there. {OF_TIME}"
    )
    return found


def _planned(runs: Sequence[Record]) -> list[str]:
    if not runs:
        return [NOT_RUN, *[NONE] * 3]
    steps = max(run.step for run in runs)
    seen = max((run.val[-1].nbytes or 0.0 for run in runs if run.val), default=0.0)
    val, test = (estimate(values) for values in (
        [run.best_val for run in runs], [run.final("test/bits_per_byte") for run in runs]))  # fmt: skip
    return [number(val, 3), number(test, 3), f"{steps:,}", volume(seen)]


def _seen_then(row: Row, seconds: float | None) -> str:
    """Bytes that an attention had seen at a moment, mean over seeds."""
    seen = []
    for run in row.runs:
        last = run.val[-1] if run.val else None
        if seconds is None or last is None or not last.seconds or best_within(run, seconds=seconds) is None:
            continue
        seen.append((last.nbytes or 0.0) * min(1.0, seconds / last.seconds))
    return volume(statistics.fmean(seen)) if seen else NONE


def what_was_run(runs: Sequence[Record]) -> list[str]:
    """Name machine, versions and commit, and list the runs with their commands."""
    known = facts(Loaded("", list(runs)))
    listed = [f"- {name}: {plain(value)}" for name, value in known if name != "command"]
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d")
    return ["\n".join([*listed, f"- written on: {made}"]), table(runs_table(runs))]
