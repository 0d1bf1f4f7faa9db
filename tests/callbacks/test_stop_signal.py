"""A training takes signals over, and gives them back."""

import gc
import signal

import pytest

from src.callbacks.stop_signal import StopSignal
from src.data.byte_windows import ByteStore
from src.errors import UserError
from src.system.signals import stops
from tests.in_process import Poison, new_run, train


def handlers():
    return {signum: signal.getsignal(signum) for signum in (*stops(), StopSignal.SAVE)}


def test_signals_are_given_back_and_nothing_of_a_training_stays(tmp_path):
    before, stores = handlers(), sum(isinstance(one, ByteStore) for one in gc.get_objects())
    train(new_run(tmp_path), Poison(()))
    assert handlers() == before
    gc.collect()
    assert sum(isinstance(one, ByteStore) for one in gc.get_objects()) <= stores


def test_signals_are_given_back_by_a_training_that_fails(tmp_path):
    before = handlers()
    with pytest.raises(UserError):
        train(new_run(tmp_path, "watch.nonfinite_steps=1"), Poison((2,)))
    assert handlers() == before
