"""Every experiment file trains as it did: the same bits twice on one machine, the stored losses on any."""

import functools

import pytest

from src.config.command_line import CONF
from tests.golden import EXPERIMENTS, TOLERANCE, greatest_difference, losses, make_data, stored

SLOW = ("imagenet64", "imagenet64-paper", "cifar10", "long_1m")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The losses of an experiment; trained once, however many tests ask."""
    return functools.cache(lambda experiment: losses(experiment, data, tmp_path_factory.mktemp("runs")))


def test_no_experiment_is_forgotten():
    assert {name.partition("-")[0] for name in EXPERIMENTS} == {
        path.stem for path in (CONF / "experiment").glob("*.yaml")
    }


@pytest.mark.parametrize(
    "experiment", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in EXPERIMENTS]
)
def test_losses_are_those_that_are_stored(trained, experiment):
    first, golden = trained(experiment), stored(experiment)
    assert golden["changes"] == list(EXPERIMENTS[experiment])
    assert greatest_difference(first, golden) <= TOLERANCE
    assert first["train"][-1] < first["train"][0]


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(name, marks=() if name in ("enwik8-paper", "pictures_short") else pytest.mark.slow)
        for name in EXPERIMENTS
    ],
)
def test_losses_are_the_same_twice_to_the_last_bit(trained, data, tmp_path, experiment):
    assert trained(experiment) == losses(experiment, data, tmp_path)


@pytest.mark.parametrize(
    "mistake",
    ["seed=2", "optimizer.beta2=0.96", "optimizer.warmup_steps=5", "model.dropout=0.39", "attention.summary=8"],
)
def test_a_mistake_would_be_seen(data, tmp_path, mistake):
    """The tolerance is no wider than it must be: a slightly different model or schedule is far outside of it."""
    found = losses("enwik8-paper", data, tmp_path, mistake)
    assert greatest_difference(found, stored("enwik8-paper")) > 5 * TOLERANCE


@pytest.mark.parametrize(
    "mistake",
    ["model.rotary=5000", "optimizer.muon_learning_rate=0.0204", "optimizer.decay_share=0.5", "model.qk_norm=null"],
)
def test_a_mistake_in_the_modern_recipe_would_be_seen(data, tmp_path, mistake):
    found = losses("text_short", data, tmp_path, mistake)
    assert greatest_difference(found, stored("text_short")) > 5 * TOLERANCE
