"""Any file of the user's own."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
from pathlib import Path

import pytest

from src.data.bytes_file import BytesFile
from src.data.portions import Portions
from src.errors import UserError


def test_facts_identify_the_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"0123456789" * 10)
    data = BytesFile(tmp_path / "notes.txt", Portions(8, 2))
    data.prepare_data()
    data.setup()
    facts = data.facts()
    assert facts["label"] == "notes.txt (100 bytes)" and facts["partial"] is False
    assert facts["path"] == str(tmp_path / "notes.txt") and facts["size"] == 100
    assert facts["sha256"] == hashlib.sha256(b"0123456789" * 10).hexdigest()
    assert (facts["train_bytes"], facts["val_bytes"], facts["test_bytes"]) == (90, 5, 5)


def test_what_cannot_be_trained_on_is_refused_in_a_sentence(tmp_path: Path) -> None:
    def refusal(path: Path, context: int = 8) -> str:
        with pytest.raises(UserError) as refused:
            data = BytesFile(path, Portions(context, 2))
            data.prepare_data()
            data.setup()
        assert "\n" not in str(refused.value)
        return str(refused.value)

    empty, short = tmp_path / "empty", tmp_path / "short"
    empty.touch()
    short.write_bytes(bytes(100))
    assert refusal(tmp_path / "missing") == f"data.path must be an existing file, found none there: {tmp_path}/missing"
    assert "found a folder" in refusal(tmp_path)
    assert refusal(empty) == f"data.path must have at least 20 bytes, found 0: {empty}"
    assert refusal(short, context=64).startswith("data.context must be at most 45 for the 90 training bytes")


@pytest.mark.parametrize(
    ("pack", "kind"), [(gzip.compress, "gzip"), (lzma.compress, "xz"), (bz2.compress, "bzip2")], ids=["gz", "xz", "bz2"]
)
def test_compressed_files_are_no_text(tmp_path, pack, kind):
    path = tmp_path / "notes.txt"
    path.write_bytes(pack(bytes(range(256)) * 40))
    with pytest.raises(UserError, match=f"data.path must not be compressed, found {kind}: "):
        BytesFile(path, Portions(8, 2)).prepare_data()
