"""``python -m src.sample`` as a user types it: text and pictures. Mistakes: test_bad_pictures_and_samples.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.tiny_runs import TINY, command, corpus, only_run, train_tiny

ALONE = "logger.kind=none"  # without wandb, which takes a second


@pytest.fixture(scope="module")
def text_run(tmp_path_factory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("text"), "logger.kind=wandb")


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory) -> Path:
    """Bytes read as pictures of 4 pixels a row: 48 bytes each."""
    folder = tmp_path_factory.mktemp("pictures")
    changes = ("data.context=48", "model.positions=image", "model.row=4", "attention=strided", "trainer.max_steps=3",
               "logger.kind=wandb")  # fmt: skip
    done = command("train", *TINY, *changes, f"data.path={corpus(folder)}", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return only_run(folder)


def files(run: Path) -> set[str]:
    return {path.name for path in (run / "samples").iterdir()}


def test_text_goes_to_the_terminal_and_a_file(text_run):
    before = files(text_run)
    line = (f"run={text_run}", "prompt=sparse att", "length=20", "batch=2", "seed=3", ALONE)
    said = [command("sample", *line, folder=text_run.parent) for _ in range(2)]
    assert said[0].returncode == 0, said[0].stderr
    assert said[0].stdout == said[1].stdout
    assert said[0].stdout.count("sparse att") == 2
    new = files(text_run) - before
    assert new == {"best-seed3.txt", "best-seed3_2.txt"}
    assert (text_run / "samples" / "best-seed3.txt").read_text() == said[0].stdout
    assert "bytes/s" in said[0].stderr


def test_prompt_file_and_whole_context(text_run, tmp_path):
    (tmp_path / "prompt.bin").write_bytes(b"window column")
    done = command("sample", f"run={text_run}", f"prompt_file={tmp_path / 'prompt.bin'}", "batch=1", "temperature=0",
                   ALONE, folder=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("window column")


def logged(run: Path, kind: str) -> list[bytes]:
    """What the run's own wandb run has of a kind, over all its offline folders."""
    folders = list((run / "wandb").glob("offline-run-*"))
    assert {folder.name.rpartition("-")[2] for folder in folders} == {(run / "wandb_id").read_text().strip()}
    return [file.read_bytes() for folder in folders for file in (folder / "files" / "media").glob(kind)]


def test_wandb_has_the_samples_too(text_run, picture_run):
    done = command(
        "sample", f"run={text_run}", "prompt=block ", "length=9", "batch=2", "seed=20", folder=text_run.parent
    )
    assert done.returncode == 0, done.stderr
    tables = [json.loads(raw) for raw in logged(text_run, "table/sampled/text_*.table.json")]
    rows = [table["data"] for table in tables]
    texts = done.stdout.split("===== sample 2 of 2 =====\n")
    assert [[texts[0].partition("\n")[2][:-1]], [texts[1][:-1]]] in rows
    done = command("sample", f"run={picture_run}", "batch=1", "seed=21", folder=picture_run.parent)
    assert done.returncode == 0, done.stderr
    pictures = logged(picture_run, "images/sampled/pictures_*.png")
    assert (picture_run / "samples" / "best-seed21.png").read_bytes() in pictures


def test_logging_can_be_left_out(text_run):
    before = len(list((text_run / "wandb").iterdir()))
    done = command("sample", f"run={text_run}", "length=3", "logger.kind=none", "seed=22", folder=text_run.parent)
    assert done.returncode == 0, done.stderr
    assert len(list((text_run / "wandb").iterdir())) == before


def picture(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_unconditional_pictures(picture_run):
    done = command("sample", f"run={picture_run}", "batch=3", "seed=8", ALONE, folder=picture_run.parent)
    assert done.returncode == 0, done.stderr
    side = 4 * 32 + 4
    assert picture(picture_run / "samples" / "best-seed8.png").shape == (2 * side + 4, 2 * side + 4, 3)


def test_completions_show_original_given_and_completions(picture_run):
    done = command("sample", f"run={picture_run}", "batch=2", "pictures.given=0.5", "pictures.completions=2", "seed=9",
                   ALONE, folder=picture_run.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr
    grid = picture(picture_run / "samples" / "best-seed9.png")
    side = 4 * 32 + 4
    assert grid.shape == (2 * side + 4, 4 * side + 4, 3)
    tiles = [grid[4 : 4 + 128, 4 + j * side : 132 + j * side] for j in range(4)]
    assert all(np.array_equal(tile[:64], tiles[0][:64]) for tile in tiles)
    assert (tiles[1][64:] == 128).all()
    assert not np.array_equal(tiles[2][64:], tiles[3][64:])


def test_a_picture_of_ones_own_is_completed(picture_run, tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    done = command("sample", f"run={picture_run}", "pictures.given=0.5", f"pictures.file={tmp_path / 'mine.png'}",
                   "seed=23", ALONE, folder=picture_run.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr
    grid = picture(picture_run / "samples" / "best-seed23.png")
    side = 4 * 32 + 4
    assert grid.shape == (side + 4, 5 * side + 4, 3)
    assert np.array_equal(grid[4 : 4 + 128 : 32, 4 : 4 + 128 : 32], pixels)
    assert np.array_equal(grid[4 : 4 + 64 : 32, 4 + 2 * side : 132 + 2 * side : 32], pixels[:2])


def test_validation_leaves_completions_of_pictures(picture_run):
    assert "step-0000003.png" in files(picture_run)


def test_a_gpu_that_is_not_there_is_missed(text_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(text_run, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["accelerator"] = "gpu"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    done = command("sample", f"run={run}", folder=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.startswith("error: trainer.accelerator=gpu needs a CUDA GPU") and done.stderr.count("\n") == 1
