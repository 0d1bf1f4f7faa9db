"""The quickstart corpus: deterministic, whole files, no file in two splits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data import quickstart
from src.data.portions import Portions
from src.data.quickstart import Quickstart, build_corpus, split_files
from src.errors import UserError


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = tmp_path / "library"
    for number in range(60):
        module = root / ("" if number % 2 else "package") / f"module{number}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(f"# module {number}\n" * 50)
    for left_out in ("site-packages/a.py", "test/b.py", "package/tests/c.py", "_sysconfigdata_x.py", "data.txt"):
        (root / left_out).parent.mkdir(parents=True, exist_ok=True)
        (root / left_out).write_text("LEFT OUT\n" * 100)
    return root


@given(sizes=st.lists(st.integers(0, 10_000), max_size=80))
def test_each_file_is_in_one_split_and_none_is_too_large(sizes: list[int]) -> None:
    files = {f"m{number}.py": size for number, size in enumerate(sizes)}
    splits = split_files(files)
    assert sorted(name for split in splits for name in split) == sorted(files)
    assert all(split == sorted(split) for split in splits)
    for held_out in splits[1:]:
        assert sum(files[name] for name in held_out) <= sum(sizes) * 5 // 100


def test_many_files_come_close_to_90_5_5() -> None:
    sizes = {f"package{number % 7}/module{number}.py": 1_000 + 37 * (number % 50) for number in range(500)}
    train, val, test = (sum(sizes[name] for name in split) for split in split_files(sizes))
    total = train + val + test
    assert 0.049 < val / total <= 0.05 and 0.049 < test / total <= 0.05


def test_the_corpus_is_the_files_split_by_split(library: Path, tmp_path: Path) -> None:
    corpus = build_corpus(library, tmp_path / "out")
    raw = corpus.path.read_bytes()
    listing = json.loads(corpus.path.with_suffix(".json").read_text())
    names = [*listing["train"], *listing["val"], *listing["test"]]
    assert len(names) == len(set(names)) == corpus.files == 60
    assert raw == b"".join((library / name).read_bytes() for name in names)
    assert b"LEFT OUT" not in raw
    assert corpus.sha256 == hashlib.sha256(raw).hexdigest() and corpus.sha256[:12] in corpus.path.name
    assert corpus.sizes[0] == sum((library / name).stat().st_size for name in listing["train"])
    assert build_corpus(library, tmp_path / "out") == corpus
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".bin", ".json"]


def test_a_changed_library_is_another_corpus(library: Path, tmp_path: Path) -> None:
    first = build_corpus(library, tmp_path / "out")
    (library / "module1.py").write_text("# changed\n")
    second = build_corpus(library, tmp_path / "out")
    assert first.path != second.path and first.path.exists() and second.path.exists()


def test_this_pythons_own_library_trains_and_covers_its_held_out_bytes(tmp_path: Path) -> None:
    data = Quickstart(tmp_path, Portions(512, 16))
    data.prepare_data()
    data.setup()
    facts = data.facts()
    assert data.train_bytes > 3_000_000 and 0.04 < data.val_bytes / int(facts["size"]) <= 0.05
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (16, 512)
    assert sum(int(batch.length.sum()) for batch in data.val_dataloader()) == data.val_bytes
    assert facts["label"].startswith("quickstart (Python 3.")  # type: ignore[union-attr]


def test_a_python_without_sources_is_named(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    with pytest.raises(UserError, match=r"data=quickstart needs .* source files, found 0 in"):
        build_corpus(tmp_path / "library", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(library: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"cannot write .*taken/quickstart/.* choose another paths\.data_dir"):
        build_corpus(library, tmp_path / "taken" / "quickstart")


def test_the_library_is_read_once(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(
        quickstart,
        "build_corpus",
        lambda *where: read.append(where) or build_corpus(*where),  # type: ignore[func-returns-value]
    )
    data = Quickstart(tmp_path, Portions(16, 4), library=library)
    data.prepare_data()
    data.setup()
    data.prepare_data()  # as Lightning does before each of its stages
    assert read == [(library, tmp_path / "quickstart")] and data.train_bytes > 0


def test_links_to_nowhere_and_folders_are_no_sources(library: Path, tmp_path: Path) -> None:
    files = build_corpus(library, tmp_path / "out").files
    (library / "nowhere.py").symlink_to(tmp_path / "none")
    (library / "folder.py").mkdir()
    assert build_corpus(library, tmp_path / "out").files == files
