"""Downloads that go on where they broke off, and that leave nothing wrong behind."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import requests
from rich.progress import Progress, TaskID

from src.data.files import digest
from src.errors import UserError
from src.system.progress_bars import byte_progress

TIMEOUT_S = (8.0, 60.0)
"""Seconds to wait for a connection, and then for the next bytes."""

RETRY_PAUSE_S = 1.0
"""Seconds between a broken connection and the next one."""

_CHUNK = 1 << 16  # bytes that a broken connection may lose
_FRUITLESS = 3  # connections in a row that bring nothing, after which a broken download is given up


@dataclass(frozen=True)
class Remote:
    """A file to download.

    Args:
        url: its HTTP address.
        path: its final name; the bytes gather in ``<path>.part``.
        by_hand: what the user can do instead, as the end of a sentence.
        size: its size in bytes, if known.
        checksum: its checksum in hexadecimal, if known.
        algorithm: ``md5`` or ``sha256``.
    """

    url: str
    path: Path
    by_hand: str
    size: int | None = None
    checksum: str | None = None
    algorithm: str = "md5"

    @property
    def part(self) -> Path:
        """Where the bytes gather."""
        return self.path.with_name(f"{self.path.name}.part")


class _BrokenError(Exception):
    """The connection failed, before or after the server answered; what has arrived is in the part file."""

    def __init__(self, reason: str, answered: bool) -> None:
        super().__init__(reason)
        self.answered = answered


def download(remote: Remote) -> None:
    """Download a file, with a progress bar; a ``.part`` file of an earlier try is continued.

    Only one process at a time may call this for a path: see ``src.data.files.alone``.

    Raises:
        UserError: the address cannot be reached or refuses, the file is wrong, or it cannot be written.
    """
    try:
        remote.path.parent.mkdir(parents=True, exist_ok=True)
        with byte_progress() as progress:
            _receive_all(remote, progress, progress.add_task(f"downloading {remote.path.name}", total=remote.size))
        _check(remote)
        remote.part.replace(remote.path)
    except OSError as error:
        raise UserError(
            f"cannot write {remote.path} ({error.strerror or error}); choose another paths.data_dir"
        ) from error


def _receive_all(remote: Remote, progress: Progress, task: TaskID) -> None:
    reached, fruitless = False, 0
    while True:
        before = _size(remote.part)
        try:
            return _receive(remote, progress, task)
        except _BrokenError as broken:
            arrived = _size(remote.part)
            reached = reached or broken.answered
            fruitless = fruitless + 1 if arrived <= before else 0
            if not reached:
                raise UserError(f"cannot reach {remote.url} ({broken}); {remote.by_hand}") from broken
            if fruitless >= _FRUITLESS:
                raise UserError(
                    f"the download of {remote.url} broke off after {arrived:,} bytes ({broken}); run the same "
                    f"command again to go on, or {remote.by_hand}"
                ) from broken
        time.sleep(RETRY_PAUSE_S)


def _receive(remote: Remote, progress: Progress, task: TaskID) -> None:
    """Make one request, for what is still missing, and append what comes to the part file."""
    have, answered = _size(remote.part), False
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            answered = True
            start, total = _range(response, have)
            if response.status_code == 416 and have == total:
                return
            if response.status_code == 416 or start not in (0, have):
                remote.part.unlink()  # it does not fit what the server has
                return _receive(remote, progress, task)
            if response.status_code not in (200, 206):
                raise UserError(f"{remote.url} answered {response.status_code} {response.reason}; {remote.by_hand}")
            _check_size(remote, remote.size if total is None else total)
            progress.update(task, total=total, completed=start)
            with remote.part.open("ab" if start else "wb") as file:
                for chunk in response.iter_content(_CHUNK):
                    file.write(chunk)
                    progress.advance(task, len(chunk))
    except requests.RequestException as error:
        raise _BrokenError(_reason(error) + _by_proxy(remote.url), answered) from error
    if total is not None and _size(remote.part) < total:
        raise _BrokenError("the connection was closed early", answered)


def _range(response: requests.Response, have: int) -> tuple[int, int | None]:
    """Give the first byte that a response brings, and the size of the whole file if the server says it."""
    content_range = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if content_range:
        start, total = content_range.groups()
        return int(start or 0), int(total) if total != "*" else None
    if response.status_code == 206:
        return have, None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _check(remote: Remote) -> None:
    try:
        _check_size(remote, _size(remote.part))
        found = digest(remote.part, remote.algorithm) if remote.checksum else None
        if found != remote.checksum:
            raise UserError(
                f"{remote.url} sent a wrong file: expected {remote.algorithm} {remote.checksum}, found {found}; "
                f"nothing of it was kept: try again, or {remote.by_hand}"
            )
    except UserError:
        remote.part.unlink()
        raise


def _check_size(remote: Remote, found: int | None) -> None:
    if remote.size is not None and found != remote.size:
        raise UserError(
            f"{remote.url} has a file of the wrong size: expected {remote.size:,} bytes, found {found:,}; "
            f"{remote.by_hand}"
        )


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _reason(error: requests.RequestException) -> str:
    """Say in a few words why a request failed; the libraries' own texts run over several lines."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.TooManyRedirects):
        return "it redirects without end"
    if isinstance(error, requests.exceptions.InvalidURL):
        return "no address"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was closed early"
    text = str(error)
    for known in ("Name or service not known", "Temporary failure in name resolution", "Connection refused"):
        if known in text:
            return known
    found = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", text)
    return found.group(1) if found else type(error).__name__


def _by_proxy(url: str) -> str:
    """Say that a proxy stands between; not which one, for its address may hold a password."""
    scheme = url.partition(":")[0]
    return f", by the proxy of {scheme.upper()}_PROXY" if scheme in requests.utils.get_environ_proxies(url) else ""
