"""Axes with round numbers."""

import pytest

from src.reporting.axes import axis, unit_of_bytes, unit_of_seconds, window


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, ["0", "20", "40", "60", "80", "100"]),
        (3.1, 5.4, ["3.5", "4.0", "4.5", "5.0"]),
        (0.98, 1.02, ["0.98", "0.99", "1.00", "1.01", "1.02"]),
        (0, 1_000_000, ["0", "200,000", "400,000", "600,000", "800,000", "1,000,000"]),
    ],
)
def test_ticks_are_round_and_within(low, high, ticks):
    found = axis(low, high)
    assert [found.text(tick) for tick in found.ticks] == ticks
    assert all(0 <= found.place(tick) <= 1.0001 for tick in found.ticks)


def test_a_single_value_has_an_axis():
    assert axis(3.0, 3.0).place(3.0) == 0.5
    assert axis(0.0, 0.0).ticks


def test_units():
    assert [unit_of_bytes(n).name for n in (900, 5e3, 3e6, 4e9)] == ["bytes", "kB", "MB", "GB"]
    assert [unit_of_seconds(s).name for s in (90, 150, 8000, 3e5)] == ["seconds", "minutes", "hours", "days"]


def test_the_first_points_of_a_curve_may_lie_above():
    low, high = window([[8.0, 3.0, 2.9, 2.8, 2.7, 2.6, 2.5, 2.4, 2.3, 2.0]], skipped=0.1)
    assert (low, high) == (pytest.approx(1.94), pytest.approx(3.06))
    assert window([[2.0]])[0] < 2.0 < window([[2.0]])[1]
