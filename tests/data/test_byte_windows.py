"""Windows: shifted as one in each training epoch, and covering every byte once in evaluation."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.data.byte_windows import ByteStore, EvalWindows, TrainWindows, split_90_5_5
from src.data.sampler import epoch_offset
from src.errors import UserError

SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


def write(path: Path, size: int) -> bytes:
    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    return content


@SHARED_FOLDER
@given(size=st.integers(1, 200), context=st.integers(1, 30), epoch=st.integers(0, 9), before=st.integers(0, 5))
def test_training_windows_lie_inside_the_split_and_share_the_epochs_offset(
    tmp_path: Path, size: int, context: int, epoch: int, before: int
) -> None:
    content = write(tmp_path / "file", before + size + 3)
    store = ByteStore(tmp_path / "file", before, before + size)
    if size < 2 * context - 1:
        with pytest.raises(UserError, match=rf"data\.context must be at most {(size + 1) // 2} .* found {context}"):
            TrainWindows(store, context, seed=3)
        return
    windows = TrainWindows(store, context, seed=3)
    indices = np.arange(len(windows))
    batch = windows.batch(np.full(len(indices), epoch), indices)
    offset = before + epoch_offset(context, 3, epoch)
    assert offset + len(windows) * context <= before + size
    assert batch.x.numpy().tobytes() == content[offset : offset + len(windows) * context]
    assert batch.length.tolist() == [context] * len(windows)
    longest = context - 1 + (len(windows) + 1) * context
    assert longest > size  # one more window would not fit under every offset


def test_windows_start_at_other_places_in_other_epochs(tmp_path: Path) -> None:
    write(tmp_path / "file", 500)
    windows = TrainWindows(ByteStore(tmp_path / "file", 0, 500), 100, seed=0)
    first = windows.batch(np.arange(20), np.zeros(20, dtype=np.int64))
    assert len({row.numpy().tobytes() for row in first.x}) > 15


@SHARED_FOLDER
@given(size=st.integers(0, 200), context=st.integers(1, 30), before=st.integers(0, 5))
def test_evaluation_windows_cover_every_byte_once(tmp_path: Path, size: int, context: int, before: int) -> None:
    content = write(tmp_path / "file", before + size + 3)
    windows = EvalWindows(ByteStore(tmp_path / "file", before, before + size), context)
    batch = windows.batch(np.arange(len(windows)))
    scored = b"".join(row[:length].numpy().tobytes() for row, length in zip(batch.x, batch.length, strict=True))
    assert scored == content[before : before + size]
    assert all(not row[length:].any() for row, length in zip(batch.x, batch.length, strict=True))
    assert str(batch.x.dtype) == "torch.uint8" and str(batch.length.dtype) == "torch.int64"


def test_a_pickled_store_takes_no_bytes_along(tmp_path: Path) -> None:
    content = write(tmp_path / "file", 100_000)
    store = ByteStore(tmp_path / "file", 10, 100_000)
    store.read(np.zeros(1, dtype=np.int64), 5)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1_000
    assert pickle.loads(pickled).read(np.zeros(1, dtype=np.int64), 5).tobytes() == content[10:15]


@given(size=st.integers(0, 10**12))
def test_splits_have_the_papers_proportions(size: int) -> None:
    train, val, test = split_90_5_5(size)
    assert train + val + test == size
    assert train == size * 9 // 10 and val == size // 20
    assert split_90_5_5(100_000_000) == (90_000_000, 5_000_000, 5_000_000)


def test_a_file_that_was_cut_off_is_refused_and_one_that_was_replaced_is_read_on(tmp_path: Path) -> None:
    """To read a map beyond the end of its file would end the process by a bus error."""
    content = write(tmp_path / "file", 9000)
    store = ByteStore(tmp_path / "file", 0, 9000)
    assert store.read(np.array([8000]), 10).tobytes() == content[8000:8010]
    write(tmp_path / "another", 5)
    (tmp_path / "another").replace(tmp_path / "file")
    assert store.read(np.array([8000]), 10).tobytes() == content[8000:8010]
    short = ByteStore(tmp_path / "file", 0, 5)
    short.read(np.array([0]), 5)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file must stay as it is while it is read, found 0 of 5 bytes$"):
        short.read(np.array([0]), 5)
