"""Steps whose loss or gradients are not finite: they change nothing, are counted, and end a run after so many."""

import logging

import pytest
import torch

from src.errors import UserError
from src.training.precision import LossScaling
from src.training.step_guard import StepGuard, gradient_norm
from tests.in_process import Fall, Poison, new_run, train
from tests.kills import differing
from tests.tiny_runs import curve
from tests.training.test_devices import torchrun
from tests.training.test_precision import Overflow, fp16_run


class Weights(Poison):
    """Writes down the weights and moments after each step."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        states = trainer.optimizers[0].state_dict()["state"]
        self.seen.append([x.clone() for state in states.values() for x in state.values()])
        self.seen[-1] += [weight.detach().clone() for weight in pl_module.parameters()]


def content(run, name="last"):
    return torch.load(run.checkpoints / f"{name}.ckpt", weights_only=True)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_such_a_step_changes_neither_weights_nor_moments(tmp_path, what):
    run, poison = new_run(tmp_path, "watch.nonfinite=skip"), Weights((3, 4, 8), what)
    train(run, poison)
    same = [
        step for step in range(1, 12)
        if all(torch.equal(a, b) for a, b in zip(poison.seen[step], poison.seen[step - 1], strict=True))
    ]  # fmt: skip
    assert same == [3, 4, 8]
    assert all(x.isfinite().all() for x in content(run)["state_dict"].values())
    rows = curve(run.path)
    column = rows[0].index("train/skipped_steps")
    assert [row[column] for row in rows[1:] if row[column]] == [
        f"{float(n)}" for n in (0, 0, 0, 1, 2, 2, 2, 2, 3, 3, 3, 3)
    ]


def test_a_run_that_skipped_goes_on_to_the_last_bit(tmp_path):
    changes = ("watch.nonfinite=skip", "trainer.checkpoint_every=1")
    unbroken, fallen = (new_run(tmp_path / name, *changes) for name in ("unbroken", "fallen"))
    train(unbroken, Poison((3, 4, 5, 9)))
    with pytest.raises(RuntimeError, match="fallen"):
        train(fallen, Poison((3, 4, 5, 9)), Fall(5))  # in the middle of a row
    train(fallen, Poison((3, 4, 5, 9)))
    ours, theirs = content(fallen), content(unbroken)
    assert min(of["callbacks"].pop("Figures")["seconds"] for of in (ours, theirs)) > 0  # of the clock
    for name in ("state_dict", "optimizer_states", "callbacks", "lr_schedulers"):
        assert differing(ours[name], theirs[name]) == []
    assert curve(fallen.path) == curve(unbroken.path)
    assert ours["callbacks"]["NonFinite"]["counts"].tolist() == [0, 3, 4]


def test_so_many_in_a_row_end_the_run_with_a_dump(tmp_path):
    run = new_run(tmp_path, "watch.nonfinite_steps=3", "trainer.log_every=4")
    with pytest.raises(UserError) as refused:
        train(run, Poison(range(4, 12)))
    file = run.path / "nonfinite-step-0000004.pt"
    said = str(refused.value)
    assert "\n" not in said
    assert said.startswith("4 optimizer steps in a row had a loss or gradients that are not finite and changed nothing")
    assert f"its batch is in {file}" in said
    assert "loss nan and gradient norm nan" in said
    assert "watch.nonfinite=skip" in said
    dump = torch.load(file, weights_only=True)
    assert (int(dump["step"]), dump["seed"], dump["rank"]) == (4, 1, 0)
    assert dump["x"].shape == (1, 4, 64)
    assert dump["loss"].isnan()
    assert content(run)["global_step"] <= 8  # it goes on from before
    train(run)  # the numbers are well now


def test_the_batch_in_the_dump_is_the_one_that_began_the_row(tmp_path):
    class Batches(Poison):
        batches: list

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.batches.append((batch.x.clone(), batch.documents.clone()))

    changes = ("watch.nonfinite_steps=2", "data.micro_batch=2", "data.documents=window ")
    run, poison = new_run(tmp_path, *changes), Batches((2, 5, 6))
    poison.batches = []
    with pytest.raises(UserError):
        train(run, poison)
    dump = torch.load(run.path / "nonfinite-step-0000005.pt", weights_only=True)
    for name, wanted in zip(("x", "documents"), zip(*poison.batches[10:12], strict=True), strict=True):
        assert torch.equal(dump[name], torch.stack(wanted))


def test_a_row_before_a_checkpoint_ends_a_resumed_run_only_if_it_goes_on():
    before = {"counts": torch.tensor([3, 5, 7])}
    weight = torch.nn.Parameter(torch.zeros(2))
    for loss, counts in ((1.0, [0, 0, 7]), (torch.nan, [4, 4, 8])):
        guard = StepGuard()
        guard.restore(before, torch.device("cpu"))
        guard.admit(torch.optim.SGD([weight]), torch.tensor(loss), torch.tensor(1.0), torch.zeros(1, 1, 4), step=9)
        assert guard.counts.tolist() == counts


class Spoiled(Poison):
    """Makes a weight NaN after some steps: no gradient tells before the next one."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step in self.steps:
            pl_module.model.output.weight.data[0, 0] = torch.nan


