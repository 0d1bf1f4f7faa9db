"""The quickstart corpus: the running Python's own standard library, so that nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sysconfig
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from src.data.base import Splits, WindowDataModule
from src.data.files import written_whole
from src.data.portions import Portions
from src.errors import UserError

# Not the library's own code, or code of another kind: other people's packages, tests and their data, an
# editor and its demonstrations, a converter's test-like tables.
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "lib2to3", "__pycache__"}
)
_OF_THE_MACHINE = (
    "_sysconfigdata",
    "sitecustomize",
    "usercustomize",
)  # written by whoever built or set up Python


@dataclass(frozen=True)
class Corpus:
    """A built corpus.

    Args:
        path: the raw file: training, validation and test files one after the other.
        sizes: bytes of the three splits.
        files: source files in it.
        sha256: checksum of the raw file.
    """

    path: Path
    sizes: tuple[int, int, int]
    files: int
    sha256: str


class Quickstart(WindowDataModule):
    """The Python standard library as a corpus of bytes.

    Args:
        data_dir: where the raw file is written, as ``quickstart/python-<version>-<checksum>.bin``.
        portions: of a sequence, a batch and the order.
        library: the folder of source files; None for the running Python's own.
    """

    def __init__(
        self,
        data_dir: Path,
        portions: Portions,
        *,
        library: Path | None = None,
    ) -> None:
        super().__init__(portions)
        self.folder = Path(data_dir) / "quickstart"
        self.library = library or Path(sysconfig.get_paths()["stdlib"])

    def prepare_data(self) -> None:
        """Write the corpus, unless it is there."""
        _ = self._corpus

    def open_splits(self) -> Splits:
        """Open the corpus; the splits hold whole files."""
        corpus = self._corpus
        label = f"quickstart (Python {platform.python_version()} standard library)"
        return self.windows(corpus.path, corpus.sizes, label, False, sha256=corpus.sha256, files=corpus.files)

    @cached_property
    def _corpus(self) -> Corpus:
        return build_corpus(self.library, self.folder)


def build_corpus(library: Path, folder: Path) -> Corpus:
    """Concatenate the source files of a library, split by split, each split sorted by path.

    Args:
        library: folder of the source files.
        folder: where the raw file goes; one that is there already is taken as it is.

    Raises:
        UserError: there are too few source files, or the folder cannot be written.
    """
    files = {path.relative_to(library).as_posix(): path.read_bytes() for path in _sources(library)}
    splits = split_files({name: len(content) for name, content in files.items()})
    if not all(splits):
        raise UserError(
            f"data=quickstart needs the standard library's source files, found {len(files)} in {library}; "
            "use a Python installed with its sources, or data=bytes data.path=FILE"
        )
    contents = [b"".join(files[name] for name in names) for names in splits]
    raw = b"".join(contents)
    sha256 = hashlib.sha256(raw).hexdigest()
    path = folder / f"python-{platform.python_version()}-{sha256[:12]}.bin"
    train, val, test = map(len, contents)
    corpus = Corpus(path, (train, val, test), len(files), sha256)
    if not (path.is_file() and path.stat().st_size == len(raw)):
        with written_whole(path) as file:
            file.write(raw)
        with written_whole(path.with_suffix(".json")) as file:
            listing = dict(zip(("train", "val", "test"), splits, strict=True))
            file.write(json.dumps({**asdict(corpus), "path": path.name, **listing}, indent=1).encode())
    return corpus


def split_files(sizes: dict[str, int]) -> tuple[list[str], list[str], list[str]]:
    """Deal whole files out to training, validation and test, about 90/5/5 by bytes; each list sorted by path.

    A cut through the sorted list would put the end of the alphabet (xml, zipfile, ...) into the test split,
    which is unlike the rest. So files are taken in the order of a hash of their path: as good as drawn at
    random, yet the same on every machine. A file goes to test if it still fits into its 5%, else to
    validation if it fits there, else to training; so no single large file makes up a held-out split.

    Args:
        sizes: bytes of each file by its path.

    Returns:
        The paths of the training, validation and test files.
    """
    train: list[str] = []
    val: list[str] = []
    test: list[str] = []
    test_room = val_room = sum(sizes.values()) * 5 // 100
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        size = sizes[name]
        if size <= test_room:
            test.append(name)
            test_room -= size
        elif size <= val_room:
            val.append(name)
            val_room -= size
        else:
            train.append(name)
    return sorted(train), sorted(val), sorted(test)


def _sources(library: Path) -> list[Path]:
    found: list[Path] = []
    for folder, inner, names in os.walk(library):
        inner[:] = [name for name in inner if name not in _LEFT_OUT]  # does not walk through other people's packages
        own = (name for name in names if name.endswith(".py") and not name.startswith(_OF_THE_MACHINE))
        found += [path for name in own if (path := Path(folder, name)).is_file()]
    return sorted(found)
