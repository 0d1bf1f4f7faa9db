"""Every byte of a split is scored once, with the context that was asked for, on any number of devices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.byte_windows import ByteStore, EvalWindows
from src.data.sampler import EMPTY
from src.data.score_windows import ScoreBatchSampler, ScoreWindows
from src.errors import UserError


@pytest.fixture(scope="module")
def store_of(tmp_path_factory):
    path = tmp_path_factory.mktemp("windows") / "bytes"
    path.write_bytes(bytes(np.random.PCG64(3).random_raw(100).astype(np.uint64).tobytes()))
    return lambda size: ByteStore(path, 5, 5 + size)


@given(size=st.integers(1, 700), context=st.integers(1, 90), data=st.data())
def test_each_byte_once_with_its_context(store_of, size, context, data):
    least = data.draw(st.integers(0, context - 1))
    store = store_of(size)
    windows = ScoreWindows(store, context, least)
    batch = windows.batch(np.arange(len(windows), dtype=np.int64))
    whole = store.read(np.zeros(1, dtype=np.int64), size)[0]
    counted = np.zeros(size, dtype=int)
    for index, (x, first, length) in enumerate(zip(batch.x.numpy(), batch.first, batch.length, strict=True)):
        start = index * (context - least)
        assert 0 <= first < length <= context
        assert start + length <= size
        assert index == 0 or first >= least
        assert np.array_equal(x[: int(length)], whole[start : start + int(length)])
        counted[start + int(first) : start + int(length)] += 1
    assert (counted == 1).all()


def test_without_overlap_they_are_the_plain_windows(store_of):
    ours, plain = ScoreWindows(store_of(333), 64, 0), EvalWindows(store_of(333), 64)
    assert len(ours) == len(plain)
    indices = np.arange(len(plain), dtype=np.int64)
    assert (ours.batch(indices).x == plain.batch(indices).x).all()
    assert (ours.batch(indices).length == plain.batch(indices).length).all()


@pytest.mark.parametrize("least", [-1, 64, 65])
def test_impossible_context_is_refused(store_of, least):
    with pytest.raises(UserError, match=r"eval\.min_context must be at least 0 and below data\.context \(64\)"):
        ScoreWindows(store_of(333), 64, least)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_devices_share_the_batches_of_one(size, batch_size, world):
    alone = list(ScoreBatchSampler(size, batch_size))
    shares = [list(ScoreBatchSampler(size, batch_size, rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(ScoreBatchSampler(size, batch_size, 0, world))}
    dealt = [batch for turn in zip(*shares, strict=True) for batch in turn]
    assert [batch for batch in dealt if batch != [EMPTY]] == alone
