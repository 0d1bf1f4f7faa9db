"""Where the documents of a text begin, against a loop over the whole file; and files of offsets that are none."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.data.bytes_file import BytesFile
from src.data.documents import DocumentBounds, read_offsets
from src.data.portions import Portions
from src.data.sampler import epoch_offset
from src.errors import UserError

SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def slowly(begins: set[int], start: int, width: int) -> list[int]:
    """Position by position: the last beginning of a document in the window, or else the window's."""
    return [max([0, *(at for at in range(place + 1) if start + at in begins)]) for place in range(width)]


def opened(path: Path, context: int, **documents: object) -> BytesFile:
    data = BytesFile(path, Portions(context, 2, seed=3, documents=DocumentBounds(**documents)))  # type: ignore[arg-type]
    data.setup()
    return data


@SHARED_FOLDER
@given(
    content=st.lists(st.sampled_from(b"ab\0"), min_size=60, max_size=150).map(bytes), context=st.integers(1, 20),
    separator=st.lists(st.sampled_from(b"ab\0"), min_size=1, max_size=4).map(bytes), least=st.integers(0, 19),
    listed=st.booleans(),
)  # fmt: skip
def test_each_position_has_the_beginning_of_its_document(tmp_path, content, context, separator, least, listed):
    """Whatever window, split and epoch it is read in, by a separator or by a list of what it finds."""
    content += separator
    (tmp_path / "text").write_bytes(content)
    begins = {at for at in range(1, len(content)) if content[:at].endswith(separator)} or {0}
    np.save(tmp_path / "offsets.npy", np.array(sorted(begins)))
    bounds = {"offsets": tmp_path / "offsets.npy"} if listed else {"separator": separator}
    data = opened(tmp_path / "text", context, **bounds)
    splits = data.splits
    whole = np.arange(len(splits.train))
    for epoch in (0, 7):
        for index, row in enumerate(splits.train.batch(np.full(len(whole), epoch), whole).documents):
            assert row.tolist() == slowly(begins, index * context + epoch_offset(context, 3, epoch), context)
    for items in (splits.val, splits.test, data.overlapping(splits.val, least % context)):
        step = context - getattr(items, "min_context", 0)
        batch = items.batch(np.arange(len(items)))
        for index, (row, length) in enumerate(zip(batch.documents, batch.length, strict=True)):
            assert row.tolist()[:length] == slowly(begins, items.store.start + index * step, context)[:length]


def test_training_windows_have_the_documents_of_their_bytes(tmp_path):
    (tmp_path / "text").write_bytes(b"".join(b"%d;" % number for number in range(2000)))
    train = opened(tmp_path / "text", 50, separator=b";").splits.train
    batch = train.batch(np.array([0, 5]), np.array([3, 80]))
    assert str(batch.documents.dtype) == "torch.int32"
    for row, documents in zip(batch.x.numpy(), batch.documents.tolist(), strict=True):
        assert documents == slowly({at + 1 for at in range(50) if row[at] == ord(";")}, 0, 50)


def test_without_the_keys_there_are_no_documents(tmp_path):
    (tmp_path / "text").write_bytes(b"a\n" * 100)
    data = opened(tmp_path / "text", 8)
    assert data.splits.val.batch(np.arange(1)).documents is None
    assert "documents" not in data.facts()


def test_the_facts_of_a_run_say_what_ends_a_document(tmp_path):
    (tmp_path / "text").write_bytes(b"a\n" * 100)
    (tmp_path / "offsets").write_text("0 50")
    assert opened(tmp_path / "text", 8, separator=b"\n").facts()["documents"] == "end with b'\\n'"
    facts = opened(tmp_path / "text", 8, offsets=tmp_path / "offsets").facts()
    assert str(tmp_path / "offsets") in str(facts["documents"]) and len(str(facts["offsets_sha256"])) == 64


def test_loader_processes_read_the_same_documents(tmp_path):
    (tmp_path / "text").write_bytes(b"some words;" * 100)
    bounds = DocumentBounds(separator=b";")
    loaded = []
    for workers in (0, 1):
        data = BytesFile(tmp_path / "text", Portions(16, 4, seed=3, workers=workers, documents=bounds))
        data.setup()
        loaded.append([batch.documents for batch in data.train_dataloader()])
    assert all((a == b).all() for a, b in zip(*loaded, strict=True))
    assert len(pickle.dumps(data.splits.train)) < 2_000  # no bytes of the text travel to them


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint16])
def test_offsets_of_any_whole_type_and_of_text_are_the_same(tmp_path, dtype):
    np.save(tmp_path / "offsets.npy", np.array([0, 3, 99], dtype=dtype))
    (tmp_path / "offsets.txt").write_text("0\n3\n\n99\n")
    for name in ("offsets.npy", "offsets.txt"):
        found = read_offsets(tmp_path / name, 100)
        assert (found.tolist(), found.dtype) == ([0, 3, 99], np.int64)


def npy(values: object) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(values))
    return out.getvalue()


WRONG = {
    "nothing": ("offsets", b"", r"must hold a row of whole numbers, found int64 \(0,\)"),
    "words": ("offsets", b"0 ten", "text of them between blanks or lines, found 'ten'"),
    "fractions": ("offsets.npy", npy([0.5]), r"must hold a row of whole numbers, found float64 \(1,\)"),
    "a table": ("offsets.npy", npy([[1, 2]]), r"must hold a row of whole numbers, found int64 \(1, 2\)"),
    "objects": ("offsets.npy", npy([0, None]), "must be a .npy file of whole numbers, .* found Object arrays"),
    "cut off": ("offsets.npy", npy(range(99))[:-9], "must be a .npy file of whole numbers, "),
    "another file": ("offsets.npy", b"0 1 2", "must be a .npy file of whole numbers, "),
    "a fall": ("offsets", b"0 7 5 9", "must ascend, found 7 before 5"),
    "twice the same": ("offsets", b"0 7 7", "must ascend, found 7 before 7"),
    "before the file": ("offsets", b"-1 7", "must be at least 0 and below the 100 bytes of the text, found -1"),
    "behind the file": ("offsets", b"0 100", "must be at least 0 and below the 100 bytes of the text, found 100"),
    "beyond 64 bits": ("offsets", b"0 99999999999999999999", "found a number of more than 64 bits"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_offsets_are_refused(tmp_path, name):
    file, content, sentence = WRONG[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"^data\.document_offsets .*{sentence}.*: {tmp_path / file}$"):
        read_offsets(tmp_path / file, 100)


def test_a_separator_that_is_nowhere_is_refused(tmp_path):
    """As the name of a file of offsets would be, given to the wrong key."""
    (tmp_path / "text").write_bytes(b"a\n" * 100)
    with pytest.raises(UserError, match=r"data\.documents must stand somewhere in .*text, found b'o\.npy' nowhere"):
        opened(tmp_path / "text", 8, separator=b"o.npy")
