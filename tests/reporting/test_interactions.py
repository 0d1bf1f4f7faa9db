"""Choices that depend on each other, against numbers worked out by hand."""

import pytest

from src.reporting.choices import dependent, effects_table
from src.reporting.interactions import interactions
from src.reporting.record import Point
from tests.reporting.test_effects import grid, trained

DEEP, SHALLOW = "12", "2"


def with_bonus(bonus, noise=(0.0, 0.0)):
    """A grid in which the modern recipe is so much worse where the model is deep; the second seed is noisy."""
    return [
        trained(attention, depth, recipe, seed, noise=extra + (bonus if (depth, recipe) == (DEEP, "modern") else 0.0))
        for attention in ("dense", "fixed")
        for depth in (SHALLOW, DEEP)
        for recipe in ("paper", "modern")
        for seed, extra in zip("12", noise, strict=True)
    ]


def test_choices_that_add_up_do_not_depend_on_each_other():
    assert interactions(grid()) == []
    assert not any(note.startswith("It depends") for note in effects_table(grid()).notes)


def test_a_difference_that_changes_with_another_setting_is_told_once():
    (found,) = interactions(with_bonus(0.3))
    assert (found.key, found.value, found.against, found.other) == ("model.depth", DEEP, SHALLOW, "recipe")
    assert found.bits == {"paper": pytest.approx(-0.2), "modern": pytest.approx(0.1)}
    assert found.range == pytest.approx(0.3)


def test_it_is_a_sentence_below_the_table():
    told = "It depends: depth 12 against 2 is −0.200 with recipe paper, +0.100 with recipe modern (equal bytes)."
    assert dependent(with_bonus(0.3)) == [told]
    assert effects_table(with_bonus(0.3)).notes[0] == told


def test_what_is_smaller_than_the_noise_is_not_told():
    runs = with_bonus(0.3)
    assert interactions(runs)
    runs[0].val = [Point(p.step, p.bits - 0.4, p.nbytes, p.seconds) for p in runs[0].val]  # dense, 2, paper
    assert interactions(runs) == []


def test_what_is_smaller_than_a_figure_of_the_table_is_not_told():
    assert interactions(with_bonus(0.004)) == []


def test_a_single_pair_tells_nothing():
    runs = [run for run in with_bonus(0.3) if run.attention == "dense" and run.settings["seed"] == "1"]
    assert len(runs) == 4
    assert interactions(runs) == []
