"""Runs are named by their recipe, not by the keys that it sets."""

import pytest
import yaml

from src.config.schema import CONF
from src.reporting.compare import named, settings_of
from src.reporting.load import load
from src.reporting.recipe_names import OWN, owned, recipe_of, recipes
from src.reporting.record import flat
from src.reporting.tables import differences_table
from tests.reporting.made import config, run
from tests.reporting.test_compare import record


def composed(recipe, pattern="fixed", **changes):
    """A configuration with the keys of a recipe and its optimizer, as Hydra would compose it."""
    content = yaml.safe_load((CONF / "recipe" / f"{recipe}.yaml").read_text())
    optimizer = yaml.safe_load((CONF / "optimizer" / f"{recipes()[recipe]['optimizer.name']}.yaml").read_text())
    made = config(pattern, optimizer=optimizer)
    made["model"] |= content["model"]
    made["trainer"] |= content.get("trainer", {"clip": 1.0})  # of conf/trainer/default.yaml
    for key, value in changes.items():
        group, _, leaf = key.partition("__")
        made[group][leaf] = value
    return made


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (CONF / "recipe").glob("*.yaml")))
def test_each_recipe_of_conf_is_known_by_its_keys(recipe):
    assert recipe_of(flat(composed(recipe))) == recipe
    assert recipe_of(flat(composed(recipe, model__norm="another"))) == recipe  # one key set by itself
    assert set(recipes()[recipe]) <= owned()


def test_a_run_without_the_keys_is_the_paper_s_and_one_without_a_configuration_is_of_none():
    assert recipe_of(flat(config())) == "paper"
    assert recipe_of({}) == ""


def test_a_run_with_few_keys_of_any_recipe_is_of_none():
    others = {key: "another" for recipe in recipes().values() for key in recipe}
    assert recipe_of(others) == OWN


def test_single_runs_of_two_recipes_are_told_apart_by_the_recipe_alone():
    found = settings_of([flat(composed("modern")), flat(composed("paper"))])
    assert found == [{"recipe": "modern"}, {"recipe": "paper"}]
    assert named(found[0]) == "recipe modern"


def test_a_key_that_was_set_beside_the_recipe_stays():
    runs = [composed("modern"), composed("modern", model__qk_norm=None), composed("paper")]
    found = settings_of(list(map(flat, runs)))
    assert [named(settings) for settings in found] == [
        "recipe modern, qk norm 1.2", "recipe modern, qk norm null", "recipe paper, qk norm null"]  # fmt: skip


def test_runs_of_one_recipe_have_no_setting_of_it():
    found = settings_of([flat(composed("modern")), flat(composed("modern", "dense"))])
    assert found == [{"attention": "fixed"}, {"attention": "dense"}]


def test_single_runs_are_loaded_so(tmp_path):
    paths = [run(tmp_path / recipe, composed(recipe), [(10, 1.0, 5.0)]) for recipe in ("modern", "paper")]
    assert [found.settings for found in load(paths).runs] == [{"recipe": "modern"}, {"recipe": "paper"}]


def test_the_table_of_differences_has_the_recipe_and_a_note_of_its_keys():
    runs = [record(), record()]
    for each, recipe in zip(runs, ("modern", "paper"), strict=True):
        each.config = flat(composed(recipe))
    table = differences_table(runs)
    assert table.columns == ["run", "recipe"]
    assert [row[1] for row in table.rows] == ["modern", "paper"]
    assert "model.norm rms" in table.notes[0] and "optimizer.name muon" in table.notes[0]
    assert "model.norm layer" in table.notes[1] and table.notes[1].startswith("recipe paper: ")
