"""Slots: no two jobs share a GPU, and each has its share of the processors."""

import pytest

from src.errors import UserError
from src.sweep.slots import Slots, visible_gpus
from tests.tiny_runs import composed

GPU, CPU = "trainer.accelerator=auto", "trainer.accelerator=cpu"


def config(*overrides):
    return composed("experiment=quickstart", "data.batch_size=8", *overrides)


@pytest.fixture(autouse=True)
def no_thread_setting(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_each_job_has_a_gpu_of_its_own():
    slots, job = Slots(["0", "1", "3"], None, cores=12), config(GPU)
    taken = [slots.take(job) for _ in range(4)]
    assert [t[1]["CUDA_VISIBLE_DEVICES"] for t in taken[:3]] == ["0", "1", "3"]
    assert {t[1]["OMP_NUM_THREADS"] for t in taken[:3]} == {"4"}
    assert taken[3] is None
    slots.give_back(taken[1][0])
    assert slots.take(job)[1]["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_job_of_two_devices_takes_two_gpus():
    slots, job = Slots(["0", "1", "2", "3", "4"], None, cores=8), config(GPU, "trainer.devices=2")
    assert [slots.take(job)[0] for _ in range(2)] == [["0", "1"], ["2", "3"]]
    assert slots.take(job) is None
    assert slots.take(config(GPU))[0] == ["4"]  # a smaller one still fits


def test_fewer_jobs_at_a_time_when_asked():
    slots = Slots(["0", "1", "2"], 2, cores=4)
    assert [slots.take(config(GPU)) is None for _ in range(3)] == [False, False, True]


def test_on_a_processor_jobs_share_its_cores():
    slots = Slots([], 3, cores=8)
    assert [slots.take(config(CPU)) for _ in range(3)] == [([], {"OMP_NUM_THREADS": "2"})] * 3
    assert slots.take(config(CPU)) is None
    assert Slots([], None, cores=8).at_a_time(config(CPU)) == 1


def test_a_job_that_never_fits_is_refused():
    with pytest.raises(
        UserError, match=r"trainer\.devices must be at most the 1 GPUs that this sweep may use, found 2"
    ):
        Slots(["0"], None, cores=8).check(config(GPU, "trainer.devices=2"))


@pytest.mark.parametrize(
    ("set_to", "count", "found"),
    [(None, 2, ["0", "1"]), ("3,5", 2, ["3", "5"]), ("GPU-8f2, GPU-1c4", 2, ["GPU-8f2", "GPU-1c4"]), ("", 0, [])],
)
def test_gpus_that_others_use_are_left_alone(set_to, count, found):
    assert visible_gpus({} if set_to is None else {"CUDA_VISIBLE_DEVICES": set_to}, count) == found
