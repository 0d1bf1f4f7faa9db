"""CIFAR-10 in every form, and every wrong file refused with nothing of it run; on small stand-ins."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.data import cifar10_files
from src.data.cifar10 import Cifar10
from src.data.portions import Portions
from src.errors import UserError
from tests.data.picture_files import batch, cifar, planes, tar

FOLDER = "cifar-10-batches-py"


def opened(folder: Path, **options: Any) -> Cifar10:
    data = Cifar10(folder, Portions(3072, 4), **{"allow_partial": True, **options})
    data.prepare_data()
    data.setup()
    return data


def archive(folder: Path, files: dict[str, bytes], name: str = "cifar-10-python.tar.gz", mode: str = "w:gz") -> Path:
    return tar(folder / "cifar10" / name, {f"{FOLDER}/{key}": raw for key, raw in files.items()}, mode)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(("name", "mode"), [("python.tar.gz", "w:gz"), ("python-part.tar.xz", "w:xz"), ("", "")])
def test_every_form_is_read_in_row_column_channel_order(tmp_path: Path, name: str, mode: str, protocol: int) -> None:
    files = cifar(data_batch_1=batch(10, 0, protocol))
    if mode:
        archive(tmp_path, files, f"cifar-10-{name}", mode)
    else:
        (tmp_path / FOLDER).mkdir()
        for key, raw in files.items():
            (tmp_path / FOLDER / key).write_bytes(raw)
    data = opened(tmp_path)
    assert data.label == "CIFAR-10, partial: 50 + 10 of 50,000 + 10,000 pictures" and data.partial
    assert (data.train_sequences, data.val_bytes, data.test_bytes) == (48, 2 * 3072, 10 * 3072)
    first = data.splits.train.batch(np.zeros(1, np.int64), np.zeros(1, np.int64)).x[0].reshape(32, 32, 3).numpy()
    assert (first.transpose(2, 0, 1).ravel() == planes(10, 32, 0)[0]).all()
    held = data.splits.val.batch(np.arange(2)).x.reshape(2, 1024, 3).numpy()
    assert (held.transpose(0, 2, 1).reshape(2, -1) == planes(10, 32, 4)[8:]).all()


def test_other_files_than_the_official_need_permission(tmp_path: Path) -> None:
    archive(tmp_path, cifar())
    with pytest.raises(UserError, match=r"data_batch_1 must have md5 c99cafc1.*allow_partial=true"):
        opened(tmp_path, allow_partial=False)


class Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> Any:
        return self.parts


def evil(marker: Path) -> dict[str, bytes]:
    run = Evil(os.system, f"touch {marker}")
    nested = np.empty(2, dtype=object)
    nested[:] = [run, run]
    rot = b"c_codecs\nencode\n(V" + str(marker).encode() + b"\nVrot13\ntR."
    return {
        "system": pickle.dumps({b"data": run}, 2),
        "eval": pickle.dumps(Evil(eval, f"open({str(marker)!r}, 'w')"), 2),
        "exec": pickle.dumps(Evil(exec, f"open({str(marker)!r}, 'w')"), 5),
        "nested": pickle.dumps({b"data": nested, b"labels": [0, 1]}, 4),
        "getattr": pickle.dumps(Evil(getattr, "text", "upper"), 4),
        "codec": rot,
        "numpy": pickle.dumps(Evil(np.load, str(marker)), 4),
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.tofile\x93.",
        "persistent": b"\x80\x02Vx\nQ.",
    }


@pytest.mark.parametrize("kind", evil(Path("x")))
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "ran"
    archive(tmp_path, cifar(data_batch_2=evil(marker)[kind]))
    with pytest.raises(UserError, match=r"data_batch_2 is (refused|no readable pickle)"):
        opened(tmp_path)
    assert not marker.exists() and not list((tmp_path / "cifar10").glob("*.npy"))


WRONG = {
    "empty": (b"", "damaged or cut short"),
    "cut": (batch(10)[:9000], "damaged or cut short"),
    "noise": (b"\xff\x00nothing", "damaged or cut short"),
    "list": (pickle.dumps([1, 2]), "must hold a dictionary, found list"),
    "no data": (batch(10, data=None), "must hold an array 'data', found NoneType"),
    "float": (batch(10, data=np.zeros((10, 3072))), "must hold uint8, found f8"),
    "objects": (batch(1, data=np.array([[None]])), "must hold uint8, found O8"),
    "shape": (batch(10, data=np.zeros((10, 3071), np.uint8)), "found \\(10, 3071\\)"),
    "flat": (batch(10, data=np.zeros(3072, np.uint8)), "found \\(3072,\\)"),
    "none": (batch(0, protocol=4), r"found \(0, 3072\)"),
    "labels": (batch(10, labels=[1]), "must be a list of 10, one a picture, found 1"),
    "no labels": (batch(10, labels=None), "found NoneType"),
    "label": (batch(1, labels=[10]), "from 0 to 9, found 10"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_batch_is_named_in_one_sentence(tmp_path: Path, kind: str) -> None:
    raw, sentence = WRONG[kind]
    archive(tmp_path, cifar(test_batch=raw))
    with pytest.raises(UserError, match=sentence) as refused:
        opened(tmp_path)
    assert "test_batch" in str(refused.value) and "\n" not in str(refused.value)


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    path = archive(tmp_path, cifar())
    whole = path.read_bytes()
    for raw in (b"", b"nothing" * 500, whole[: len(whole) // 2]):
        path.write_bytes(raw)
        with pytest.raises(UserError, match=r"cifar-10-python.tar.gz cannot be read"):
            opened(tmp_path)


def no_reading(source: Path) -> dict[str, bytes]:
    raise AssertionError(f"{source} is unpacked again")


def test_an_archive_is_unpacked_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path, cifar())
    with monkeypatch.context() as patch:
        first = opened(tmp_path)
        patch.setattr(cifar10_files, "read_batches", no_reading)
        first.prepare_data()  # as Lightning does before each of its stages
        second = opened(tmp_path)  # another process, another job
        assert second.facts() == first.facts() and second.label == first.label
        with pytest.raises(UserError, match="must have md5"):
            opened(tmp_path, allow_partial=False)
        os.utime(path, ns=(0, 0))
        with pytest.raises(AssertionError, match="unpacked again"):
            opened(tmp_path)
    archive(tmp_path, cifar(test_batch=batch(20, 9)))
    assert opened(tmp_path).test_bytes == 20 * 3072


@pytest.mark.parametrize("found", ["", "[]", '{"size": 1}', "{"])
def test_a_damaged_memory_of_checksums_is_made_anew(tmp_path: Path, found: str) -> None:
    archive(tmp_path, cifar())
    facts = opened(tmp_path).facts()
    memory = tmp_path / "cifar10" / "cifar-10-python.tar.gz.md5s.json"
    whole = memory.read_text()
    memory.write_text(found)
    assert opened(tmp_path).facts() == facts and memory.read_text() == whole


def test_a_lost_file_of_pictures_is_written_again(tmp_path: Path) -> None:
    archive(tmp_path, cifar())
    opened(tmp_path)
    pictures, _ = sorted((tmp_path / "cifar10").glob("pictures-*.npy"), key=lambda path: len(path.name))
    whole = pictures.read_bytes()
    pictures.unlink()
    opened(tmp_path)
    assert pictures.read_bytes() == whole


def test_a_wrong_context_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.context must be 3072"):
        Cifar10(tmp_path, Portions(3000, 4))
    with pytest.raises(UserError, match=r"data.path must be"):
        opened(tmp_path, path=tmp_path / "none")
