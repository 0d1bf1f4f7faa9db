"""Any file of the user's own as bytes: ``data=bytes data.path=FILE``."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from src.data.base import Fact, Splits, WindowDataModule
from src.data.byte_windows import split_90_5_5
from src.data.files import digest
from src.data.portions import Portions
from src.errors import UserError

COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip -k"),
    b"\xfd7zXZ\x00": ("xz", "unxz -k"),
    b"BZh": ("bzip2", "bunzip2 -k"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
}
"""How compressed files begin: a model would learn noise from one."""
_LONGEST = max(map(len, COMPRESSED))
_LEAST_BYTES = 20  # so that 5% is at least one byte


class BytesFile(WindowDataModule):
    """A file as it is: its first 90% train, then 5% validation and 5% test.

    Args:
        path: the file.
        portions: of a sequence, a batch and the order.
    """

    def __init__(
        self,
        path: Path,
        portions: Portions,
    ) -> None:
        super().__init__(portions)
        self.path = Path(path).expanduser().absolute()

    def prepare_data(self) -> None:
        """Check the file before anything is built on it."""
        self._checked_size()

    def open_splits(self) -> Splits:
        """Open the three ranges of the file."""
        size = self._checked_size()
        # the size tells a user's own file from an official set of the same name
        return self.windows(self.path, split_90_5_5(size), f"{self.path.name} ({size:,} bytes)", False)

    def facts(self) -> dict[str, Fact]:
        """Give what identifies the data, with the file's sha256: computed on demand, for the file may be large."""
        return {**super().facts(), "sha256": self._sha256}

    @cached_property
    def _sha256(self) -> str:
        return digest(self.path, "sha256")

    def _checked_size(self) -> int:
        if not self.path.is_file():
            found = "a folder" if self.path.is_dir() else "none there" if not self.path.exists() else "no plain file"
            raise UserError(f"data.path must be an existing file, found {found}: {self.path}")
        try:
            with self.path.open("rb") as file:
                begins = file.read(_LONGEST)
                size = self.path.stat().st_size
        except OSError as error:
            raise UserError(f"data.path cannot be read ({error.strerror}): {self.path}") from error
        for beginning, (kind, program) in COMPRESSED.items():
            if begins.startswith(beginning):
                raise UserError(f"data.path must not be compressed, found {kind}: {program} {self.path} unpacks it")
        if size < _LEAST_BYTES:
            raise UserError(f"data.path must have at least {_LEAST_BYTES} bytes, found {size}: {self.path}")
        return size
