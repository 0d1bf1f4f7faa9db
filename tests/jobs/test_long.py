"""The long experiments (table 4): their size, and that they train."""

import math

import pytest
import torch

from src.config.checks import check
from src.models.build import network
from src.training import build_model
from tests.tiny_runs import command, composed, corpus, only_run, summary

SMALL = ("data.context=256", "attention.stride=16", "model.depth=2", "model.width=32", "model.heads=2")


@pytest.mark.parametrize(
    ("experiment", "context", "parameters"), [("long", 65_536, 152e6), ("long_1m", 1_048_576, 3e6)]
)
def test_size_is_that_of_table_4(experiment, context, parameters):
    config = composed(f"experiment={experiment}", "data.path=FILE")
    check(config)
    assert config.data.context == context
    assert config.attention.stride == math.isqrt(context)
    assert config.model.recompute == "block"
    with torch.device("meta"):
        assert network(config).parameter_count() == pytest.approx(parameters, rel=0.15)


def test_a_million_bytes_cost_what_the_square_root_promises():
    """The kept pairs of a query are about two square roots of the context, not half of it."""
    flops = build_model.step_flops(composed("experiment=long_1m", "data.path=FILE"))
    assert flops.dense_attention / flops.attention == pytest.approx((2**20 / 2) / (1.5 * 2**10), rel=0.01)


@pytest.mark.parametrize("experiment", ["long", pytest.param("long_1m", marks=pytest.mark.slow)])
def test_a_few_steps_on_a_cpu(tmp_path, experiment):
    changes = ("logger=none", "logger.sample_bytes=0", f"data.path={corpus(tmp_path)}")
    done = command("train", f"experiment={experiment}", "debug=fast", *SMALL, *changes, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(only_run(tmp_path))["train/steps"] == 4
