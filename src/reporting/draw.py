"""Which charts a report has: losses by step, bytes and time, speed, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from src.reporting.axes import unit_of_bytes, unit_of_seconds
from src.reporting.charts import OTHER_HUES, Bars, Curve, Lines, Palette
from src.reporting.compare import SEED, Group, estimate, in_order, named, thinned, varied
from src.reporting.recipe_names import RECIPE
from src.reporting.record import ATTENTION, Point, Record
from src.reporting.tables import memory_gib

MOST_POINTS = 40  # of a training curve: neighbours are averaged, or a dozen curves would hide each other
MOST_VALIDATIONS = 200  # the same of validations, which are not noisy
MOST_DASHES = 4  # values of a setting that dashes tell beside panels
MOST_PANELS = 8
FIRST = 0.1  # share of a training curve that may lie above the chart
FIRST_VALIDATIONS = 0.2  # the same of validations
OF_CURVES = (
    "Seconds of training leave validation and samples out. A point of a training curve is the mean of neighbouring log "
    "entries."
)


@dataclass(frozen=True)
class Look:
    """Which settings the colours, the dashes and the panels of charts tell; seeds look alike.

    Args:
        hue: the attention, or where all have the same the first setting that has a few values.
        panel: those that are told by the panels, side by side.
    """

    hue: str
    panel: tuple[str, ...] = ()

    def hue_of(self, run: Record) -> str:
        """What a run's colour tells."""
        return run.attention if self.hue == ATTENTION else named({self.hue: run.settings.get(self.hue, "?")})

    def style_of(self, run: Record) -> str:
        """What a run's dashes tell: what neither its colour nor its panel does."""
        return named(run.settings, without=(ATTENTION, SEED, self.hue, *self.panel))

    def panel_of(self, run: Record) -> str:
        """What a run's panel tells."""
        return named({key: run.settings[key] for key in self.panel if key in run.settings})


def look(runs: Sequence[Record]) -> Look:
    """Choose what colours, dashes and panels tell.

    Where the colour leaves several settings to tell, the dashes tell one of them, the recipe if it is there, and the
    others have panels.
    """
    several = {key: count for key, count in varied(runs).items() if key != SEED}
    hue = ATTENTION
    if len({run.attention for run in runs}) == 1:
        hue = next((key for key, count in several.items() if count <= OTHER_HUES), ATTENTION)
    left = sorted((key for key in several if key != hue), key=lambda key: key != RECIPE)
    dashes = next((key for key in left if several[key] <= MOST_DASHES), None)
    panel = Look(hue, tuple(key for key in several if key not in (hue, dashes)))
    return panel if 1 < len(set(map(panel.panel_of, runs))) <= MOST_PANELS and dashes else Look(hue)


def palette(runs: Sequence[Record]) -> Palette:
    """Choose colours and dashes for a report."""
    its = look(runs)
    hues = list(dict.fromkeys(map(its.hue_of, runs)))
    return Palette(
        sorted(hues, key=in_order) if its.hue == ATTENTION else hues, list(dict.fromkeys(map(its.style_of, runs)))
    )


def line_charts(runs: Sequence[Record]) -> list[Lines]:
    """Draw the losses of all runs that have any; a chart without a curve is left out."""
    seen = [p.nbytes for run in runs for p in (*run.val, *run.train) if p.nbytes is not None]
    spent = [p.seconds for run in runs for p in (*run.val, *run.train) if p.seconds is not None]
    of_bytes, of_seconds = unit_of_bytes(max(seen, default=0)), unit_of_seconds(max(spent, default=0))
    time, data = f"{of_seconds.name} of training", f"{of_bytes.name} trained on"

    def seconds(p: Point) -> float | None:
        return None if p.seconds is None else p.seconds / of_seconds.size

    def nbytes(p: Point) -> float | None:
        return None if p.nbytes is None else p.nbytes / of_bytes.size

    charts = [
        _lines(runs, "Validation against time", time, _val, seconds, FIRST_VALIDATIONS),
        _lines(runs, "Validation against data", data, _val, nbytes, FIRST_VALIDATIONS),
        _lines(runs, "Training loss against time", time, _train, seconds, FIRST),
        _lines(runs, "Training loss by step", "optimizer steps", _train, lambda p: p.step, FIRST),
    ]
    return [chart for chart in charts if chart.curves]


def _train(run: Record) -> list[Point]:
    return thinned(run.train, MOST_POINTS)


def _val(run: Record) -> list[Point]:
    return thinned(run.val, MOST_VALIDATIONS)


def _lines(
    runs: Sequence[Record],
    title: str,
    x: str,
    points: Callable[[Record], list[Point]],
    place: Callable[[Point], float | None],
    skipped: float,
) -> Lines:
    its, curves = look(runs), []
    for run in runs:
        at = tuple((where, p.bits) for p in points(run) if (where := place(p)) is not None)
        if at:
            curves.append(Curve(run.name, its.hue_of(run), its.style_of(run), at, its.panel_of(run)))
    return Lines(title, x, "bits per byte", tuple(curves), skipped)


def bar_charts(groups: Sequence[Group]) -> list[Bars]:
    """Draw speed and memory, the mean over seeds; a chart without a bar is left out."""
    runs = [run for group in groups for row in group.rows for run in row.runs]
    gpu = any(run.typical("train/peak_memory_gib") is not None for run in runs)
    memory = "Peak memory of a GPU" if gpu else "Peak memory of the process"
    charts = [
        _bars(groups, "Speed", "kB/s", lambda run: _thousandth(run.typical("train/tokens_per_second")), "{:,.1f} kB/s"),
        _bars(groups, memory, "GiB", memory_gib, "{:,.2f} GiB"),
    ]
    return [chart for chart in charts if chart.groups]


def _bars(groups: Sequence[Group], title: str, unit: str, value: Callable[[Record], float | None], shape: str) -> Bars:
    found = []
    for group in groups:
        means = ((row.attention, estimate(value(run) for run in row.runs)) for row in group.rows)
        bars = tuple((kind, mean.mean, shape.format(mean.mean)) for kind, mean in means if mean is not None)
        if bars:
            found.append((named(group.settings), bars))
    return Bars(title, unit, tuple(found))


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1000