def test_a_validation_that_is_no_number_ends_the_run_and_is_never_the_best(tmp_path):
    run = new_run(tmp_path, "trainer.val_every=5")
    with pytest.raises(UserError, match=r"the validation at step 10 gave nan bits per byte, so .*learning_rate"):
        train(run, Spoiled((10,)))
    assert content(run, "best")["global_step"] == 5


def test_or_is_said_where_such_things_are_skipped(tmp_path, caplog):
    """The first validation has no figure: the best is then the first that has one."""
    run = new_run(tmp_path, "trainer.val_every=5", "watch.nonfinite=skip")

    class Mended(Spoiled):
        def on_train_batch_start(self, trainer, pl_module, *args):
            pl_module.model.output.weight.data.nan_to_num_()

    with caplog.at_level(logging.WARNING):
        train(run, Mended((5,)))
    assert "the validation at step 5 gave nan bits per byte" in caplog.messages
    assert run.summary()["val/best_step"] > 5


def test_single_ones_do_not_end_a_run_but_are_said(tmp_path, caplog):
    run = new_run(tmp_path, "watch.nonfinite_steps=2")
    with caplog.at_level(logging.WARNING):
        train(run, Poison((2, 4, 6)))
    said = [message for message in caplog.messages if "not finite" in message]
    assert said == [
        "step 3: 1 optimizer steps so far had a loss or gradients that are not finite and changed nothing, "
        "1 of them in a row"
    ]


def test_an_overflow_while_fp16_looks_for_its_scale_is_no_trouble(tmp_path):
    trainer = fp16_run(tmp_path, "cpu", Overflow(None), LossScaling("cpu", initial_scale=2.0**21), "adamw")
    row, longest, skipped = trainer.lightning_module.guard.counts.tolist()
    assert (row, longest) == (0, 0)
    assert skipped > 0


def test_an_overflow_at_the_smallest_scale_is_trouble(tmp_path):
    trainer = fp16_run(tmp_path, "cpu", Overflow(3), LossScaling("cpu", initial_scale=1.0), "muon")
    assert trainer.lightning_module.guard.counts.tolist() == [0, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_what_one_rank_sees_all_ranks_skip(tmp_path, strategy):
    """Were they not of one mind, their weights would part, or they would wait for each other for ever."""
    run = new_run(tmp_path, "trainer.devices=2", f"trainer.strategy={strategy}", "watch.nonfinite=skip")
    done = torchrun("-m", "tests.jobs.poisoned_job", str(run.path), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = curve(run.path)
    column = rows[0].index("train/skipped_steps")
    assert [row[column] for row in rows[1:] if row[column]][-1] == "3.0"
    assert all(x.isfinite().all() for x in content(run)["state_dict"].values())
    states = content(run)["optimizer_states"][0]["state"].values()
    steps = {int(state["step"]) for state in states if "step" in state}  # Muon counts none
    assert steps == {12 - 3}


@pytest.mark.slow
def test_every_rank_dumps_what_it_saw(tmp_path):
    run = new_run(tmp_path, "trainer.devices=2", "watch.nonfinite_steps=2")
    done = torchrun("-m", "tests.jobs.poisoned_job", str(run.path), folder=tmp_path)
    assert done.returncode != 0
    assert "2 optimizer steps in a row had a loss or gradients that are not finite" in done.stderr
    dumps = [torch.load(run.path / f"nonfinite-step-0000003-rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [dump["loss"].isnan().item() for dump in dumps] == [False, True]
    assert not torch.equal(dumps[0]["x"], dumps[1]["x"])


def test_no_value_is_read_from_the_device_at_a_step():
    """Fake tensors have no values: to ask for one fails. On a GPU each such question would wait for it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.ones(3, 2))
        optimizer = torch.optim.AdamW([weight], fused=True)
        guard = StepGuard()
        for step in range(3):
            weight.grad = torch.ones(3, 2)
            norm = gradient_norm([weight])
            torch.nn.utils.clip_grads_with_norm_([weight], 1.0, norm)
            guard.admit(optimizer, torch.tensor(1.0), norm, torch.zeros(1, 1, 2), step)
            guard.admit(optimizer, torch.tensor(1.0), norm, torch.zeros(1, 1, 2), step, scale=torch.tensor(2.0))


def test_an_optimizer_that_is_not_fused_is_not_touched():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], fused=False)
    weight.grad = torch.ones(2)
    guard = StepGuard()
    guard.admit(optimizer, torch.tensor(1.0), torch.tensor(torch.inf), torch.zeros(1, 1, 2), 0)
    optimizer.step()
    assert guard.counts is not None
    assert guard.counts.tolist() == [1, 1, 1]
