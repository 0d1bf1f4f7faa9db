"""Which recipe of conf/recipe/ a run was composed with, by the keys that the recipe sets.

A run's config.yaml has the keys and not the recipe's name, and an experiment may choose the recipe without a word on
the command line. So the keys tell, also those of old runs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from src.config.schema import CONF
from src.reporting.record import flat

RECIPE = "recipe"
OWN = "own"  # a run that has less than half of any recipe's keys
STANDARD = "paper"  # what keys are that a run lacks because they are newer: src/config/restore.py


@functools.cache
def _files() -> Mapping[str, Mapping[str, Any]]:
    """Read the files of conf/recipe/, by their names."""
    return {file.stem: yaml.safe_load(file.read_text()) for file in sorted((CONF / "recipe").glob("*.yaml"))}


@functools.cache
def recipes() -> Mapping[str, Mapping[str, Any]]:
    """Give the keys that each recipe sets itself, and the name of its optimizer."""
    found = {}
    for name, content in _files().items():
        chosen = {f"{group}.name": choice for group, choice in _choices(content)}
        found[name] = flat({key: value for key, value in content.items() if key != "defaults"}) | chosen
    return found


@functools.cache
def owned() -> frozenset[str]:
    """Name every key that a recipe sets, those of its optimizer's file among them."""
    keys = {key for recipe in recipes().values() for key in recipe}
    for content in _files().values():
        for group, choice in _choices(content):
            own = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text())
            keys |= {f"{group}.{key}" for key in flat(own)}
    return frozenset(keys)


def _choices(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give group and choice of a recipe's ``defaults``, such as optimizer and muon."""
    entries = [entry for entry in recipe.get("defaults", ()) if isinstance(entry, dict)]
    return [(key.rpartition("/")[2], str(choice)) for entry in entries for key, choice in entry.items()]


def recipe_of(config: Mapping[str, Any]) -> str:
    """Name the recipe whose keys a configuration has, or most of whose keys: the others were set one by one.

    Args:
        config: keys with dots and their values; empty for a run that has none, whose recipe is then "".
    """
    if not config:
        return ""
    standard = recipes().get(STANDARD, {})
    shares = {
        name: sum(config.get(key, standard.get(key)) == value for key, value in keys.items()) / max(1, len(keys))
        for name, keys in recipes().items()
    }
    best = max(shares, key=lambda name: shares[name], default=OWN)
    return best if shares.get(best, 0.0) > 0.5 else OWN


def by_recipe(configs: Sequence[Mapping[str, Any]], differing: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Put the recipe's name in the place of the keys that it explains.

    A key that differs between runs of one recipe was set by itself, and stays.

    Args:
        configs: of all runs.
        differing: the keys that differ, each with its value in every run.

    Returns:
        The same for the recipe, where there are several, and the keys that are left.
    """
    names = [recipe_of(config) for config in configs]
    if len(set(filter(None, names))) < 2:
        return dict(differing)
    told = explained(names, differing)
    return {RECIPE: names} | {key: values for key, values in differing.items() if key not in told}


def explained(names: Sequence[str], differing: Mapping[str, list[str]]) -> dict[str, dict[str, str]]:
    """Give the keys of recipes that are the same in all runs of one recipe: each with its value by recipe."""
    found = {}
    for key in owned() & set(differing):
        pairs = {(name, value) for name, value in zip(names, differing[key], strict=True) if name}
        if len(pairs) == len({name for name, _ in pairs}):
            found[key] = dict(pairs)
    return {key: found[key] for key in differing if key in found}
