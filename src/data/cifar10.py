"""CIFAR-10: 32 x 32 pictures, 48,000 for training, 2,000 for validation, 10,000 for testing (section 7.1)."""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.bars import byte_progress
from src.data.base import Fact, Splits
from src.data.byte_windows import ByteArray
from src.data.download import Remote, download
from src.data.files import alone, written_whole
from src.data.pictures import (
    EvalPictures,
    PictureDataModule,
    PictureStore,
    TrainPictures,
    interleaved,
    mapped_pictures,
    picture_bytes,
)
from src.data.safe_pickle import PickledArray, load_plain
from src.errors import UserError

SIDE = 32
FOLDER = "cifar-10-batches-py"
SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".tar")
MOST_BYTES = 64 << 20  # of a batch file; the official ones have 31 million
ROWS = 10_000  # pictures of a whole batch
TEST = "test_batch"


@dataclass(frozen=True)
class Batches:
    """The batch files as they were found.

    Args:
        source: the archive or folder.
        contents: each file's bytes by its name, the training batches in their order, ``test_batch`` last.
    """

    source: Path
    contents: dict[str, bytes]

    def md5s(self) -> dict[str, str]:
        """Compute the md5 of every batch file."""
        return {name: hashlib.md5(raw, usedforsecurity=False).hexdigest() for name, raw in self.contents.items()}


class Cifar10(PictureDataModule):
    """The official archive or its folder: found in the data folder, named by ``path``, or downloaded.

    ``cifar-10-python.tar.gz`` (or ``.tar.xz``, ``.tar``) or the folder ``cifar-10-batches-py`` may be placed by hand in
    ``data_dir/cifar10`` or in ``data_dir``. Every batch file's checksum is compared with the official one. The pictures
    are written once, as a memory-mapped file in ``data_dir/cifar10``, in the model's byte order; nothing in the archive
    is run or unpacked.

    Args:
        data_dir: folder of all data sets.
        context: bytes of a sequence: 3,072.
        batch_size: sequences of one optimizer step over all devices.
        seed: seed of the training order.
        path: an archive or folder elsewhere; None to look in ``data_dir``.
        allow_partial: accept fewer pictures, or files with other checksums: labelled, the last 4% of training held out.
        portions: ``micro_batch``, ``eval_batch_size`` and ``workers`` of ``ByteDataModule``.
    """

    URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
    MD5 = {  # noqa: RUF012
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        TEST: "40351d587109b95175f43aff81a1287e",
    }

    def __init__(
        self,
        data_dir: Path,
        context: int,
        batch_size: int,
        seed: int,
        *,
        path: Path | None = None,
        allow_partial: bool = False,
        **portions: Any,
    ) -> None:
        super().__init__(context, batch_size, seed, **portions)
        self.data_dir = Path(data_dir).expanduser().absolute()
        self.folder = self.data_dir / "cifar10"
        self.path = None if path is None else Path(path).expanduser().absolute()
        self.allow_partial = allow_partial

    @property
    def side(self) -> int:
        """Pixels of a row."""
        return SIDE

    def prepare_data(self) -> None:
        """Find or download the archive, check it, and write the memory-mapped file."""
        self._prepared()

    def open_splits(self) -> Splits:
        """Open 48,000 / 2,000 / 10,000 pictures; of a part, its last 4% of training pictures are validation."""
        path, source, md5s, train, test = self._prepared()
        val = _held_out(train)
        width = picture_bytes(SIDE)
        official = md5s == self.MD5
        parts = ((0, train - val), (train - val, train), (train, train + test))
        fit, held, last = (PictureStore(path, start, stop, width) for start, stop in parts)
        facts: dict[str, Fact] = {"path": str(source), "md5": _joined(md5s), "val_pictures": val, "test_pictures": test}
        label = "CIFAR-10" if official else self._label(train, test)
        return Splits(TrainPictures(fit), EvalPictures(held), EvalPictures(last), label, not official, facts)

    @staticmethod
    def _label(train: int, test: int) -> str:
        if (train, test) == (5 * ROWS, ROWS):
            return "CIFAR-10, not the official files (their checksums differ)"
        return f"CIFAR-10, partial: {train:,} + {test:,} of 50,000 + 10,000 pictures"

    def _prepared(self) -> tuple[Path, Path, dict[str, str], int, int]:
        """Give the mapped file, its source, the md5 of the batch files, and the pictures for training and test."""
        with alone(self.folder):
            source = self._find() or self._download()
            batches = read_batches(source)
            md5s = batches.md5s()
            self._judge_checksums(source, md5s)
            path = self.folder / f"pictures-{_joined(md5s)[:12]}.npy"
            counts = path.with_suffix(".counts.npy")
            if not (path.is_file() and counts.is_file()):
                rows = [
                    batch_pictures(content, f"{source}: {name}", ROWS) for name, content in batches.contents.items()
                ]
                test = len(rows[-1])
                pictures = np.concatenate([interleaved(planes, SIDE) for planes in rows])
                self._judge_count(source, len(pictures) - test, test)
                _save(path, pictures)
                _save(counts, np.array([len(pictures) - test, test]))
        train, test = (int(count) for count in np.load(counts, allow_pickle=False))
        self._judge_count(source, train, test)
        if len(mapped_pictures(path, picture_bytes(SIDE))) != train + test:
            raise UserError(f"{path} does not hold the {train + test:,} pictures it should; remove it")
        return path, source, md5s, train, test

    def _find(self) -> Path | None:
        if self.path is not None:
            if not self.path.exists():
                raise UserError(f"data.path must be a CIFAR-10 archive or folder, found none there: {self.path}")
            return self.path
        folders = (self.folder, self.data_dir)
        names = (FOLDER, *(f"cifar-10-python{suffix}" for suffix in SUFFIXES))
        places = [folder / name for name in names for folder in folders]
        if self.allow_partial:
            places += self._partial_archives()
        return next((place for place in places if place.exists()), None)

    def _partial_archives(self) -> list[Path]:
        found = [path for folder in (self.folder, self.data_dir) for path in folder.glob("cifar-10-python[-_]*")]
        return sorted(path for path in found if path.name.endswith(SUFFIXES))

    def _download(self) -> Path:
        archive = self.folder / "cifar-10-python.tar.gz"
        advice = f"place {archive.name} or the folder {FOLDER} in {self.folder} by hand"
        if partial := self._partial_archives():
            advice += f", or set data.allow_partial=true to use {partial[0]}"
        download(Remote(self.URL, archive, advice, checksum=self.ARCHIVE_MD5))
        return archive

    def _judge_checksums(self, source: Path, md5s: dict[str, str]) -> None:
        if self.allow_partial:
            return
        for name, expected in self.MD5.items():
            if md5s.get(name) != expected:
                raise UserError(
                    f"{source} is not the whole official CIFAR-10: {name} must have md5 {expected}, found "
                    f"{md5s.get(name, 'no such file')}; set data.allow_partial=true to use it, labelled so"
                )

    def _judge_count(self, source: Path, train: int, test: int) -> None:
        if min(train, test) < 1 or ((train, test) != (5 * ROWS, ROWS) and not self.allow_partial):
            raise UserError(f"{source} must hold 50,000 + 10,000 pictures, found {train:,} + {test:,}")
        if train <= _held_out(train):
            raise UserError(f"{source} has {train} training and {test} test pictures, too few to train on")


