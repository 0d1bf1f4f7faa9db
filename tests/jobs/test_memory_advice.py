"""Out of memory: one sentence with settings that lead out, each with what it saves."""

import re

import numpy
import pytest
import torch
from lightning.pytorch import Callback

from src.checkpoint.file import inspect
from src.errors import UserError, of_the_machine, said_if_out_of_memory
from src.jobs.memory_advice import activation_bytes, savings, sentence
from src.training.language_model import LanguageModel
from tests.in_process import new_run, train
from tests.tiny_runs import TINY, command, composed, corpus

GIB = 2**30


def test_settings_are_those_that_can_be_lowered_and_the_larger_gain_comes_first(tmp_path):
    config = composed("experiment=enwik8", "model.recompute=none", "data.micro_batch=8")
    new_run_settings, resumed = savings(config)
    assert list(resumed) == ["model.recompute=block", "data.micro_batch=4", "model.recompute=light"]
    assert list(new_run_settings) == ["data.context=6144"]
    assert resumed["data.micro_batch=4"] == activation_bytes(config) / 2


def test_the_estimate_is_near_what_was_measured():
    """docs/training.md: the paper's enwik8 model, batch 2, bf16, on an H200; between the kinds of recomputing."""
    by_kind = {
        kind: activation_bytes(composed("experiment=enwik8", "data.batch_size=2", f"model.recompute={kind}")) / GIB
        for kind in ("none", "light", "block")
    }
    assert by_kind["none"] - by_kind["light"] == pytest.approx(10.1 - 6.0, rel=0.15)
    assert by_kind["light"] - by_kind["block"] == pytest.approx(6.0 - 2.6, rel=0.15)


def test_shared_keys_take_less():
    """Of the 12 tensors of a block keys and values are two, of which a quarter is left."""
    line = ("experiment=enwik8", "model.recompute=none", "data.batch_size=2")
    whole, shared = (activation_bytes(composed(*line, f"model.kv_heads={some}")) for some in ("null", 2))
    assert whole - shared == 2 * 12_288 * 30 * 512 * 2 * 3 // 2


@pytest.mark.parametrize("experiment", ["cifar10", "imagenet64", "long", "quickstart"])
def test_something_can_always_be_lowered_and_it_is_allowed(experiment):
    from src.config.checks import check

    config = composed(f"experiment={experiment}", "data.path=FILE")
    new, resumed = savings(config)
    assert new or resumed
    for setting, saved in {**new, **resumed}.items():
        assert saved > 0
        changed = [setting] if not setting.startswith("precision") else ["precision=bf16"]
        check(composed(f"experiment={experiment}", "data.path=FILE", *changed))


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="something else"), said_if_out_of_memory(str):
        raise RuntimeError("something else")


def test_a_cpu_that_has_no_memory_left_is_said_too():
    with pytest.raises(UserError, match="lower this"), said_if_out_of_memory(lambda: "lower this"):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(UserError, match="lower this"), said_if_out_of_memory(lambda: "lower this"):
        numpy.empty(1 << 60, dtype=numpy.uint8)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=str,
)
def test_every_word_for_it_is_known_also_behind_another_error(error):
    """A CUDA graph whose capture ran out of memory fails at its end as well."""
    with pytest.raises(UserError, match="lower this"), said_if_out_of_memory(lambda: "lower this"):
        raise error
    with pytest.raises(UserError, match="lower this"), said_if_out_of_memory(lambda: "lower this"):
        try:
            raise error
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    told = of_the_machine(error)
    assert told is not None and str(told).startswith("there is not enough memory (")


def test_an_evaluation_batch_that_does_not_fit_is_named_and_costs_no_step(tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    run = new_run(tmp_path, "data.eval_batch_size=3")
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "_metric", full)
        with pytest.raises(UserError, match=r"^3 windows of 64 bytes .* take a smaller data\.eval_batch_size$"):
            train(run)
    assert inspect(run.checkpoints / "last.ckpt") == 5  # where a validation is due
    train(run)
    assert run.summary()["status"] == "finished"


def test_a_job_says_it_in_one_sentence(tmp_path):
    class Full(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    run = new_run(tmp_path)
    with pytest.raises(UserError) as refused:
        train(run, Full())
    said = str(refused.value)
    assert said == sentence(run.config(), run.path)
    assert re.search(r"data\.micro_batch=2 saves \d+\.\d\d GiB", said)
    assert said.endswith(f"; go on with python -m src.train resume={run.path} and one of them")
    train(run)


@pytest.mark.slow
def test_the_exit_code_is_that_of_what_a_user_can_mend(tmp_path):
    """A batch whose bytes are read in a second, and whose first activations take 1 TiB."""
    large = ("data.context=1024", "data.batch_size=262144", "model.width=1024", "trainer.max_steps=1")
    done = command("train", *TINY, *large, "data.workers=0", f"data.path={corpus(tmp_path)}", folder=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: the memory of the device does not suffice" in done.stderr
    assert "Traceback" not in done.stderr
