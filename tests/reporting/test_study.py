"""Text and pictures apart, on a clock that only training moves: against numbers worked out by hand."""

import pytest

from src.reporting.clock import STEP_MS, Clock, clock, mean
from src.reporting.study import between, equal_time_steps, furthest, kind_of, on_clock, studies
from tests.reporting.made import BROKE, config, entry, run, sweep
from tests.reporting.test_compare import record

VAL = [(10, 99.0, 5.0), (20, 199.0, 4.0), (30, 299.0, 3.0)]  # seconds of start-up and validation in them


def logged(pattern, *each, state="finished", steps=30):
    """A run that logged each time of a step, after steps 10, 20, ..."""
    found = record(pattern, [(steps, 1.0, 3.0)], state)
    found.logged = {STEP_MS: [(10 * i, ms) for i, ms in enumerate(each, start=1)]}
    return found


def test_the_clock_is_steps_times_the_median_without_the_first_entry():
    found = logged("fixed", 900.0, 50.0, 52.0, 51.0, 400.0, 51.0)
    assert clock(found) == Clock(51.0, 51.0)
    assert clock(logged("fixed", 900.0)) == Clock(900.0, 900.0)
    assert clock(record(train__step_ms=7.0)) == Clock(7.0, 7.0)
    assert clock(record()) is None
    clocked = on_clock(found, "enwik8")
    assert [point.seconds for point in clocked.val] == [30 * 51.0 / 1000]
    assert (clocked.seconds, clocked.summary[STEP_MS], clocked.stands_for) == (1.53, 51.0, "enwik8")
    assert found.val[0].seconds == 1.0  # as it was
    assert on_clock(record(val=[(10, 1.0, 5.0)]), "enwik8").val[0].seconds is None


def test_steps_with_a_short_context_have_a_time_of_their_own():
    """The first 30 steps are short; the entry of step 40 has the second compilation. Losses do not matter."""
    found = logged("dense", 900.0, 20.0, 22.0, 400.0, 100.0, 104.0, 102.0)
    found.config = {"optimizer.short_context_steps": 30}
    own = clock(found)
    assert own == Clock(103.0, 21.0, 30)
    assert [own.seconds(step) for step in (0, 10, 30, 40)] == pytest.approx([0, 0.21, 0.63, 1.66])
    assert [own.steps(own.seconds(step)) for step in (1, 30, 47)] == pytest.approx([1, 30, 47])
    assert mean([own, Clock(105.0, 23.0, 30)]) == Clock(104.0, 22.0, 30)


def test_a_moment_between_two_validations_lies_on_the_line_between_them():
    found = between(record(val=[(100, 1.0, 5.0), (200, 3.0, 4.0)]), 1.5)
    assert [(p.nbytes, p.seconds, p.bits) for p in found.val] == [(100, 1.0, 5.0), (125, 1.5, 4.75), (200, 3.0, 4.0)]
    for at in (None, 0.5, 1.0, 3.0, 4.0):
        assert len(between(found, at).val) == 3


def test_equal_time_steps():
    runs = [
        logged("dense", 100.0),
        logged("dense", 120.0),
        logged("fixed", 44.0),
        logged("strided", 20.0, state="stopped"),
    ]
    assert equal_time_steps(runs) == {"fixed": 75}  # 30 * 110 / 44
    assert equal_time_steps(runs[2:]) == {}


def test_the_furthest_copy_of_a_run_counts(tmp_path):
    short, long = (
        record("dense", [(100, 1.0, 5.0)], "stopped"),
        record("dense", [(100, 1.0, 5.0), (200, 2.0, 4.0)], "stopped"),
    )
    done = record("dense", [(100, 1.0, 5.0)])
    assert furthest([short, long])[0].val == long.val
    assert furthest([long, short])[0].val == long.val
    assert furthest([long, done, short])[0].state == "finished"


def test_a_failure_is_in_the_sweep_s_file(tmp_path):
    folder = run(tmp_path / "t-fixed", config("fixed"), VAL)
    assert studies([folder])[0].runs[0].state == "stopped"
    (tmp_path / "sweep.json").write_text("damaged")
    assert studies([folder])[0].runs[0].state == "stopped"
    sweep(tmp_path, [entry(0, "t-fixed", "failed", {}, error=BROKE)])
    assert [(found.state, found.error) for found in studies([folder])[0].runs] == [("failed", BROKE)]


def test_kinds_and_groups(tmp_path):
    text = [
        run(tmp_path / f"t-{kind}", config(kind), VAL, ms, test=3.1) for kind, ms in (("dense", 100.0), ("fixed", 50.0))
    ]
    planned = config("fixed", trainer__max_steps=60, logger__columns={"sweep/length": "equal time"})
    text.append(run(tmp_path / "t-planned", planned, VAL, 50.0, test=3.0))
    picture = run(tmp_path / "p", config("strided", model__positions="image", data__name="cifar10"), VAL, 10.0)
    of_text, of_pictures = studies([*text, picture])
    assert [found.attention for found in of_text.runs] == ["dense", "fixed"]
    assert [found.path.name for found in of_text.planned] == ["t-planned"]
    (group,) = of_text.groups
    assert group.settings == {}
    assert group.budget.seconds == pytest.approx(1.5)  # 30 steps of 50 ms
    dense, fixed = group.rows
    assert (dense.at_seconds.mean, fixed.at_seconds.mean) == (pytest.approx(4.5), 3.0)
    assert (fixed.times_dense, fixed.paper.seconds) == (2.0, 0.55)
    assert kind_of(of_pictures.runs[0]) == "pictures"
    assert [found.kind for found in studies([])] == ["text", "pictures"]
