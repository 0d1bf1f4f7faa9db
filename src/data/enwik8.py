"""enwik8: the first 100,000,000 bytes of the English Wikipedia of March 2006 (section 7.2)."""

from __future__ import annotations

from pathlib import Path

from src.data.archives import SUFFIXES, unpack
from src.data.base import Splits, WindowDataModule
from src.data.byte_windows import split_90_5_5
from src.data.download import Remote, download
from src.data.files import alone, remember_digest, remembered_digest
from src.data.portions import Portions
from src.errors import UserError


class Enwik8(WindowDataModule):
    """The raw file ``enwik8``: found in the data folder, unpacked from an archive there, or downloaded.

    A raw file ``enwik8``, or ``enwik8.zip``, ``.gz`` or ``.xz``, may be placed by hand in ``data_dir/enwik8``
    or in ``data_dir``. Size and checksum are verified; the checksum is remembered beside the file.

    Args:
        data_dir: folder of all data sets.
        portions: of a sequence, a batch and the order.
        allow_partial: accept a beginning of enwik8, also named ``enwik8_...``, split in the same proportions.
    """

    URL = "http://mattmahoney.net/dc/enwik8.zip"
    SIZE = 100_000_000
    MD5 = "a1fa5ffddb56f4953e226637dabbb36a"
    BEGINNING = b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.3/"'

    def __init__(
        self,
        data_dir: Path,
        portions: Portions,
        *,
        allow_partial: bool = False,
    ) -> None:
        super().__init__(portions)
        self.data_dir = Path(data_dir).expanduser().absolute()
        self.folder = self.data_dir / "enwik8"
        self.allow_partial = allow_partial

    def prepare_data(self) -> None:
        """Find, unpack or download the file, and verify it."""
        self._verified_file()

    def open_splits(self) -> Splits:
        """Open the three ranges of the file: 90, 5 and 5 million bytes, or the same proportions of a part."""
        path, md5 = self._verified_file()
        size = path.stat().st_size
        partial = size != self.SIZE
        label = f"enwik8, partial: first {size:,} bytes of {self.SIZE:,}" if partial else "enwik8"
        return self.windows(path, split_90_5_5(size), label, partial, md5=md5)

    def _verified_file(self) -> tuple[Path, str]:
        """Give the raw file and its md5."""
        path = self._find()
        if path is None or path.suffix in SUFFIXES:
            with alone(self.folder):
                path = self._find() or self._download()
                if path.suffix in SUFFIXES:  # not so if another process has just unpacked it
                    path = self._unpack(path)
        md5 = remembered_digest(path, "md5")
        with path.open("rb") as file:
            self._judge(path, path.stat().st_size, md5, file.read(len(self.BEGINNING)))
        return path, md5

    def _find(self) -> Path | None:
        """Find the file: whole names before partial ones, raw files before archives."""
        places = [folder / name for name in self._whole_names() for folder in (self.folder, self.data_dir)]
        if self.allow_partial:
            places += self._partial_files()
        return next((place for place in places if place.is_file()), None)

    @staticmethod
    def _whole_names() -> list[str]:
        return ["enwik8", *(f"enwik8{suffix}" for suffix in SUFFIXES)]

    def _partial_files(self) -> list[Path]:
        kinds = ("", *SUFFIXES)
        found = [path for folder in (self.folder, self.data_dir) for path in folder.glob("enwik8[_-]*")]
        return sorted(
            (path for path in found if path.is_file() and path.suffix in kinds),
            key=lambda path: (kinds.index(path.suffix), path.name),
        )

    def _download(self) -> Path:
        archive = self.folder / "enwik8.zip"
        download(Remote(self.URL, archive, self._by_hand()))
        try:
            return self._unpack(archive)
        except UserError:
            archive.unlink(missing_ok=True)
            raise

    def _by_hand(self) -> str:
        *names, last = self._whole_names()
        advice = f"place {', '.join(names)} or {last} in {self.folder} or {self.data_dir} by hand"
        partial = self._partial_files()
        return f"{advice}, or set data.allow_partial=true to use {partial[0]}" if partial else advice

    def _unpack(self, archive: Path) -> Path:
        target = self.folder / archive.stem
        md5 = unpack(
            archive,
            target,
            self.SIZE,
            lambda size, md5, beginning: self._judge(archive, size, md5, beginning),
        )
        remember_digest(target, "md5", md5)
        return target

    def _judge(self, path: Path, size: int, md5: str, beginning: bytes) -> None:
        """Refuse what is not enwik8, or, where that is allowed, not its beginning."""
        if size == self.SIZE and md5 != self.MD5:
            raise UserError(
                f"{path} is not enwik8: expected md5 {self.MD5}, found {md5}; remove it to download the official "
                "file, or train on it as it is with data=bytes data.path=FILE"
            )
        if size > self.SIZE or (size < self.SIZE and not self.allow_partial):
            more = " or more" if size > self.SIZE else ""
            raise UserError(
                f"{path} is not the whole of enwik8: expected {self.SIZE:,} bytes, found {size:,}{more}; remove it to "
                "download the official file, or set data.allow_partial=true to use a shorter one"
            )
        if not beginning.startswith(self.BEGINNING):
            raise UserError(
                f"{path} is not a part of enwik8: it must begin with {self.BEGINNING.decode()}, found "
                f"{beginning[:20]!r}; train on it with data=bytes data.path=FILE"
            )
