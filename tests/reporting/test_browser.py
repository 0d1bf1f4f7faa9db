"""The page in a real headless browser: nothing overflows on a phone, nothing is asked for, nothing is wrong."""

import pytest

from src.reporting.content import report
from src.reporting.load import load
from src.reporting.page import page
from tests.browser import CHROMIUM, visit
from tests.reporting.made import every_state, four_settings

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A sweep in all states, with a name that no line can break."""
    folder = every_state(tmp_path_factory.mktemp("sweeps") / ("s" * 120))
    found = load([folder])
    found.command = [*found.command, "x=" + "y" * 300]
    path = folder / "report.html"
    path.write_text(page(report(found)))
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_fits_and_asks_for_nothing(file, width, dark):
    seen = visit(file, width, dark=dark)
    assert seen.wide == width
    assert seen.said == seen.asked == seen.failed == []
    assert {"Table 2: kinds of attention", "Loss", "Speed and memory", "Runs"} <= set(seen.shown)
    assert seen.picture.startswith(b"\x89PNG")


@pytest.mark.parametrize(("width", "shown"), [(320, "narrow"), (768, "middle"), (1280, "full")])
def test_panels_fit_and_one_drawing_of_each_is_shown(tmp_path, width, shown):
    file = tmp_path / "report.html"
    file.write_text(page(report(load([four_settings(tmp_path / "s")]))))
    seen = visit(file, width)
    assert seen.wide == width
    assert seen.said == []
    assert file.read_text().count(f'<div class="{shown}"') >= 4
    assert {"What each choice is worth", "Runs"} <= set(seen.shown)
