"""Downloads: whole, broken off and continued, refused; nothing wrong ever gets the final name."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import numpy as np
import pytest

from src.data import download as download_module
from src.data.download import Remote, download
from src.errors import UserError
from tests.data.server import Served, serve

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def local_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download_module, "RETRY_PAUSE_S", 0.0)


def remote(served: Served, folder: Path, **options: object) -> Remote:
    facts = {"size": len(CONTENT), "checksum": MD5, **options}
    return Remote(served.url, folder / "data" / "file.zip", "place it by hand", **facts)  # type: ignore[arg-type]


def start_of(asked: str | None) -> int:
    return int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0


def refusal(wanted: Remote) -> str:
    with pytest.raises(UserError) as refused:
        download(wanted)
    assert not wanted.path.exists()
    assert wanted.url in str(refused.value) and "place it by hand" in str(refused.value)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("known", [{}, {"size": None, "checksum": None}])
def test_a_whole_file_comes_under_its_name(tmp_path: Path, known: dict[str, None]) -> None:
    with serve(Served(CONTENT)) as served:
        wanted = remote(served, tmp_path, **known)
        download(wanted)
    assert wanted.path.read_bytes() == CONTENT
    assert [path.name for path in wanted.path.parent.iterdir()] == ["file.zip"]
    assert served.asked == [None]


def test_a_broken_connection_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    with serve(Served(CONTENT, break_after=1_300_000, breaks=2)) as served:
        wanted = remote(served, tmp_path)
        download(wanted)
    assert wanted.path.read_bytes() == CONTENT
    first, second, third = map(start_of, served.asked)
    assert first == 0
    assert 1_200_000 < second <= 1_300_000
    assert second + 1_200_000 < third <= second + 1_300_000


def test_a_part_of_an_earlier_run_is_continued(tmp_path: Path) -> None:
    with serve(Served(CONTENT)) as served:
        wanted = remote(served, tmp_path)
        wanted.part.parent.mkdir()
        wanted.part.write_bytes(CONTENT[:1_000_001])
        download(wanted)
    assert wanted.path.read_bytes() == CONTENT
    assert served.asked == ["bytes=1000001-"]


def test_a_part_that_is_whole_already_is_only_checked(tmp_path: Path) -> None:
    with serve(Served(CONTENT)) as served:
        wanted = remote(served, tmp_path)
        wanted.part.parent.mkdir()
        wanted.part.write_bytes(CONTENT)
        download(wanted)
    assert wanted.path.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(tmp_path: Path) -> None:
    with serve(Served(CONTENT)) as served:
        wanted = remote(served, tmp_path)
        wanted.part.parent.mkdir()
        wanted.part.write_bytes(CONTENT + b"more")
        download(wanted)
    assert wanted.path.read_bytes() == CONTENT
    assert served.asked == ["bytes=3000004-", None]


def test_a_server_without_ranges_begins_again(tmp_path: Path) -> None:
    with serve(Served(CONTENT, knows_ranges=False, break_after=1_300_000)) as served:
        wanted = remote(served, tmp_path)
        download(wanted)
    assert wanted.path.read_bytes() == CONTENT
    assert len(served.asked) == 2 and 1_200_000 < start_of(served.asked[1]) <= 1_300_000


def test_a_server_that_keeps_breaking_leaves_the_part_for_the_next_run(tmp_path: Path) -> None:
    with serve(Served(CONTENT, break_after=0, breaks=99)) as served:
        wanted = remote(served, tmp_path)
        wanted.part.parent.mkdir()
        wanted.part.write_bytes(CONTENT[:1_000_001])
        message = refusal(wanted)
        assert wanted.part.read_bytes() == CONTENT[:1_000_001]
        served.breaks = 0
        download(wanted)
    assert "broke off after 1,000,001 bytes (the connection was closed early)" in message
    assert wanted.path.read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_with_both_values_and_nothing_is_kept(tmp_path: Path) -> None:
    with serve(Served(CONTENT)) as served:
        wanted = remote(served, tmp_path, checksum="0" * 32)
        message = refusal(wanted)
    assert f"expected md5 {'0' * 32}, found {MD5}" in message
    assert list(wanted.path.parent.iterdir()) == []


def test_a_wrong_size_is_refused_before_the_bytes_are_fetched(tmp_path: Path) -> None:
    with serve(Served(CONTENT)) as served:
        wanted = remote(served, tmp_path, size=77)
        assert "expected 77 bytes, found 3,000,000" in refusal(wanted)
    assert list(wanted.path.parent.iterdir()) == []


def test_an_error_status_is_named(tmp_path: Path) -> None:
    with serve(Served(CONTENT, status=404)) as served:
        assert "answered 404 Not Found" in refusal(remote(served, tmp_path))


def test_an_unreachable_server_is_named_at_once(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = Served(b"", url=f"http://127.0.0.1:{closed.getsockname()[1]}/file.zip")
        message = refusal(remote(nowhere, tmp_path))
    assert message.startswith(f"cannot reach {nowhere.url} (Connection refused); ")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a folder")
    with serve(Served(CONTENT)) as served, pytest.raises(UserError, match=r"cannot write .*paths\.data_dir"):
        download(remote(served, tmp_path))
