"""The progress bar: where a run is, its bits per byte, its speed, the time left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.text import Text

from src.callbacks.figures import Figures


class Progress(RichProgressBar):
    """One line for the whole run, counted in optimizer steps.

    It shows what ``Figures`` logged last and reads nothing from the device.
    """

    def __init__(self, leave: bool = True) -> None:
        super().__init__(refresh_rate=5, leave=leave)
        self._figures: Figures | None = None

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Description, bar, count, time and figures."""
        self._figures = next((c for c in trainer.callbacks if isinstance(c, Figures)), None)  # type: ignore[attr-defined]
        return [
            TextColumn("{task.description}"),
            BarColumn(bar_width=10, complete_style="cyan", finished_style="green"),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            _TimeColumn(),
            _FiguresColumn(self),
        ]

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Nothing: Lightning's would wait for the device at every batch. See ``line``."""
        return {}

    def line(self, task: Task) -> str:
        """Give the figures of the training bar; nothing for the bars of validation and test."""
        if self._figures is None or task.id != self.train_progress_bar_id:
            return ""
        return short_figures(self._figures.latest)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps, not Lightning's micro-batches, from where the run is: the time left is that of today's steps."""
        super().on_train_epoch_start(trainer, pl_module)
        if self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.reset(
                self.train_progress_bar_id, total=trainer.max_steps, completed=trainer.global_step, visible=True
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        self._update(self.train_progress_bar_id, trainer.global_step)

    def _get_train_description(self, current_epoch: int) -> str:
        """One bar for the whole run: epochs of Lightning mean nothing here."""
        return "Training  "


def short_figures(figures: Mapping[str, float]) -> str:
    """Put figures into a few words: ``1.032 bits/byte · 412 kB/s · 59.6 ms · MFU 41% · val 1.051``."""
    shown = []
    for name, unit, form in _SHORT:
        if (value := figures.get(name)) is not None:
            shown.append(form(value / unit))
    return " · ".join(shown)


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


_SHORT: tuple[tuple[str, float, Callable[[float], str]], ...] = (
    ("train/bits_per_byte", 1, lambda value: f"{value:.3f} bits/byte"),
    ("train/tokens_per_second", 1000, lambda value: f"{_three(value)} kB/s"),
    ("train/step_ms", 1, lambda value: f"{_three(value)} ms"),
    ("train/mfu", 1, lambda value: f"MFU {value:.0%}"),
    ("val/bits_per_byte", 1, lambda value: f"val {value:.3f}"),
    ("train/peak_memory_gib", 1, lambda value: f"{value:.1f} GiB"),
)


class _FiguresColumn(ProgressColumn):
    """What ``Progress.line`` says."""

    def __init__(self, bar: Progress) -> None:
        super().__init__()
        self.bar = bar

    def render(self, task: Task) -> Text:
        return Text(self.bar.line(task), overflow="ellipsis", no_wrap=True)


class _TimeColumn(ProgressColumn):
    """Time left, or the time that a finished task took."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"in {_clock(task.finished_time)}", style="dim")
        return Text(f"{_clock(task.time_remaining)} left", style="dim")


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))
