"""CIFAR-10: 32 x 32 pictures, 48,000 for training, 2,000 for validation, 10,000 for testing (section 7.1)."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.data.base import Fact, Splits
from src.data.cifar10_files import FOLDER, MD5, ROWS, SIDE, Batches, batch_pictures
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
from src.data.portions import Portions
from src.errors import UserError

SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".tar")


class Prepared(NamedTuple):
    """The memory-mapped file, and what it was made of.

    Attributes:
        path: the pictures, training ones first.
        source: the archive or folder.
        md5s: checksum of each batch file.
        train: pictures for training, those held out among them.
        test: pictures for testing.
    """

    path: Path
    source: Path
    md5s: dict[str, str]
    train: int
    test: int


class Cifar10(PictureDataModule):
    """The official archive or its folder: found in the data folder, named by ``path``, or downloaded.

    ``cifar-10-python.tar.gz`` (or ``.tar.xz``, ``.tar``) or the folder ``cifar-10-batches-py`` may be placed by hand in
    ``data_dir/cifar10`` or in ``data_dir``. Every batch file's checksum is compared with the official one. The pictures
    are written once, as a memory-mapped file in ``data_dir/cifar10``, in the model's byte order; nothing in the archive
    is run or unpacked.

    Args:
        data_dir: folder of all data sets.
        portions: of batches; ``context`` is 3,072.
        path: an archive or folder elsewhere; None to look in ``data_dir``.
        allow_partial: accept fewer pictures, or files with other checksums: labelled, the last 4% of training held out.
    """

    URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"

    def __init__(
        self,
        data_dir: Path,
        portions: Portions,
        *,
        path: Path | None = None,
        allow_partial: bool = False,
    ) -> None:
        super().__init__(portions)
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
        _ = self._prepared

    def open_splits(self) -> Splits:
        """Open 48,000 / 2,000 / 10,000 pictures; of a part, its last 4% of training pictures are validation."""
        path, source, md5s, train, test = self._prepared
        val = _held_out(train)
        width = picture_bytes(SIDE)
        official = md5s == MD5
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

    @cached_property
    def _prepared(self) -> Prepared:
        with alone(self.folder):
            source = self._find() or self._download()
            batches = Batches(source, self.folder / f"{source.name}.md5s.json")
            self._judge_checksums(source, batches.md5s)
            path = self.folder / f"pictures-{_joined(batches.md5s)[:12]}.npy"
            counts = path.with_suffix(".counts.npy")
            if not (path.is_file() and counts.is_file()):
                rows = [batch_pictures(content, f"{source}: {name}") for name, content in batches.contents.items()]
                test = len(rows[-1])
                pictures = np.concatenate([interleaved(planes, SIDE) for planes in rows])
                self._judge_count(source, len(pictures) - test, test)
                _save(path, pictures)
                _save(counts, np.array([len(pictures) - test, test]))
            batches.remember()
        train, test = (int(count) for count in np.load(counts, allow_pickle=False))
        self._judge_count(source, train, test)
        if len(mapped_pictures(path, picture_bytes(SIDE))) != train + test:
            raise UserError(f"{path} does not hold the {train + test:,} pictures it should; remove it")
        return Prepared(path, source, batches.md5s, train, test)

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
        for name, expected in MD5.items():
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
