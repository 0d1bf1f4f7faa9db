"""Configurations are typed: what cannot run is refused with one sentence, quickly, and nothing is left behind."""

import os
import subprocess
import sys
import time

import pytest

from src.config.checks import check
from src.config.command_line import CONF, command
from src.config.schema import schema_leaves
from src.errors import UserError
from src.training.build_model import optimizer_settings
from tests.tiny_runs import cold_command, composed
from tests.tiny_runs import command as warm_command


def refusal(*overrides: str) -> str:
    """The sentence that a user gets for these overrides."""
    try:
        check(composed(*overrides))
    except UserError as error:
        return str(error)
    raise AssertionError(f"{overrides} was accepted")


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
@pytest.mark.parametrize("attention", ["dense", "strided", "fixed"])
def test_every_experiment_composes(experiment, attention):
    check(composed(f"experiment={experiment}", f"attention={attention}", "data.path=FILE"))  # some ask for a file


def test_paper_run_is_the_papers():
    config = composed("experiment=enwik8", "recipe=paper")
    assert (config.attention.pattern, config.attention.stride, config.attention.summary) == ("fixed", 128, 32)
    assert (config.model.depth, config.model.width, config.model.heads) == (30, 512, 8)
    assert (config.data.context, config.model.dropout, config.trainer.epochs) == (12288, 0.40, 80)
    assert (config.trainer.clip, config.optimizer.weight_decay) == (1.0, 0.01)
    assert optimizer_settings(config).schedule.warmup(80 * 90_000_000 // 12288 // 16) == 5000
    assert config.name == "enwik8-fixed-d30-bf16"


WRONG = [
    (("model.depth=abc",), "model.depth must be an integer, found 'abc'"),
    (("model.depth=2.5",), "model.depth must be an integer, found"),
    (("model.depth=0",), "model.depth must be at least 1, found 0"),
    (("model.heads=7",), "model.heads must divide model.width (128), found 7"),
    (("model.half_size_qk=true", "model.heads=128"), "model.heads must divide half of model.width (64), found 128"),
    (("model.heads=4", "model.kv_heads=3"), "model.kv_heads must divide model.heads (4), found 3"),
    (("model.heads=4", "model.kv_heads=8"), "model.kv_heads must divide model.heads (4), found 8"),
    (("model.kv_heads=0",), "model.kv_heads must be at least 1, found 0"),
    (("model.kv_heads=half",), "model.kv_heads must be an integer"),
    (("model.dropout=1",), "model.dropout must be below 1, found 1.0"),
    (("model.dropout=nan",), "model.dropout must be at least 0, found nan"),
    (("attention.stride=0",), "attention.stride must be at least 1, found 0"),
    (("attention.stride=128", "attention.summary=200"), "attention.summary must divide stride (128), found 200"),
    (("attention.interleave=2",), "attention.interleave must be a ratio such as 1:1, found '2'"),
    (("attention.interleave='0:1'",), "attention.interleave must be two counts of at least 1, found (0, 1)"),
    (("attention.mode=multihead", "model.heads=1"), "model.heads must be at least 2 for attention.mode=multihead"),
    (
        ("attention.backend=cuda",),
        "attention.backend must be one of auto, triton, torch, flex, reference, found 'cuda'",
    ),
    (("precision=fp17",), "precision=fp17 is no choice of conf/precision/: allowed are bf16, fp16, fp32"),
    (("experiment=enwik9",), "experiment=enwik9 is no choice of conf/experiment/: allowed are "),
    (("modle.depth=3",), "modle.depth is not a key of the configuration: did you mean model.depth?"),
    (("model.depht=3",), "model.depht is not a key of the configuration: did you mean model.depth?"),
    (("+extra=1",), "extra is not a key of the configuration"),
    (("data=bytes",), "data.path has no value: give it as data.path=VALUE"),
    (("model.depth=[",), "model.depth must be an integer, found '['"),
    (("data.batch_size=16", "data.micro_batch=3"), "data.micro_batch must divide the 16 sequences"),
    (("data.batch_size=16", "trainer.devices=3"), "data.batch_size must be a multiple of the 3 devices"),
    (("seed=-1",), "seed must be at least 0, found -1"),
    (("optimizer.learning_rate=inf",), "optimizer.learning_rate must be finite, found inf"),
    (("name=a/b",), "name must be made of letters, digits, '.', '_' and '-', found 'a/b'"),
    (("trainer.progress=maybe",), "trainer.progress must be true or false, found 'maybe'"),
]


@pytest.mark.parametrize(("overrides", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_values_are_refused_in_a_sentence(overrides, sentence, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", *overrides])
    said = refusal(*overrides)
    assert said.startswith(sentence), said
    assert "\n" not in said


# Started anew, as a user starts them: one that is refused at once, and one that must ask PyTorch first.
COLD = [("model.depth=abc",), ("attention.backend=triton",)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("model.depth=abc",), "error: model.depth must be an integer, found 'abc'"),
        (("attention.stride=0",), "error: attention.stride must be at least 1, found 0"),
        (
            ("attention.stride=128", "attention.summary=200"),
            "error: attention.summary must divide stride (128), found 200",
        ),
        (("model.heads=7",), "error: model.heads must divide model.width (128), found 7"),
        (("precision=fp17",), "error: precision=fp17 is no choice of conf/precision/: allowed are bf16, fp16, fp32"),
        (("data=bytes", "data.path=nowhere.txt"), "error: data.path must be an existing file, found nowhere.txt"),
        (("precision=fp16",), "error: precision=fp16 needs a GPU: on a CPU take precision=bf16 or precision=fp32"),
        (("attention.backend=triton",), "error: attention.backend=triton cannot run here: "),
        (("resume=nowhere",), "error: nowhere is not a run directory: there is no such folder"),
    ],
    ids=str,
)
def test_command_ends_with_one_sentence(arguments, sentence, tmp_path):
    """The whole command: exit code, one line on stderr, no traceback, no file written."""
    run = cold_command if arguments in COLD else warm_command
    begun = time.monotonic()
    done = run("train", *arguments, folder=tmp_path, CUDA_VISIBLE_DEVICES="", TRITON_INTERPRET="0")
    assert time.monotonic() - begun < 10
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1, done.stderr
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_eval_needs_a_run(tmp_path):
    for arguments, sentence in (
        ((), "error: run has no value: give it as run=VALUE"),
        (("run=nowhere",), "error: nowhere is not a run directory"),
        (("run=nowhere", "checkpoint=middle"), "error: checkpoint must be one of best, last, found 'middle'"),
    ):
        done = warm_command("eval", *arguments, folder=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(sentence), done.stderr


def test_unwritable_output_directory_is_named(tmp_path):
    """A file stands where the folder should be: root and everybody else fail alike."""
    (tmp_path / "taken").write_text("")
    done = warm_command("train", "paths.output_dir=taken/runs", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: paths.output_dir=taken/runs cannot be written: ")


def test_help_lists_commands_and_groups():
    line = [sys.executable, "-m", "src.train", "--help"]
    done = subprocess.run(line, cwd=CONF.parent, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert "python -m src.train experiment=enwik8" in done.stdout
    assert "attention: axial, bigbird, custom, dense, fixed, local, logarithmic" in done.stdout
    assert "\nwandb: " not in done.stdout  # conf/wandb/ is for wandb


def test_schema_knows_the_keys_of_the_contract():
    contract = {
        "attention.stride", "attention.summary", "attention.mode", "attention.backend", "model.depth", "model.width",
        "model.heads", "model.recompute", "data.path", "data.batch_size", "data.context", "trainer.max_steps",
        "trainer.devices", "trainer.strategy", "seed", "paths.data_dir", "paths.output_dir", "resume",
    }  # fmt: skip
    assert contract <= schema_leaves().keys()


def test_a_fault_inside_a_task_is_not_told_as_a_mistake_of_the_user(monkeypatch, capsys):
    def faulty(cfg):
        raise ValueError("a fault of ours")

    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(ValueError, match="a fault of ours"):
        command("config", faulty)
    monkeypatch.setattr(sys, "argv", ["train", "model=7"])
    with pytest.raises(SystemExit) as exit_:
        command("config", faulty)
    assert exit_.value.code == 2
    assert "error: Config group override must be a string or a list" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--cfg", "job", "seed=7"), ("seed=7", "--cfg", "job"), ("seed=7", "--cfg=job")])
def test_options_may_stand_before_between_and_after_keys(words, tmp_path):
    done = warm_command("train", "experiment=quickstart", *words, "model.depth=1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\nseed: 7\n" in done.stdout and "  depth: 1\n" in done.stdout


def test_a_users_pattern_has_a_name_in_a_folder_of_theirs(tmp_path):
    """As docs/patterns.md says; so it can be swept against others."""
    (tmp_path / "my_patterns.py").write_text("class Near:\n    def __init__(self, window): self.window = window\n"
                                             "    def sees(self, i, j): return i - j < self.window\n")  # fmt: skip
    own = tmp_path / "conf" / "attention" / "near.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("defaults: [custom]\npattern: my_patterns:Near\noptions: { window: 7 }\n")
    done = warm_command("train", "--config-dir", "conf", "--cfg", "job", "attention=near", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pattern: my_patterns:Near\n  options:\n    window: 7\n" in done.stdout
