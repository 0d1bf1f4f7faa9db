"""Every kind of bad input to pictures, sampling and attention pictures ends with one sentence, and changes no file.

The commands run in this process, as they are but for their start: the whole table takes seconds. Two of them are run
once more as a user types them, at the end.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import prepare_imagenet64
from scripts.figures import draw_attention
from scripts.paper import histogram_baseline
from src.config import command_line
from src.sample import sample
from tests.bad.spoiled import (
    BEST,
    CIFAR,
    IMAGENET,
    PART,
    PNG,
    ROWS,
    SIZE,
    SMALL,
    TRUNCATED,
    Case,
    Evil,
    archive,
    cut,
    evil_checkpoint,
    no_rows,
    of_another_model,
    of_pictures,
    of_text,
    on_cifar,
    on_mine,
    on_pictures,
    on_tars,
    on_text,
    prepared,
    rgba,
    tars,
    used,
    written,
)  # fmt: skip
from tests.data.picture_files import batch, cifar, png, tar
from tests.tiny_runs import command

PROGRAMS: dict[str, Callable[[], Any]] = {
    "sample": lambda: command_line.command("sample", sample),
    "prepare": prepare_imagenet64.main,
    "baseline": histogram_baseline.main,
    "draw": draw_attention.main,
}

CASES: dict[str, Case] = {
    # CIFAR-10
    "empty archive": on_cifar(written(PART, b""), f"data/.*{PART[5:]} cannot be read"),
    "archive of something else": on_cifar(written(PART, b"hello" * 999), "cannot be read .* damaged or cut"),
    "truncated archive": on_cifar(lambda f: cut(archive(f)), "cannot be read .* damaged or cut short"),
    "archive without batches": on_cifar(lambda f: tar(f / PART, {"a": b""}, "w:gz"), "must hold test_batch"),
    "no test batch": on_cifar(lambda f: archive(f, test_batch=b"left out"), "must hold test_batch and at le"),
    "truncated pickle": on_cifar(lambda f: archive(f, data_batch_3=TRUNCATED), "data_batch_3 .*cut short"),
    "malicious pickle": on_cifar(lambda f: archive(f, data_batch_2=pickle.dumps(Evil())), "_2 is refused"),
    "wrong shape": on_cifar(lambda f: archive(f, test_batch=batch(10, data=ROWS)), r"found \(10, 3071\)"),
    "labels missing": on_cifar(lambda f: archive(f, test_batch=batch(10, labels=[])), "must be a list of 10"),
    "too few pictures": on_cifar(
        lambda f: tar(f / PART, {"data_batch_1": batch(1), "test_batch": batch(1)}, "w:gz"),
        "has 1 training and 1 test pictures, too few",
    ),
    "wrong checksum": (
        "baseline", ("experiment=cifar10", "data.path=data"),
        lambda f: [written(f"data/cifar-10-batches-py/{name}", raw)(f) for name, raw in cifar().items()],
        "data_batch_1 must have md5 c99cafc1.* set data.allow_partial=true",
    ),
    "path to nowhere": ("baseline", (*CIFAR, "data.path=gone"), lambda f: None, "data.path must be a CIFAR-10 arch"),
    "wrong context": ("baseline", (*CIFAR, "data.context=3000"), archive, "data.context must be 3072"),
    "mapped file cut short": on_cifar(lambda f: cut(used(f)), "it is damaged or cut short; remove it"),
    # ImageNet 64x64
    "no archives": ("prepare", (".",), lambda f: None, "must hold train_64x64.tar and valid_64x64.tar, or"),
    "no folder": ("prepare", ("gone",), lambda f: None, "gone must hold train_64x64.tar"),
    "empty tar": on_tars(lambda f: [tars(f), written("train_64x64.tar", b"")(f)], "train_"),
    "truncated tar": on_tars(lambda f: [tars(f), cut(f / "train_64x64.tar")], "cut short"),
    "greyscale PNG": on_tars(lambda f: tars(f, png(mode="L")), "x.png is greyscale"),
    "PNG with alpha": on_tars(lambda f: tars(f, png(mode="RGBA")), "x.png is RGBA"),
    "small PNG": on_tars(lambda f: tars(f, SMALL), "x.png is 32 x 32 pixels"),
    "truncated PNG": on_tars(lambda f: tars(f, PNG[:3000]), "x.png is cut short"),
    "no PNG": on_tars(lambda f: tars(f, b"GIF89a" * 9), "x.png is no PNG"),
    "empty PNG": on_tars(lambda f: tars(f, b""), "x.png is empty"),
    "too few archived": ("prepare", (".",), tars, "must hold 1,281,149 train pictures, found 6"),
    "out is a file": ("prepare", (".", "--allow-partial", "--out=o"), lambda f: [tars(f), written("o", b"")(f)], "o"),
    "both releases": ("prepare", (".",), lambda f: [tars(f), written("val_data.npz", b"")(f),
                                                    written("train_data_batch_1.npz", b"")(f)], "of one release alone"),
    "never prepared": ("baseline", IMAGENET, lambda f: None, "python -m scripts.prepare_imagenet64"),
    "prepared file cut short": ("baseline", IMAGENET, prepared, "train.npy cannot be mapped"),
    # runs and checkpoints
    "run missing": ("sample", ("run=gone",), lambda f: None, "gone is not a run directory: there is no such folder"),
    "no run named": ("sample", (), lambda f: None, "run has no value: give it as run=VALUE"),
    "run without config": ("sample", ("run=run",), written("run/a", b""), "it holds no config.yaml"),
    "damaged config": ("sample", ("run=run",), of_text(lambda f: cut(f / "run/config.yaml", 0.33)), "cannot be read:"),
    "config is noise": ("sample", ("run=run",), written("run/config.yaml", b"\xff\x00{["), "cannot be read:"),
    "no checkpoint": ("sample", ("run=run",), of_text(lambda f: (f / BEST).unlink()), "has no best checkpoint yet"),
    "no last checkpoint": on_text("checkpoint=last", "has no last checkpoint yet"),
    "truncated checkpoint": ("sample", ("run=run",), of_text(lambda f: cut(f / BEST)), f"{BEST} cannot be read as a"),
    "empty checkpoint": ("sample", ("run=run",), of_text(written(BEST, b"")), f"{BEST} cannot be read as a checkpoint"),
    "malicious checkpoint": ("sample", ("run=run",), of_text(evil_checkpoint), f"{BEST} cannot be read as a che"),
    "other checkpoint": ("sample", ("run=run",), of_text(of_another_model), f"{BEST} is of another model than the co"),
    "draw: no run": ("draw", ("gone",), lambda f: None, "gone is not a run directory"),
    "draw: no checkpoint": ("draw", ("run",), of_text(lambda f: (f / BEST).unlink()), "has no best checkpoint yet"),
    "draw: truncated": ("draw", ("run", "--file=t"), of_text(lambda f: [cut(f / BEST), written("t", b"a")(f)]), BEST),
    "draw: no data": ("draw", ("run",), of_text(), "data.path must be an existing file, found none there"),
    "draw: empty file": ("draw", ("run", "--file=t"), of_text(written("t", b"")), "--file t must hold text, found"),
    # prompts
    "prompt too long": on_text("prompt=" + "x" * 64, "prompt must be shorter than the model's"),
    "prompt and length too long": on_text("prompt=abc length=62", "length must be at most 61"),
    "prompt file missing": on_text("prompt_file=gone", "prompt_file=gone cannot be read: No"),
    "prompt file is a folder": on_text("prompt_file=run", "prompt_file=run cannot be read: Is"),
    "prompt file empty": ("sample", ("run=run", "prompt_file=p"), of_text(written("p", b"")), "prompt_file=p is empty"),
    "prompt file too long": ("sample", ("run=run", "prompt_file=p"), of_text(written("p", b"x" * 99)), "prompt_file m"),
    "prompt and prompt file": on_text("prompt=a prompt_file=b", "exclude each other"),
    "prompt for pictures": on_pictures("prompt=a", "prompt is for text, and this run's model"),
    # drawing
    "length of nothing": on_text("length=0", "length must be at least 1, found 0"),
    "negative temperature": on_text("temperature=-1", "temperature must be at least 0, found -1"),
    "temperature nan": on_text("temperature=nan", "temperature must be at least 0, found nan"),
    "temperature inf": on_text("temperature=inf", "temperature must be finite, found inf"),
    "top_k too large": on_text("top_k=257", "top_k must be below 257, found 257"),
    "top_k 0": on_text("top_k=0", "top_k must be at least 1, found 0"),
    "top_k in words": on_text("top_k=few", "top_k must be an integer or null, found 'few'"),
    "top_p 0": on_text("top_p=0", "top_p must be above 0 and at most 1, found 0.0"),
    "top_p above 1": on_text("top_p=1.5", "top_p must be above 0 and at most 1, found 1.5"),
    "batch 0": on_text("batch=0", "batch must be at least 1, found 0"),
    "seed below 0": on_text("seed=-1", "seed must be at least 0, found -1"),
    "unknown key": on_text("temprature=1", "temprature is not a key .* did you mean temperature"),
    "another model": on_text("model.depth=3", "model.depth cannot be changed for an existing"),
    "no such checkpoint": on_text("checkpoint=middle", "checkpoint must be one of best, last"),
    "samples is a file": (
        "sample", ("run=run",), of_text(written("run/samples", b"")), "run/samples cannot be made: File exists",
    ),
    # completions
    "no text model's": on_text("pictures.given=0.5", "pictures.given is for pictures, found 0.5"),
    "file for text": on_text("pictures.file=a", "pictures.file is for pictures, found a for a"),
    "length of a picture": on_pictures("length=5", "length is for text, and this run's model"),
    "all given": on_pictures("pictures.given=1", "pictures.given must be below 1, found 1.0"),
    "beyond the split": on_pictures("pictures.given=0.5 pictures.first=9", "at most the 10 pictures of the test"),
    "nothing given": on_pictures("pictures.file=mine.png", "give pictures.given as well"),
    "no rows of pixels": ("sample", ("run=run",), no_rows, "data.context must be whole rows of model.row=5 pixels"),
    "picture missing": on_mine(of_pictures(), f"{SIZE} cannot be read: No such file"),
    "picture is text": on_mine(of_pictures("mine.png", b"hello"), f"{SIZE} it is no PNG"),
    "picture is empty": on_mine(of_pictures("mine.png"), f"{SIZE} cannot be read|{SIZE} it is empty"),
    "picture of another size": on_mine(of_pictures("mine.png", PNG), f"{SIZE} it is 64 x 64 pixels"),
    "picture cut short": on_mine(of_pictures("mine.png", SMALL[:900]), f"{SIZE} it is cut short"),
    "picture with alpha": on_mine(rgba, f"{SIZE} it is RGBA"),
    "draw: other size": ("draw", ("run", "--file=mine.png"), of_pictures("mine.png", PNG), f"{SIZE} it is 64 x 64"),
}  # fmt: skip


def files(folder: Path) -> dict[Path, bytes]:
    """All files but the hidden ones: locks, and what a stopped preparation goes on from."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path: path.read_bytes() for path in found}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_with_one_sentence_and_changes_nothing(name, tmp_path, monkeypatch, capfd):
    program, arguments, prepare, sentence = CASES[name]
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    capfd.readouterr()
    try:
        code = PROGRAMS[program]()
    except SystemExit as exit_:
        code = exit_.code
    out, err = capfd.readouterr()
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: ") and not out
    assert re.search(sentence, line), line
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("line", "prepare", "sentence"),
    [
        (("sample", "run=run"), of_text(lambda folder: cut(folder / BEST)), f"{BEST} cannot be read as a checkpoint"),
        (("train", *CIFAR), lambda folder: cut(archive(folder)), "cannot be read"),
    ],
    ids=["sample", "train"],
)
def test_whole_commands_say_the_same(line, prepare, sentence, tmp_path):
    prepare(tmp_path)
    before = files(tmp_path)
    name, *arguments = line
    small = ("trainer.accelerator=cpu", "model.depth=1", "trainer.devices=1") if name == "train" else ()
    done = command(name, *arguments, *small, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and sentence in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert files(tmp_path) == before
