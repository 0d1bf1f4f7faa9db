"""What each choice is worth, against numbers worked out by hand; and the ranked table of runs."""

import pytest

from src.reporting.choices import effects_table, sentence
from src.reporting.effects import effects, factors, paired
from src.reporting.ranking import runs_table
from tests.reporting.test_compare import record

WORTH = {"modern": 0.0, "paper": 1.0, "dense": 0.0, "fixed": 0.1, "2": 0.2, "12": 0.0}
SECONDS = {"dense": 4.0, "fixed": 2.0}


def trained(attention, depth, recipe, seed="1", state="finished", noise=0.0, **summary):
    """Two validations: halfway 1 bit above the end, whose bits are the sum of what the choices are worth."""
    bits, ends = 2.0 + WORTH[attention] + WORTH[depth] + WORTH[recipe] + noise, SECONDS[attention]
    settings = {"attention": attention, "model.depth": depth, "recipe": recipe, "seed": seed}
    val = [(100, ends / 2, bits + 1.0), (200, ends, bits)]
    return record(attention, val, state, settings=settings, train__step_ms=ends * 10, **summary)


def grid(**changes):
    return [
        trained(attention, depth, recipe, **changes)
        for attention in ("fixed", "dense")
        for depth in ("12", "2")
        for recipe in ("modern", "paper")
    ]


def test_the_first_value_is_what_others_are_compared_with():
    assert factors(grid()) == {
        "attention": ["dense", "fixed"],
        "model.depth": ["2", "12"],
        "recipe": ["paper", "modern"],
    }


def test_the_effect_of_a_choice_is_that_of_runs_alike_in_all_else():
    found = {key: effect for key, (effect,) in effects(grid()).items()}
    recipe, depth, attention = found["recipe"], found["model.depth"], found["attention"]
    assert len(recipe.pairs) == 4
    assert recipe.at_bytes.bits.mean == pytest.approx(-1.0) and recipe.at_bytes.bits.spread == pytest.approx(0.0)
    assert (recipe.at_bytes.better, recipe.at_bytes.clear) == (4, True)
    assert depth.at_bytes.bits.mean == pytest.approx(-0.2)
    assert attention.at_bytes.bits.mean == pytest.approx(0.1) and attention.at_bytes.better == 0
    assert attention.at_seconds.bits.mean == pytest.approx(-0.9)  # dense was halfway when fixed had ended
    assert (attention.step_ms, depth.step_ms) == (pytest.approx(0.5), pytest.approx(1.0))


def test_a_run_that_failed_has_no_pair_where_it_did_not_come():
    runs = grid()
    failed = runs[0]
    failed.state, failed.val = "failed", failed.val[:1]
    assert effects(runs)["recipe"][0].at_bytes.bits.count == 3
    runs[1].val = []
    assert len(paired(runs, "recipe", "modern", "paper")) == 3


def test_seeds_are_paired_with_themselves():
    runs = [*grid(), *grid(seed="2", noise=0.5)]
    assert effects(runs)["recipe"][0].at_bytes.bits.count == 8
    assert effects(runs)["recipe"][0].at_bytes.bits.mean == pytest.approx(-1.0)


def test_the_table_says_which_is_best_and_by_how_much():
    table = effects_table(grid())
    text = [" | ".join(row) for row in table.rows]
    assert text[0].startswith("attention: dense is best at equal bytes (+0.100 with fixed, worse in 4 of 4 pairs); ")
    assert text[0].endswith("fixed is best at equal time (−0.900 against dense, better in 4 of 4 pairs)")
    assert text[-3] == (
        "recipe: modern is best at equal bytes (−1.000 against paper, better in 4 of 4 pairs) "
        "and at equal time (−1.000 against paper, better in 4 of 4 pairs)"
    )
    assert text[-2:] == [
        "paper | 3.150 |  |  |  |  | 30.0",
        "modern | 2.150 | −1.000 ± 0.000 | 4 of 4 | −1.000 ± 0.000 | 4 of 4 | 30.0 (1.00×)",
    ]
    assert {(len(text) - 1, 2), (len(text) - 1, 4)} <= table.best
    assert "MFU" not in table.columns  # no run has any


def test_pairs_that_disagree_are_no_clear_difference():
    runs = grid()
    for each in runs[::3]:
        each.val[-1] = type(each.val[-1])(200, each.val[-1].bits + 3.0, 200, each.val[-1].seconds)
    told = sentence(effects(runs)["recipe"])
    assert told.startswith("no clear difference at equal bytes (")


def test_attention_alone_is_left_to_table_2_and_a_search_has_no_pairs():
    kinds = [trained(attention, "2", "modern") for attention in ("dense", "fixed")]
    assert effects_table(kinds).rows == []
    search = [record(val=[(100, 1.0, 5.0)], settings={"rate": str(rate)}) for rate in range(20)]
    assert factors(search) == {} and effects_table(search).rows == []


def test_runs_are_ranked_with_what_tells_them_apart():
    runs = grid(train__mfu=0.25)
    runs[0].state, runs[0].val, runs[0].error = "failed", [], "it broke"
    table = runs_table(runs)
    assert table.columns == ["rank", "attention", "depth", "recipe", "val", "val at 2 s", "trained for", "ms a step",
                             "MFU", "steps", "state", "run"]  # fmt: skip
    first, last = table.rows[0], table.rows[-1]
    assert first == [
        "1",
        "dense",
        "12",
        "modern",
        "2.000",
        "3.000",
        "4 s",
        "40.0",
        "25.0%",
        "200",
        "finished",
        "r-dense",
    ]
    assert last[:4] == ["–", "fixed", "12", "modern"] and "failed" in last
    assert [row[4] for row in table.rows[:-1]] == sorted(row[4] for row in table.rows[:-1])
    assert (0, 4) in table.best and not any(column in table.words for _, column in table.best)
    assert table.notes[-1] == "r-fixed: it broke"


def test_runs_of_unequal_length_have_a_figure_at_equal_bytes():
    runs = grid()
    runs[0].val = runs[0].val[:1]
    assert "val at 100 bytes" in runs_table(runs).columns
