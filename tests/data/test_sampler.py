"""The order of training is a function of (seed, step), whoever reads it; evaluation covers everything once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.sampler import (
    EMPTY,
    EvalBatchSampler,
    TrainBatchSampler,
    TrainOrder,
    epoch_offset,
    micro_batch_size,
    permutation,
)
from src.errors import UserError

SPLITS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))  # devices, micro-batches, their size


@settings(max_examples=40)
@given(split=SPLITS, start=st.integers(0, 5), steps=st.integers(0, 5))
def test_devices_and_micro_batches_only_share_out_the_numbers(
    split: tuple[int, int, int], start: int, steps: int
) -> None:
    world, count, micro_batch = split
    batch_size = world * count * micro_batch
    per_rank = [
        list(
            TrainBatchSampler(
                batch_size,
                micro_batch=micro_batch,
                rank=rank,
                world=world,
                start_step=start,
                stop_step=start + steps,
            )
        )
        for rank in range(world)
    ]
    for step in range(steps):
        of_step = [
            number for batches in per_rank for batch in batches[step * count : (step + 1) * count] for number in batch
        ]
        assert of_step == list(range((start + step) * batch_size, (start + step + 1) * batch_size))
    assert all(len(batch) == micro_batch for batches in per_rank for batch in batches)


@given(split=SPLITS, start=st.integers(0, 6))
def test_a_resumed_sampler_goes_on_and_keeps_its_length(split: tuple[int, int, int], start: int) -> None:
    world, count, micro_batch = split

    def sampler(start_step: int) -> TrainBatchSampler:
        return TrainBatchSampler(
            world * count * micro_batch,
            micro_batch=micro_batch,
            rank=world - 1,
            world=world,
            start_step=start_step,
            stop_step=6,
        )

    unbroken = list(sampler(0))
    assert list(sampler(start)) == unbroken[start * count :]
    assert len(sampler(start)) == len(unbroken)


@given(size=st.integers(1, 60), seed=st.integers(0, 2**40), epoch=st.integers(0, 50))
def test_every_sequence_comes_once_an_epoch(size: int, seed: int, epoch: int) -> None:
    epochs, indices = TrainOrder(size, seed)(np.arange(epoch * size, (epoch + 1) * size))
    assert set(epochs) == {epoch}
    assert sorted(indices) == list(range(size))


@settings(max_examples=30)
@given(size=st.integers(1, 40), seed=st.integers(0, 99), data=st.data())
def test_a_number_means_the_same_whatever_is_asked_with_it(size: int, seed: int, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(0, 5 * size), min_size=1, max_size=20))
    epochs, indices = TrainOrder(size, seed)(np.array(numbers))
    for number, epoch, index in zip(numbers, epochs, indices, strict=True):
        assert (epoch, index) == (number // size, permutation(size, seed, number // size)[number % size])


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert permutation(8, seed=7, epoch=0).tolist() == [0, 6, 3, 7, 1, 2, 4, 5]
    assert permutation(8, seed=7, epoch=1).tolist() == [1, 3, 0, 6, 4, 7, 5, 2]
    assert [epoch_offset(1000, 7, epoch) for epoch in range(3)] == [968, 215, 844]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(size=st.integers(0, 50), batch_size=st.integers(1, 7), world=st.integers(1, 5))
def test_evaluation_takes_every_sequence_once_in_as_many_batches_on_each_device(
    size: int, batch_size: int, world: int
) -> None:
    samplers = [EvalBatchSampler(size, batch_size, rank, world) for rank in range(world)]
    per_rank = [list(sampler) for sampler in samplers]
    taken = [index for batches in per_rank for batch in batches for index in batch if index != EMPTY]
    assert sorted(taken) == list(range(size))
    assert [len(batches) for batches in per_rank] == [len(samplers[0])] * world
    assert all(1 <= len(batch) <= batch_size for batches in per_rank for batch in batches)
    assert all(batch == [EMPTY] or EMPTY not in batch for batches in per_rank for batch in batches)


@pytest.mark.parametrize(
    ("batch_size", "world", "micro_batch", "sentence"),
    [
        (8, 3, None, r"data\.batch_size must be a multiple of the 3 device\(s\), found 8"),
        (0, 1, None, r"data\.batch_size must be a multiple of .* found 0"),
        (8, 2, 3, r"data\.micro_batch must divide .*4 = data\.batch_size 8 / 2 device\(s\)\), found 3"),
        (8, 2, 8, r"data\.micro_batch must divide .* found 8"),
    ],
)
def test_an_uneven_split_is_refused_in_a_sentence(
    batch_size: int, world: int, micro_batch: int | None, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        micro_batch_size(batch_size, world, micro_batch)
