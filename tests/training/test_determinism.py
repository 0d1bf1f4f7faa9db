"""``deterministic=true`` reaches PyTorch and cuBLAS, and what has no influence on training is left out of it."""

import os

import pytest
import torch

from src.training.determinism import anything_goes, set_deterministic
from tests.in_process import Fall, new_run, train


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    yield
    set_deterministic(False)


class Seen(Fall):
    def __init__(self):
        self.step, self.enabled = -1, []

    def on_train_batch_end(self, trainer, *args):
        self.enabled.append(torch.are_deterministic_algorithms_enabled())


@pytest.mark.parametrize("wanted", [True, False])
def test_the_key_decides_for_the_whole_run(tmp_path, wanted):
    seen = Seen()
    train(new_run(tmp_path, f"deterministic={str(wanted).lower()}", "trainer.max_steps=3"), seen)
    assert seen.enabled == [wanted] * 3
    assert torch.backends.cudnn.deterministic is wanted
    assert torch.backends.cudnn.benchmark is False
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (":4096:8" if wanted else "")


def test_an_operation_without_a_deterministic_way_is_refused_but_where_anything_goes():
    def nondeterministic():
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))

    set_deterministic(True)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        nondeterministic()
    with anything_goes():
        nondeterministic()
    assert torch.are_deterministic_algorithms_enabled()
