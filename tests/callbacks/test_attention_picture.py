"""What heads attend to, drawn at validation and by ``scripts.figures.draw_attention``, for text and for pictures."""

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from tests.tiny_runs import command, environment, train_tiny

SHORT = ("trainer.max_steps=4", "trainer.val_every=2", "logger.attention_picture=true", "logger.sample_bytes=0")
PICTURES = ("data.context=48", "model.positions=image", "model.row=4", "attention=strided", "logger.sample_pictures=0")


@pytest.fixture(scope="module")
def text_run(tmp_path_factory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("text"), *SHORT, "logger.kind=wandb", WANDB_MODE="offline")


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("pictures"), *SHORT, *PICTURES)


def drawn(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "scripts.figures.draw_attention", str(run), *arguments]
    return subprocess.run(line, cwd=run.parent.parent, env=environment(), capture_output=True, text=True, check=False)


def colours(file: Path) -> int:
    return len(Image.open(file).convert("RGB").getcolors(1 << 24))


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_each_validation_leaves_a_picture(kind, request):
    run = request.getfixturevalue(f"{kind}_run")
    files = sorted((run / "attention").iterdir())
    assert [file.name for file in files] == ["step-0000002.png", "step-0000004.png"]
    assert all(colours(file) > 20 for file in files)
    assert files[0].read_bytes() != files[1].read_bytes()


def test_wandb_has_them_too(text_run):
    (folder,) = (text_run / "wandb").glob("offline-run-*")
    logged = sorted((folder / "files" / "media" / "images" / "attention").glob("learned_*.png"))
    kept = sorted((text_run / "attention").iterdir())
    assert [file.read_bytes() for file in logged] == [file.read_bytes() for file in kept]


@pytest.mark.slow
def test_it_is_drawn_from_weights_in_shares(tmp_path):
    shares = ("trainer.devices=2", "trainer.strategy=fsdp2", "precision=fp32", "data.workers=0")
    run = train_tiny(tmp_path, *SHORT, *shares)
    assert len(list((run / "attention").iterdir())) == 2


@pytest.mark.slow
def test_the_script_draws_the_byte_that_it_is_asked_for(text_run, picture_run, tmp_path):
    done = drawn(picture_run, "--query", "2,3,1", "--blocks", "1", "--heads", "1,0", "--item", "2")
    assert done.returncode == 0, done.stderr
    file = picture_run / "attention" / f"best-test2-byte{(2 * 4 + 3) * 3 + 1}.png"
    assert done.stdout == f"{file}\n" and colours(file) > 20
    (tmp_path / "mine.txt").write_bytes(b"sparse attention window " * 9)  # longer than the context
    done = drawn(text_run, "--file", str(tmp_path / "mine.txt"), "--out", str(tmp_path / "new" / "mine.png"))
    assert done.returncode == 0, done.stderr
    assert colours(tmp_path / "new" / "mine.png") > 20


@pytest.mark.slow
def test_the_script_takes_a_picture_of_ones_own(picture_run, tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    done = drawn(picture_run, "--file", str(tmp_path / "mine.png"), "--out", str(tmp_path / "drawn.png"))
    assert done.returncode == 0, done.stderr
    seen = {
        tuple(pixel)
        for pixel in (matplotlib.image.imread(tmp_path / "drawn.png")[..., :3] * 255).round().reshape(-1, 3)
    }
    assert {tuple(map(float, pixel)) for pixel in pixels.reshape(-1, 3)} <= seen


WRONG = [
    ("text", ("--query", "64"), "--query must be one position below 64, found 64"),
    ("text", ("--query", "3,4"), "--query must be one position below 64, found 3,4"),
    ("text", ("--query", "-1"), "--query must be whole numbers with commas between them, found '-1'"),
    ("text", ("--blocks", "0,2"), "--blocks must be numbers from 0 to 1 in this run, found 0,2"),
    ("text", ("--heads", "x"), "--heads must be whole numbers with commas between them, found 'x'"),
    ("text", ("--item", "9999"), "--item must be from 0 to "),
    ("text", ("--file", "nowhere.txt"), "--file nowhere.txt cannot be read: No such file"),
    ("text", ("--out", "corpus.txt/a.png"), "corpus.txt/a.png cannot be written: "),
    ("picture", ("--query", "4,0"), "--query must be ROW,COLUMN,CHANNEL below 4,4,3, found 4,0"),
    ("picture", ("--file", "corpus.txt"), "corpus.txt must be an 8-bit RGB PNG of 4 x 4 pixels, and it is no PNG"),
]


@pytest.mark.parametrize(("kind", "arguments", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_mistakes_end_with_one_sentence(kind, arguments, sentence, request):
    run = request.getfixturevalue(f"{kind}_run")
    before = sorted(run.parents[1].rglob("*"))
    done = command("draw_attention", str(run), "=".join(arguments), folder=run.parents[1])
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"error: {sentence}") and done.stderr.count("\n") == 1, done.stderr
    assert sorted(run.parents[1].rglob("*")) == before
