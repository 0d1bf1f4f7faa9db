"""What the dashboard of ``scripts.dashboard`` shows: panels over what runs log, and columns of the table of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

STEP, BYTES, SECONDS = "trainer/global_step", "train/bytes_seen", "train/seconds"
BEST = "val/bits_per_byte"  # by which runs are ranked: choices are made by the validation split, not by the test split
MOST_RUNS = 100  # lines of a chart
AXES = {STEP: "optimizer step", BYTES: "bytes seen", SECONDS: "seconds of training"}
FIGURES = (
    BEST,
    "test/bits_per_byte",
    "val/best_step",
    "train/seconds",
    "train/step_ms",
    "train/tokens_per_second",
    "train/mfu",
    "train/peak_memory_gib",
    "train/skipped_steps",
    "model/parameters",
    "data/label",
    "data/partial",
)
"""Final figures that are columns of the table of runs, as summary.json names them."""
SETTINGS = ("data.name", "attention.pattern", "attention.mode", "model.depth", "model.width", "precision.name", "seed")
"""Keys of the configuration that are columns where no sweep says which keys vary."""


def sections(by: str, factors: Sequence[str] = ()) -> list[Any]:
    """Build all sections (``ws.Section``), the first at the top.

    Args:
        by: a key of the configuration, such as ``attention.pattern``: a line for each of its values.
        factors: keys that a sweep varies, with few values; they have a section of their own where there are several.
    """
    several = len(factors) > 1
    validations = [_line(BEST, "validation", x, None if several else by) for x in AXES]
    return [
        *([_section("Choices", _choices(factors))] if several else []),
        _section("Bits per byte", validations + ([] if several else [_line(BEST, "validation")]) + _results(by)),
        _section("Loss", _loss(by)),
        _section("Speed", _speed(by)),
        _section("Memory", [
            _line("train/peak_memory_gib", "peak of one GPU, GiB", by=by),
            _line("train/peak_rss_gib", "peak of the process without a GPU, GiB", by=by),
        ]),
        _section("Samples", [wr.WeavePanelSummaryTable(table_name="samples/text"), _pictures("samples/pictures")]),
        _section("Attention", [_pictures("attention/learned"), _pictures("attention/pattern")]),
        _section("Runs", [wr.RunComparer(diff_only="split")]),
    ]  # fmt: skip


def columns(varied: Sequence[str]) -> list[str]:
    """Name the columns of the table of runs, left to right, as the web page does.

    Args:
        varied: keys that a sweep varies; none where it is not of one sweep.
    """
    settings = [f"config:{column(key)}.value" for key in varied] or [_of_config(key) for key in SETTINGS]
    return ["run:displayName", "run:state", *settings, *(f"summary:{name}" for name in FIGURES), "run:duration",
            "tags:__ALL__"]  # fmt: skip


def column(key: str) -> str:
    """Give the name that ``src.loggers.build.wandb_logger`` gives the column of a varied key."""
    return f"sweep/{key}".replace(".", "_")


def in_words(by: str) -> str:
    """Name a key of the configuration, or the column of a varied key, in the title of a chart."""
    return by.removesuffix(".pattern").removesuffix(".name").removeprefix("sweep/").replace("_", " ")


def _of_config(key: str) -> str:
    """A key of the configuration as the server has it: its first part holds a value, which may be a table."""
    first, _, rest = key.partition(".")
    return f"config:{first}.value" + (f".{rest}" if rest else "")


def _section(name: str, panels: list[Any]) -> Any:
    layout = ws.SectionLayoutSettings(columns=3, rows=max(1, -(-len(panels) // 3)))
    settings = ws.SectionPanelSettings(x_axis=STEP)
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout, panel_settings=settings)


def _line(y: str, title: str, x: str = STEP, by: str | None = None, **more: Any) -> Any:
    """A line for each run, or the mean and range of the runs that share a value of ``by``."""
    against = "" if x == STEP else f" against {AXES[x]}"
    if by is None:
        which = "each run"
    else:
        which = f"by {in_words(by)}"
        more |= {"groupby": wr.Config(by), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    named = f"{title}{against}, {which}"
    return wr.LinePlot(title=named, x=x, y=[y], title_x=AXES[x], title_y=y, max_runs_to_show=MOST_RUNS, **more)


def _choices(factors: Sequence[str]) -> list[Any]:
    """What each choice is worth: a row for all of them together, then a row for each."""
    keys = [column(key) for key in factors]
    figures = ((BEST, "validation"), ("train/step_ms", "ms a step"))
    together = [
        wr.ParallelCoordinatesPlot(
            title="each run, from its choices to its validation",
            columns=[wr.ParallelCoordinatesPlotColumn(wr.Config(key), in_words(key)) for key in keys]
            + [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(name), words) for name, words in reversed(figures)],
        ),
        wr.ParameterImportancePlot(with_respect_to=BEST),
        wr.ScatterPlot(
            title="validation against seconds of training",
            x=wr.SummaryMetric(SECONDS),
            y=wr.SummaryMetric(BEST),
        ),
    ]
    return together + [panel for key in keys for panel in _choice(key)]


def _choice(key: str) -> list[Any]:
    """One choice: its validations at equal bytes and at equal time, and what a step costs."""
    cost = wr.BarPlot(title=f"mean ms a step, by {in_words(key)}", metrics=["train/step_ms"], groupby=wr.Config(key),
                      groupby_aggfunc="mean", groupby_rangefunc="minmax")  # fmt: skip
    return [_line(BEST, "validation", BYTES, key), _line(BEST, "validation", SECONDS, key), cost]


def _results(by: str) -> list[Any]:
    return [
        wr.BarPlot(title="test", metrics=["test/bits_per_byte"], groupby=wr.Config(by), groupby_rangefunc="minmax"),
        wr.ScatterPlot(
            title="test against speed",
            x=wr.SummaryMetric("train/tokens_per_second"),
            y=wr.SummaryMetric("test/bits_per_byte"),
        ),
    ]


def _loss(by: str) -> list[Any]:
    return [
        _line("train/bits_per_byte", "training", by=by),
        _line("train/bits_per_byte", "training"),
        _line("train/bits_per_byte", "training", BYTES, by),
        _line("train/gradient_norm", "gradient before clipping", log_y=True),
        _line("train/learning_rate", "learning rate"),
        _line("train/skipped_steps", "steps that changed nothing"),
        _line("train/loss_scale", "fp16 loss scale", log_y=True),
    ]


def _speed(by: str) -> list[Any]:
    return [
        _line("train/tokens_per_second", "bytes a second", by=by),
        _line("train/step_ms", "ms a step", by=by),
        _line("train/mfu", "MFU, kept pairs", by=by),
        _line("train/mfu_dense_equivalent", "MFU, as if dense", by=by),
        _line("train/data_wait", "share of time that waits for data"),
    ]


def _pictures(name: str) -> Any:
    return wr.MediaBrowser(title=name, media_keys=[name], num_columns=2, mode="grid", grid_x_axis="step",
                           grid_y_axis="run")  # fmt: skip