def _held_out(train: int) -> int:
    """Training pictures that are kept for validation: 2,000 of 50,000, in this proportion of a part."""
    return max(1, train * 2_000 // (5 * ROWS))


def _joined(md5s: dict[str, str]) -> str:
    return hashlib.md5("".join(f"{name} {md5s[name]}\n" for name in sorted(md5s)).encode()).hexdigest()


def _save(path: Path, array: Any) -> None:
    with written_whole(path) as file:
        np.save(file, array, allow_pickle=False)


def read_batches(source: Path) -> Batches:
    """Read the batch files of an archive or a folder; nothing is unpacked to disk, links are not followed.

    Raises:
        UserError: it is damaged, holds a batch twice, or lacks the test batch or all training batches.
    """
    contents: dict[str, bytes] = {}
    for name, raw in _folder_files(source) if source.is_dir() else _archive_files(source):
        if name in contents:
            raise UserError(f"{source} holds {name} twice")
        contents[name] = raw
    wanted = [name for name in Cifar10.MD5 if name in contents]
    if TEST not in wanted or len(wanted) < 2:
        raise UserError(
            f"{source} must hold {TEST} and at least data_batch_1, found {', '.join(wanted) or 'neither'}; it must be "
            "the python version of CIFAR-10"
        )
    return Batches(source, {name: contents[name] for name in wanted})


def _folder_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    inner = folder / FOLDER
    for name in Cifar10.MD5:
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
                    if name in Cifar10.MD5:
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


def batch_pictures(content: bytes, where: str, most: int) -> ByteArray:
    """Check one batch file and give its pictures, channel by channel: uint8 (B, 3072).

    Args:
        content: the pickle.
        where: archive and member, for the sentence.
        most: pictures that a batch may have.

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
    if rows.ndim != 2 or rows.shape[1] != picture_bytes(SIDE) or not 1 <= len(rows) <= most:
        raise UserError(f"{where}: 'data' must have shape (1 to {most}, {picture_bytes(SIDE)}), found {rows.shape}")
    if not isinstance(labels, list) or len(labels) != len(rows):
        found = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise UserError(f"{where}: 'labels' must be a list of {len(rows)}, one a picture, found {found}")
    wrong = next((label for label in labels if type(label) is not int or not 0 <= label <= 9), None)
    if wrong is not None:
        raise UserError(f"{where}: 'labels' must be whole numbers from 0 to 9, found {wrong!r:.40}")
    return rows
