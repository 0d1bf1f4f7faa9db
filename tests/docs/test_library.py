"""docs/library.md does what it says, and the door of ``src.library`` is quick, complete and refuses in a sentence."""

import json
import logging
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import src.library
from src.library import Run, SparseTransformer, UserError, load_model
from tests.docs.blocks import DOCS, run_python, sections
from tests.in_process import new_run, train
from tests.tiny_runs import environment, summary

PAGE = sections(DOCS / "library.md")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder whose runs/NAME is a finished run."""
    folder = tmp_path_factory.mktemp("library")
    run = new_run(folder, "trainer.accelerator=cpu", "trainer.keep=2")
    train(run)
    run.path.rename(folder / "runs" / "NAME")
    return folder


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """A run directory that a test may damage."""
    return Path(shutil.copytree(trained / "runs" / "NAME", tmp_path / "NAME"))


def fresh(code: str, folder: Path) -> str:
    """What a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("title", PAGE)
def test_every_block_runs(title, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    run_python(PAGE[title])
    said = capsys.readouterr()
    assert said.out and not said.err


def test_the_loop_learns(capsys):
    losses = run_python(PAGE["The network in a loop of your own"])["losses"]
    assert losses[0] == pytest.approx(math.log(256), abs=1e-5) and losses[-1] < 3  # type: ignore[index]


def test_a_call_again_draws_the_same(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    first, second = (run_python(PAGE["A trained run in plain PyTorch"])["drawn"] for _ in range(2))
    assert torch.equal(first, second) and first.shape == (2, 27)  # type: ignore[arg-type,attr-defined]


def test_the_figure_is_that_of_the_run(trained):
    """The test split scored in plain PyTorch, window by window, is what the run says of its best checkpoint."""
    run = trained / "runs" / "NAME"
    model = load_model(run)
    assert isinstance(model, SparseTransformer) and not model.training
    text = (trained / "corpus.txt").read_bytes()
    test = text[len(text) * 90 // 100 + len(text) * 5 // 100 :]
    bits = 0.0
    for start in range(0, len(test), model.context):
        x = torch.frombuffer(bytearray(test[start : start + model.context]), dtype=torch.uint8)
        with torch.no_grad():
            bits += F.cross_entropy(model(x[None])[0], x.long(), reduction="sum").item() / math.log(2)
    assert summary(run)["test/bytes"] == len(test)
    assert bits / len(test) == pytest.approx(summary(run)["test/bits_per_byte"], rel=1e-5)


def test_last_is_the_last(trained):
    run = Run(trained / "runs" / "NAME")
    saved = torch.load(run.checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    weights = load_model(run.path, "last").state_dict()
    assert weights.keys() == {name.removeprefix("model.") for name in saved}
    assert all(torch.equal(weights[name.removeprefix("model.")], saved[name]) for name in saved)


def test_random_numbers_go_on(trained):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_model(trained / "runs" / "NAME")
    assert torch.equal(torch.rand(3), wanted)


def test_backends_of_another_machine_are_left_behind(copied):
    """A run that took kernels of a GPU computes on this CPU."""
    file = copied / "config.yaml"
    file.write_text(file.read_text().replace("backend: auto", "backend: triton", 1))
    assert Run(copied).config().attention.backend == "triton"
    assert load_model(copied)(torch.zeros(1, 9, dtype=torch.uint8)).shape == (1, 9, 256)


def test_what_cannot_be_loaded_is_refused_in_a_sentence(copied, tmp_path):
    def refusal(path: Path, checkpoint: str = "best") -> str:
        with pytest.raises(UserError) as refused:
            load_model(path, checkpoint)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "none") == f"{tmp_path}/none is not a run directory: there is no such folder"
    assert refusal(tmp_path / "empty") == f"{tmp_path}/empty is not a run directory: it holds no config.yaml"
    assert refusal(copied, "newest") == "checkpoint must be best or last, found 'newest'"
    config = copied / "config.yaml"
    whole = config.read_text()
    config.write_text(whole.replace("width: 16", "width: 24"))
    assert "is of another model than the configuration describes" in refusal(copied)
    config.write_text(whole.replace("heads: 2", "heads: 3"))
    assert refusal(copied) == "model.heads must divide model.width (16), found 3"
    config.write_text(whole)
    for file in (copied / "checkpoints").glob("best*.ckpt"):
        file.write_bytes(file.read_bytes()[:-1000])
    assert "can be read" in refusal(copied) or "cannot be read as a checkpoint" in refusal(copied)
    (copied / "checkpoints" / "best.ckpt").unlink()
    assert "has no best checkpoint yet" in refusal(copied)


def test_a_damaged_checkpoint_is_passed_over(copied, caplog):
    last = copied / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    with caplog.at_level(logging.ERROR):
        load_model(copied, "last")
    assert "damaged in" in caplog.text


def test_the_door_is_quick_and_opens_name_by_name(tmp_path):
    code = (
        "import json, sys\n"
        "import src.library\n"
        "ours = sorted(name for name in sys.modules if name.partition('.')[0] in ('src', 'torch', 'numpy'))\n"
        "src.library.Pattern, src.library.Fixed, src.library.UserError\n"
        "print(json.dumps([ours, 'torch' in sys.modules]))\n"
    )
    assert json.loads(fresh(code, tmp_path)) == [["src", "src.library"], False]


def test_a_trained_run_needs_neither_lightning_nor_hydra(trained):
    code = (
        "import sys\n"
        "import torch\n"
        "from src.library import generate, load_model\n"
        "generate(load_model('runs/NAME'), torch.zeros(1, 0, dtype=torch.uint8), 3)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'lightning', 'hydra', 'torchmetrics'}))\n"
    )
    assert fresh(code, trained) == "[]\n"


def test_every_name_is_there():
    for name in src.library.__all__:
        assert getattr(src.library, name).__doc__
    assert dir(src.library) == sorted(src.library.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'attention'"):
        src.library.attention  # noqa: B018
