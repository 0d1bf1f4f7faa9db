"""Figures of a report, against numbers worked out by hand."""

from pathlib import Path

import pytest

from src.reporting.compare import best_within, common_budget, differing, estimate, grouped, named, settings_of, thinned
from src.reporting.paper import why_not_comparable
from src.reporting.record import Point, Record, flat
from tests.reporting.made import LABEL, config


def record(pattern="dense", val=(), state="finished", seconds=None, settings=None, **summary) -> Record:
    """Validations as (bytes, seconds, bits); the run trained on to ``seconds``."""
    found = Record(f"r-{pattern}", Path("nowhere"), state, settings or {"attention": pattern})
    found.config = flat(config(pattern))
    found.val = [Point(int(b), bits, b, s) for b, s, bits in val]
    if seconds is not None:
        found.train = [Point(1, 9.0, 1, seconds)]
    found.summary = {name.replace("__", "/"): value for name, value in summary.items()}
    return found


SLOW = [(100, 10.0, 5.0), (200, 20.0, 4.0), (300, 30.0, 3.5)]
FAST = [(100, 4.0, 5.5), (200, 8.0, 4.5), (300, 12.0, 3.8), (400, 16.0, 3.6)]


def test_equal_bytes_are_what_the_shortest_has_and_equal_time_ends_with_the_fastest():
    slow, fast = record("dense", SLOW), record("fixed", FAST)
    budget = common_budget([slow, fast])
    assert (budget.nbytes, budget.seconds) == (300, 16.0)
    assert best_within(slow, nbytes=300) == 3.5
    assert best_within(fast, nbytes=300) == 3.8
    assert best_within(slow, seconds=16.0) == 5.0  # its next validation came at 20 s
    assert best_within(fast, seconds=16.0) == 3.6


def test_the_best_validation_counts_not_the_last():
    assert best_within(record(val=[(100, 1.0, 3.0), (200, 2.0, 3.2)]), nbytes=200) == 3.0


def test_a_run_that_ended_later_than_its_last_validation_ended_then():
    assert common_budget([record(val=SLOW, seconds=33.0)]).seconds == 33.0


def test_unfinished_runs_do_not_shorten_the_budget_and_have_no_figure_before_they_reach_it():
    finished, failed = record("dense", SLOW), record("fixed", FAST[:1], state="failed")
    assert common_budget([finished, failed]).nbytes == 300
    assert best_within(failed, nbytes=300) is None
    assert best_within(failed, seconds=30.0) is None
    assert common_budget([failed]).nbytes == 100  # where none is finished, what there is decides
    assert common_budget([record()]).nbytes is None


def test_mean_and_sample_deviation_over_seeds():
    found = estimate([1.0, 2.0, None, 6.0])
    assert (found.mean, found.count) == (3.0, 3)
    assert found.spread == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert estimate([2.0]).spread is None
    assert estimate([None]) is None


def test_groups_differ_in_everything_but_attention_and_seed():
    runs = [
        record(kind, FAST, settings={"attention": kind, "model.depth": depth, "seed": seed}, train__step_ms=ms)
        for kind, ms in (("strided", 50.0), ("dense", 150.0))
        for depth in ("2", "4")
        for seed in ("1", "2")
    ]
    shallow, deep = grouped(runs)
    assert (named(shallow.settings), named(deep.settings)) == ("depth 2", "depth 4")
    dense, strided = shallow.rows  # in the paper's order
    assert (dense.attention, strided.attention) == ("dense", "strided")
    assert len(dense.runs) == dense.step_ms.count == 2
    assert (dense.times_dense, strided.times_dense) == (1.0, 3.0)
    assert strided.paper.seconds == 0.35
    assert strided.paper_times_dense == pytest.approx(1.31 / 0.35)


def test_no_ratio_without_a_dense_run():
    (group,) = grouped([record("fixed", FAST, train__step_ms=10.0)])
    assert group.rows[0].times_dense is None


def test_differing_keys_leave_out_where_a_run_is_kept():
    configs = [flat(config("dense", 2, paths__output_dir="a")), flat(config("fixed", 2, paths__output_dir="b")), {}]
    assert differing(configs) == {"attention.pattern": ["dense", "fixed", ""]}


def test_settings_of_runs_that_no_sweep_describes():
    wide = config("fixed", 4, attention__stride=64, model__row=64)
    found = settings_of([flat(config()), flat(wide)])
    assert found[0] == {"attention": "dense", "attention.stride": "32", "model.depth": "2"}  # the row is the stride


def test_named():
    assert named({"attention": "fixed", "model.depth": "4", "precision": "bf16"}) == "fixed, depth 4, bf16"
    assert named({"optimizer.learning_rate": "0.1"}) == "learning rate 0.1"


def test_thinning_averages_neighbours_and_keeps_the_end():
    points = [Point(i, float(i), i * 10, i / 2) for i in range(1, 8)]
    assert thinned(points, 7) == points
    assert [(p.step, p.bits) for p in thinned(points, 3)] == [(3, 2.0), (6, 5.0), (7, 7.0)]


def test_a_part_of_the_data_a_small_model_and_a_short_run_are_not_comparable():
    run = record(**{"data__partial": True, "data__label": LABEL})
    assert why_not_comparable("enwik8", [run]) == [
        f"partial data ({LABEL})",
        "another model (context 500 instead of 12,288, depth 2 instead of 30, width 64 instead of 512, "
        "heads 2 instead of 8)",
        "trained for 30 steps instead of 80 epochs",
    ]  # fmt: skip


def test_the_paper_s_own_run_is_comparable():
    run = record(data__partial=False, data__label="enwik8")
    run.config |= {"data.context": 12_288, "model.depth": 30, "model.width": 512, "model.heads": 8}
    run.config |= {"trainer.max_steps": None}
    assert why_not_comparable("enwik8", [run]) == []
    run.config["model.kv_heads"] = 2
    assert why_not_comparable("enwik8", [run]) == ["another model (kv_heads 2 instead of null)"]
    run.config["model.kv_heads"] = None
    run.state = "failed"
    assert why_not_comparable("enwik8", [run]) == ["not all runs are finished"]


def test_other_data_have_no_row_in_the_paper():
    run = record(data__label="quickstart", data__partial=False)
    run.config["data.name"] = "quickstart"
    assert "the paper's table has enwik8 and CIFAR-10" in why_not_comparable("quickstart", [run])[0]
    assert grouped([run])[0].rows[0].paper is None
