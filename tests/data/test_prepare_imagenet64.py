"""Preparing ImageNet 64x64: right rows, every bad picture named, the same file after a kill."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from src.data.imagenet64 import ImageNet64
from src.data.picture_prepare import Preparation, find_splits
from src.data.png import BadPictureError, decode_png
from src.data.portions import Portions
from src.errors import UserError
from tests.data.picture_files import planes, png, tar

PNG = png()


def files(count: int, split: str = "train") -> dict[str, bytes]:
    return {f"{split}_64x64/{n:07d}.png": png(seed=n) for n in range(count)}


def prepare(folder: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    settings = {"skip_bad": False, "allow_partial": True, "workers": 1, "chunk": 4, **options}
    return [Preparation(split, out, **settings).run() for split in find_splits(folder)]


def archives(folder: Path, train: dict[str, bytes]) -> None:
    tar(folder / "train_64x64.tar", train)
    tar(folder / "valid_64x64.tar", files(3, "valid"))


def pixels(raw: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(raw))).reshape(-1)


@pytest.mark.parametrize("workers", [1, 2])
def test_pictures_are_sorted_by_name_and_opened(tmp_path: Path, workers: int) -> None:
    train = files(11)
    archives(tmp_path, dict(reversed(train.items())))
    prepare(tmp_path, tmp_path / "imagenet64", workers=workers)
    rows = np.load(tmp_path / "imagenet64" / "train.npy", mmap_mode="r")
    assert (rows == np.stack([pixels(raw) for raw in train.values()])).all()
    data = ImageNet64(tmp_path, Portions(12288, 2), allow_partial=True)
    data.setup()
    assert data.partial and "partial: 11 + 3 of 1,281,149 + 49,999" in data.label
    assert "test is the validation split" in data.label and data.test_bytes == 3 * 12288
    with pytest.raises(UserError, match=r"data.allow_partial=true"):
        ImageNet64(tmp_path, Portions(12288, 2)).setup()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_batches_are_turned_and_labelled(tmp_path: Path, save: Any) -> None:
    for name, count in (("train_data_batch_1", 6), ("train_data_batch_2", 5), ("val_data", 2)):
        save(tmp_path / f"{name}.npz", data=planes(count, 64, count), labels=np.arange(count))
    known = prepare(tmp_path, tmp_path / "imagenet64")[0]
    assert known["pictures"] == 11 and "not comparable" in known["label"]
    rows = np.load(tmp_path / "imagenet64" / "train.npy").reshape(11, 4096, 3).transpose(0, 2, 1).reshape(11, -1)
    assert (rows == np.concatenate([planes(6, 64, 6), planes(5, 64, 5)])).all()


BAD = {
    "empty": (b"", "is empty"),
    "no png": (b"GIF89a" * 50, "is no PNG"),
    "cut": (PNG[:5000], "is cut short"),
    "flipped": (PNG[:5000] + bytes([PNG[5000] ^ 1]) + PNG[5001:], "is damaged"),
    "small": (png(32), "is 32 x 32 pixels"),
    "grey": (png(mode="L"), "is greyscale"),
    "palette": (png(mode="P"), "is palette"),
    "alpha": (png(mode="RGBA"), "is RGBA"),
    "grey alpha": (png(mode="LA"), "is greyscale with alpha"),
    "16 bit": (png(mode="I;16"), "is greyscale"),
    "more": (PNG + b"x", "has bytes behind its end"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_refused_by_name_or_skipped_and_listed(tmp_path: Path, kind: str) -> None:
    raw, reason = BAD[kind]
    train = files(9)
    name = "train_64x64/0000005.png"
    archives(tmp_path, train | {name: raw})
    with pytest.raises(UserError, match=rf"train_64x64.tar: {name} {reason}"):
        prepare(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "train.npy").exists()
    known = prepare(tmp_path, tmp_path / "out", skip_bad=True)[0]
    assert [item["member"] for item in known["skipped"]] == [name] and known["pictures"] == 8
    kept = [pixels(raw) for key, raw in train.items() if key != name]
    assert (np.load(tmp_path / "out" / "train.npy") == np.stack(kept)).all()


@given(st.integers(0, len(PNG) - 1), st.integers(1, 255))
def test_any_changed_byte_and_any_cut_is_noticed(place: int, change: int) -> None:
    changed = bytearray(PNG)
    changed[place] ^= change
    for raw in (bytes(changed), PNG[:place]):
        with pytest.raises(BadPictureError):
            decode_png(raw, 64)


def test_wrong_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image-net.org"):
        find_splits(tmp_path)
    archives(tmp_path, files(5))
    with pytest.raises(UserError, match=r"must hold 1,281,149 train pictures, found 5"):
        prepare(tmp_path, tmp_path / "out", allow_partial=False)
    path = tmp_path / "train_64x64.tar"
    whole = path.read_bytes()
    for raw in (b"", b"x" * 2000, whole[:9000], whole[: 13 * 512]):
        path.write_bytes(raw)
        with pytest.raises(UserError, match=r"train_64x64.tar"):
            prepare(tmp_path, tmp_path / "out")
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("train_64x64/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UserError, match="must be a plain file"):
        prepare(tmp_path, tmp_path / "out")


def test_without_prepared_files_the_user_is_told_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image-net.org .* python -m scripts.prepare_imagenet64"):
        ImageNet64(tmp_path, Portions(12288, 2)).setup()


def test_a_killed_preparation_goes_on_and_gives_the_same_file(tmp_path: Path) -> None:
    raw = png()
    archives(tmp_path, {f"train_64x64/{n:07d}.png": raw for n in range(9000)})
    line = [sys.executable, "-m", "scripts.prepare_imagenet64", str(tmp_path), "--allow-partial", "--workers", "1"]
    killed = subprocess.Popen([*line, "--out", str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    journal = tmp_path / "killed" / ".train.journal"
    while not (journal.exists() and journal.read_text().count("\n") >= 3):
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = journal.read_bytes()
    assert not (tmp_path / "killed" / "train.npy").exists()
    again = Preparation(find_splits(tmp_path)[0], tmp_path / "killed", skip_bad=False, allow_partial=True, workers=1)
    assert len(again._begin(9000)) == done.count(b"\n") - 1 >= 2
    again.run()
    prepare(tmp_path, tmp_path / "whole", chunk=1024)
    assert (tmp_path / "killed/train.npy").read_bytes() == (tmp_path / "whole/train.npy").read_bytes()
