"""The files of CIFAR-10, as an archive or a folder: read and checked with nothing of them run or unpacked to disk."""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from src.data.byte_windows import ByteArray
from src.data.files import remember, remembered
from src.data.pictures import picture_bytes
from src.data.safe_pickle import PickledArray, load_plain
from src.errors import UserError
from src.system.progress_bars import byte_progress

SIDE = 32
FOLDER = "cifar-10-batches-py"
MOST_BYTES = 64 << 20  # of a batch file; the official ones have 31 million
ROWS = 10_000  # pictures of a whole batch
TEST = "test_batch"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    TEST: "40351d587109b95175f43aff81a1287e",
}
"""The official files and their checksums, the training batches in their order."""


class Batches:
    """The batch files of an archive or a folder, read when they are asked for.

    Args:
        source: the archive or folder.
        memory: the file in which an archive's checksums are kept, so that it is unpacked once and not by every process.

    Raises:
        UserError: as ``read_batches``, when they are read.
    """

    def __init__(self, source: Path, memory: Path) -> None:
        self.source = source
        self.memory = memory

    @cached_property
    def contents(self) -> dict[str, bytes]:
        """Each file's bytes by its name, as ``read_batches`` gives them."""
        return read_batches(self.source)

    @cached_property
    def md5s(self) -> dict[str, str]:
        """The md5 of every batch file."""
        known = remembered(self.memory, self.source) if self.source.is_file() else None
        return known or {
            name: hashlib.md5(raw, usedforsecurity=False).hexdigest() for name, raw in self.contents.items()
        }

    def remember(self) -> None:
        """Keep an archive's checksums, once it is known to be good."""
        if "contents" in vars(self) and self.source.is_file():
            remember(self.memory, self.source, self.md5s)


def read_batches(source: Path) -> dict[str, bytes]:
    """Read the batch files of an archive or a folder; nothing is unpacked to disk, links are not followed.

    Returns:
        Each file's bytes by its name, the training batches in their order, ``test_batch`` last.

    Raises:
        UserError: it is damaged, holds a batch twice, or lacks the test batch or all training batches.
    """
    contents: dict[str, bytes] = {}
    for name, raw in _folder_files(source) if source.is_dir() else _archive_files(source):
        if name in contents:
            raise UserError(f"{source} holds {name} twice")
        contents[name] = raw
    wanted = [name for name in MD5 if name in contents]
    if TEST not in wanted or len(wanted) < 2:
        raise UserError(
            f"{source} must hold {TEST} and at least data_batch_1, found {', '.join(wanted) or 'neither'}; it must be "
            "the python version of CIFAR-10"
        )
    return {name: contents[name] for name in wanted}


def _folder_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    inner = folder / FOLDER
    for name in MD5:
        path = (inner if inner.is_dir() else folder) / name
        if not path.exists():
            continue
        try:
            if path.stat().st_size > MOST_BYTES:
                raise UserError(f"{path} must have at most {MOST_BYTES:,} bytes, found {path.stat().st_size:,}")
            yield name, path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error


def _archive_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        size = archive.stat().st_size
        with archive.open("rb") as packed, byte_progress(size) as progress:
            task = progress.add_task(f"reading {archive.name}", total=size)
            with tarfile.open(fileobj=packed, mode="r|*") as members:
                for member in members:
                    name = Path(member.name).name
                    if name in MD5:
                        yield name, _content(archive, members, member)
                    progress.update(task, completed=packed.tell())
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{archive} cannot be read ({error}): it is damaged or cut short; remove it") from error
    except OSError as error:  # also gzip's own
        raise UserError(f"{archive} cannot be read ({error.strerror or error}); remove it") from error


def _content(archive: Path, members: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = members.extractfile(member) if member.isreg() else None
    if file is None:
        raise UserError(f"{archive}: {member.name} must be a plain file, found a link or folder")
    if member.size > MOST_BYTES:
        raise UserError(f"{archive}: {member.name} must have at most {MOST_BYTES:,} bytes, found {member.size:,}")
    raw = file.read()
    if len(raw) != member.size:
        raise UserError(f"{archive}: {member.name} is cut short")
    return raw


def batch_pictures(content: bytes, where: str) -> ByteArray:
    """Check one batch file and give its pictures, channel by channel: uint8 (B, 3072).

    Args:
        content: the pickle.
        where: archive and member, for the sentence.

    Raises:
        UserError: it is no batch of CIFAR-10; nothing in it is run.
    """
    batch = load_plain(content, where)
    if not isinstance(batch, dict):
        raise UserError(f"{where} must hold a dictionary, found {type(batch).__name__}")
    named = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = named.get("data"), named.get("labels")
    if not isinstance(data, PickledArray):
        raise UserError(f"{where} must hold an array 'data', found {type(data).__name__}")
    try:
        rows = data.checked_bytes()
    except ValueError as error:
        raise UserError(f"{where}: 'data' {error}") from error
    if rows.ndim != 2 or rows.shape[1] != picture_bytes(SIDE) or not 1 <= len(rows) <= ROWS:
        raise UserError(f"{where}: 'data' must have shape (1 to {ROWS}, {picture_bytes(SIDE)}), found {rows.shape}")
    if not isinstance(labels, list) or len(labels) != len(rows):
        found = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise UserError(f"{where}: 'labels' must be a list of {len(rows)}, one a picture, found {found}")
    wrong = next((label for label in labels if type(label) is not int or not 0 <= label <= 9), None)
    if wrong is not None:
        raise UserError(f"{where}: 'labels' must be whole numbers from 0 to 9, found {wrong!r:.40}")
    return rows
