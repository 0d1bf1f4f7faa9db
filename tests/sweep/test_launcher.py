"""Jobs of a sweep are checked before the first one starts; many of them with a progress bar."""

import io

import pytest
from rich.console import Console

from src.sweep import launcher
from src.system import progress_bars


@pytest.mark.parametrize(("jobs", "terminal", "said"), [(20, True, True), (19, True, False), (20, False, False)])
def test_the_check_of_many_jobs_is_shown_on_a_terminal(jobs, terminal, said, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress_bars, "Console", lambda stderr: Console(file=screen, force_terminal=terminal, width=100)
    )
    overrides = [[f"seed={number}"] for number in range(jobs)]
    assert list(launcher.shown(overrides)) == overrides
    assert ("checking jobs" in screen.getvalue() and f"{jobs}/{jobs}" in screen.getvalue()) == said
    assert bool(screen.getvalue()) == said
