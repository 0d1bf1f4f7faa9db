"""``deterministic=true`` on a GPU: the same command gives the same bits, a run that was killed and went on as well."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.kills import DISTURBED, STEPS, Kill, assert_as_unbroken, differing, gone_on, struck
from tests.tiny_runs import TINY, assert_same_outcome, cold_command, corpus, curve, only_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

# Heads of 32, dropout, CUDA graphs; samples and pictures of attention are drawn between the steps.
RUN = (
    *TINY, *DISTURBED, "model.width=64", "attention.stride=32", "attention.summary=8", "logger.attention_picture=true",
    "trainer.accelerator=gpu", "trainer.progress=false", "data.workers=0", "deterministic=true",
)  # fmt: skip
CASES = {
    "fixed, bf16, micro-batches, all recomputed": ("precision=bf16", "data.micro_batch=2", "model.recompute=block"),
    "strided, fp16, norms recomputed": ("precision=fp16", "attention.pattern=strided", "model.recompute=light"),
    "strided, heads apart, no CUDA graphs": (
        "precision=bf16", "attention.pattern=strided", "attention.mode=multihead", "model.cuda_graph=false",
    ),
    "dense, bf16": ("precision=bf16", "attention.pattern=dense"),
    "fixed, bf16, plain PyTorch": ("precision=bf16", "model.backend=eager", "attention.backend=torch"),
}  # fmt: skip
KILLS = {"bf16": ("SIGKILL", "SIGTERM"), "fp16": ("SIGKILL",)}


def trained(folder: Path, *changes: str) -> Path:
    """Train in a folder of its own, from a cold start: a process that has used CUDA cannot be forked."""
    folder.mkdir()
    done = cold_command("train", *RUN, f"data.path={corpus(folder)}", *changes, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return only_run(folder)


def everything(run: Path) -> dict[str, object]:
    """All that the last checkpoint holds, but for the configuration, which names files, and how long steps took."""
    found = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    assert found["callbacks"].pop("Figures")["seconds"] > 0
    return {name: value for name, value in found.items() if name not in ("config", "versions")}


def losses(run: Path) -> list[float]:
    header, *rows = curve(run)
    loss = header.index("train/bits_per_byte")
    return [float(row[loss]) for row in rows if row[loss]]


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_two_runs_give_the_same_bits(changes, tmp_path):
    """Side by side, on one GPU."""
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda name: trained(tmp_path / name, *changes), ("first", "second"))
    assert_same_outcome(first, second)
    assert differing(everything(first), everything(second)) == []
    said = (first / "train.log").read_text()
    assert "1 device (cuda)" in said
    if "model.backend=eager" not in changes:
        assert "residual blocks fused" in said
        assert f"backend {'sdpa' if 'attention.pattern=dense' in changes else 'triton'}" in said
    assert len(losses(first)) == STEPS and losses(first)[-1] < losses(first)[0]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, Path]:
    """Runs that nothing disturbs, and one with another seed."""
    folder = tmp_path_factory.mktemp("unbroken")
    changes = {"bf16": ("precision=bf16",), "fp16": ("precision=fp16",), "other": ("precision=bf16", "seed=2")}
    with ThreadPoolExecutor(len(changes)) as all_of_them:
        runs = all_of_them.map(lambda name: trained(folder / name, *changes[name]), changes)
        return dict(zip(changes, runs, strict=True))


def test_another_seed_gives_other_bits(unbroken):
    """What is compared here can differ at all."""
    ours, theirs = unbroken["bf16"], unbroken["other"]
    assert differing(everything(ours)["state_dict"], everything(theirs)["state_dict"])
    assert losses(ours) != losses(theirs)


@pytest.mark.parametrize(("precision", "what"), [(name, what) for name, kills in KILLS.items() for what in kills])
def test_a_killed_run_goes_on_to_the_same_bits(precision, what, unbroken, tmp_path):
    """With CUDA graphs captured anew, in a new process, at another step."""
    fate = struck(Kill(what, 13), tmp_path, *RUN, f"data.path={corpus(tmp_path)}", f"precision={precision}")
    assert gone_on(fate.run) > 0
    assert_as_unbroken(fate.run, unbroken[precision])
    assert differing(everything(fate.run), everything(unbroken[precision])) == []
