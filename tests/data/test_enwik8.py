"""enwik8 in every form a user may bring it, and every wrong file refused; on a small stand-in."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.data.enwik8 import Enwik8
from src.data.portions import Portions
from src.errors import UserError
from tests.data.server import Served, serve

BEGINNING = Enwik8.BEGINNING
CONTENT = BEGINNING + b"".join(b"<page>%d</page>\n" % number for number in range(4_000))
CONTENT = CONTENT[:50_000]


class Small(Enwik8):
    """The same class, expecting a small file."""

    URL = "http://127.0.0.1:9/enwik8.zip"
    SIZE = len(CONTENT)
    MD5 = hashlib.md5(CONTENT).hexdigest()


def zipped(content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("enwik8", content)
    return archive.getvalue()


def raw(content: bytes) -> bytes:
    return content


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "": raw,
    ".zip": zipped,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
}


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def place(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def opened(folder: Path, kind: type[Enwik8] = Small, **options: Any) -> Enwik8:
    data = kind(folder, Portions(64, 4), **options)
    data.prepare_data()
    data.setup()
    return data


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        opened(folder, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def held_out(data: Enwik8) -> bytes:
    loaders = (data.val_dataloader(), data.test_dataloader())
    batches = [batch for loader in loaders for batch in loader]
    return b"".join(
        x[:length].numpy().tobytes() for batch in batches for x, length in zip(batch.x, batch.length, strict=True)
    )


@pytest.mark.parametrize("where", [".", "enwik8"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_placed_by_hand_is_read(tmp_path: Path, form: str, where: str) -> None:
    place(tmp_path / where / f"enwik8{form}", FORMS[form](CONTENT))
    data = opened(tmp_path)
    assert (data.label, data.partial) == ("enwik8", False)
    assert (data.train_bytes, data.val_bytes, data.test_bytes) == (45_000, 2_500, 2_500)
    assert held_out(data) == CONTENT[45_000:]
    assert data.facts()["md5"] == Small.MD5 and data.facts()["size"] == 50_000
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left <= {"enwik8", f"enwik8{form}", "enwik8.md5.json", ".lock"}


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_file_is_refused_with_both_values_and_not_unpacked(tmp_path: Path, form: str) -> None:
    wrong = CONTENT[:-1] + b"!"
    place(tmp_path / "enwik8" / f"enwik8{form}", FORMS[form](wrong))
    message = refusal(tmp_path)
    assert f"expected md5 {Small.MD5}, found {hashlib.md5(wrong).hexdigest()}" in message
    assert f"enwik8{form} is not enwik8" in message
    assert refusal(tmp_path, allow_partial=True) == message
    assert form == "" or not (tmp_path / "enwik8" / "enwik8").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_size_is_refused_with_both_values(tmp_path: Path, form: str) -> None:
    place(tmp_path / "enwik8" / f"enwik8{form}", FORMS[form](CONTENT[:40_000]))
    message = refusal(tmp_path)
    assert "expected 50,000 bytes, found 40,000" in message and "data.allow_partial=true" in message
    place(tmp_path / "enwik8" / f"enwik8{form}", FORMS[form](CONTENT + b"more"))
    assert "expected 50,000 bytes, found 50,004 or more" in refusal(tmp_path, allow_partial=True)


@pytest.mark.parametrize("name", ["enwik8", "enwik8_first40000"])
@pytest.mark.parametrize("form", FORMS)
def test_a_part_is_accepted_on_demand_and_labelled(tmp_path: Path, form: str, name: str) -> None:
    place(tmp_path / f"{name}{form}", FORMS[form](CONTENT[:40_000]))
    data = opened(tmp_path, allow_partial=True)
    assert data.label == "enwik8, partial: first 40,000 bytes of 50,000"
    assert data.partial and data.facts()["partial"] is True
    assert (data.train_bytes, data.val_bytes, data.test_bytes) == (36_000, 2_000, 2_000)
    assert held_out(data) == CONTENT[36_000:40_000]


def test_a_whole_file_is_not_called_partial(tmp_path: Path) -> None:
    place(tmp_path / "enwik8.xz", lzma.compress(CONTENT))
    place(tmp_path / "enwik8_first100", CONTENT[:100])
    assert opened(tmp_path, allow_partial=True).label == "enwik8"


def test_a_part_of_something_else_is_refused(tmp_path: Path) -> None:
    place(tmp_path / "enwik8", b"It was a dark and stormy night. " * 100)
    assert "must begin with <mediawiki" in refusal(tmp_path, allow_partial=True)


@pytest.mark.parametrize("form", [".zip", ".gz", ".xz"])
def test_a_damaged_archive_is_named_and_leaves_nothing(tmp_path: Path, form: str) -> None:
    packed = FORMS[form](CONTENT)
    for damaged in (packed[: len(packed) // 2], b"no archive at all", b""):
        place(tmp_path / f"enwik8{form}", damaged)
        message = refusal(tmp_path, allow_partial=True)
        assert f"{tmp_path / f'enwik8{form}'}" in message
        assert not list((tmp_path / "enwik8").glob("enwik8*"))


def test_an_archive_of_many_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "enwik8.zip", "w") as members:
        members.writestr("enwik8", CONTENT)
        members.writestr("enwik9", CONTENT)
    assert "must hold exactly one file, found 2" in refusal(tmp_path)


def test_the_official_archive_is_downloaded_and_checked(tmp_path: Path) -> None:
    with serve(Served(zipped(CONTENT))) as served:
        kind = type("Remote", (Small,), {"URL": served.url})
        assert held_out(opened(tmp_path, kind)) == CONTENT[45_000:]
        assert held_out(opened(tmp_path, kind)) == CONTENT[45_000:]
    assert served.asked == [None]


def test_a_wrong_download_is_not_kept(tmp_path: Path) -> None:
    with serve(Served(zipped(CONTENT[:-1] + b"!"))) as served:
        kind = type("Remote", (Small,), {"URL": served.url})
        with pytest.raises(UserError, match=f"expected md5 {Small.MD5}"):
            opened(tmp_path, kind)
    assert not list((tmp_path / "enwik8").glob("enwik8*"))


def test_without_a_network_the_user_is_told_where_the_file_may_go(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert message.startswith("cannot reach http://127.0.0.1:9/enwik8.zip (Connection refused); place enwik8, ")
    assert f"in {tmp_path / 'enwik8'} or {tmp_path}" in message
    place(tmp_path / "enwik8_first40000.xz", lzma.compress(CONTENT[:40_000]))
    assert f"allow_partial=true to use {tmp_path / 'enwik8_first40000.xz'}" in refusal(tmp_path)


def test_a_verified_file_is_not_read_again_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path / "enwik8", CONTENT)
    opened(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("src.data.files.digest", lambda *_: pytest.fail("the file was read again"))
        opened(tmp_path)
    place(tmp_path / "enwik8", CONTENT[:-1] + b"!")
    assert "expected md5" in refusal(tmp_path)


def test_the_official_facts_are_those_of_the_paper() -> None:
    assert (Enwik8.SIZE, Enwik8.MD5) == (100_000_000, "a1fa5ffddb56f4953e226637dabbb36a")
