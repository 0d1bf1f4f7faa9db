"""``python -m src.sample`` as a user types it: text, pictures, and one sentence for every mistake."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.runs import TINY, command, corpus, only_run, train_tiny


@pytest.fixture(scope="module")
def text_run(tmp_path_factory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory) -> Path:
    """Bytes read as pictures of 4 pixels a row: 48 bytes each."""
    folder = tmp_path_factory.mktemp("pictures")
    changes = ("data.context=48", "model.positions=image", "model.row=4", "attention=strided", "trainer.max_steps=3")
    done = command("train", *TINY, *changes, f"data.path={corpus(folder)}", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return only_run(folder)


def files(run: Path) -> set[str]:
    return {path.name for path in (run / "samples").iterdir()}


def test_text_goes_to_the_terminal_and_a_file(text_run):
    before = files(text_run)
    line = (f"run={text_run}", "prompt=sparse att", "length=20", "batch=2", "seed=3")
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
                   folder=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("window column")


def picture(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_unconditional_pictures(picture_run):
    done = command("sample", f"run={picture_run}", "batch=3", "seed=8", folder=picture_run.parent)
    assert done.returncode == 0, done.stderr
    side = 4 * 32 + 4
    assert picture(picture_run / "samples" / "best-seed8.png").shape == (2 * side + 4, 2 * side + 4, 3)


def test_completions_show_original_given_and_completions(picture_run):
    done = command("sample", f"run={picture_run}", "batch=2", "pictures.given=0.5", "pictures.completions=2", "seed=9",
                   folder=picture_run.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr
    grid = picture(picture_run / "samples" / "best-seed9.png")
    side = 4 * 32 + 4
    assert grid.shape == (2 * side + 4, 4 * side + 4, 3)
    tiles = [grid[4 : 4 + 128, 4 + j * side : 132 + j * side] for j in range(4)]
    assert all(np.array_equal(tile[:64], tiles[0][:64]) for tile in tiles)
    assert (tiles[1][64:] == 128).all()
    assert not np.array_equal(tiles[2][64:], tiles[3][64:])


def test_validation_leaves_completions_of_pictures(picture_run):
    assert "step-0000003.png" in files(picture_run)


WRONG = [
    ("text", ("prompt=" + "x" * 64,), "prompt must be shorter than the model's context of 64 bytes, found 64"),
    ("text", ("prompt=abc", "length=62"), "length must be at most 61 behind a prompt of 3 bytes"),
    ("text", ("length=0",), "length must be at least 1, found 0"),
    ("text", ("prompt_file=nowhere.txt",), "prompt_file=nowhere.txt cannot be read: No such file"),
    ("text", ("prompt=a", "prompt_file=b"), "prompt and prompt_file exclude each other"),
    ("text", ("temperature=-1",), "temperature must be at least 0, found -1.0"),
    ("text", ("temperature=nan",), "temperature must be at least 0, found nan"),
    ("text", ("top_p=0",), "top_p must be above 0 and at most 1, found 0.0"),
    ("text", ("top_p=1.5",), "top_p must be above 0 and at most 1, found 1.5"),
    ("text", ("top_k=0",), "top_k must be at least 1, found 0"),
    ("text", ("top_k=257",), "top_k must be below 257, found 257"),
    ("text", ("top_k=few",), "top_k must be an integer or null, found 'few'"),
    ("text", ("batch=0",), "batch must be at least 1, found 0"),
    ("text", ("seed=-1",), "seed must be at least 0, found -1"),
    ("text", ("temprature=1",), "temprature is not a key of the configuration: did you mean temperature?"),
    ("text", ("model.depth=3",), "model.depth cannot be changed for an existing run"),
    ("text", ("checkpoint=middle",), "checkpoint must be one of best, last, found 'middle'"),
    ("text", ("pictures.given=0.5",), "pictures.given is for pictures, found 0.5 for a text model"),
    ("picture", ("prompt=hello",), "prompt is for text, and this run's model draws pictures"),
    ("picture", ("length=5",), "length is for text, and this run's model draws whole pictures, found 5"),
    ("picture", ("pictures.given=1",), "pictures.given must be below 1, found 1.0"),
    ("picture", ("pictures.given=0.5", "pictures.first=1000"), "pictures.first + batch must be at most the "),
]


def refused(run: Path, arguments: tuple[str, ...], sentence: str) -> None:
    before = files(run)
    done = command("sample", f"run={run}", *arguments, folder=run.parent)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"error: {sentence}"), done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout
    assert files(run) == before


@pytest.mark.parametrize(("kind", "arguments", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_mistakes_end_with_one_sentence(text_run, picture_run, kind, arguments, sentence):
    refused(text_run if kind == "text" else picture_run, arguments, sentence)


def test_a_run_must_be_there(tmp_path):
    for arguments, sentence in (
        ((), "error: run has no value: give it as run=VALUE"),
        (("run=nowhere",), "error: nowhere is not a run directory"),
    ):
        done = command("sample", *arguments, folder=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(sentence), done.stderr


def test_checkpoints_that_are_none(text_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(text_run, run)
    best = run / "checkpoints" / "best.ckpt"
    whole = best.read_bytes()
    best.write_bytes(whole[: len(whole) // 2])
    refused(run, (), f"{best} cannot be read as a checkpoint: the file is damaged or something else")
    best.unlink()
    refused(run, (), f"{best} does not exist: the run has no best checkpoint yet")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state["state_dict"] = {name: x[..., :1] for name, x in state["state_dict"].items()}
    torch.save(state, best)
    refused(run, (), f"{best} is of another model than the config.yaml of its run describes")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["accelerator"] = "gpu"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    done = command("sample", f"run={run}", folder=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.stderr.startswith("error: trainer.accelerator=gpu needs a CUDA GPU")
