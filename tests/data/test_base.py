"""The data module: the same training bytes however they are loaded, resumed runs included."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from torch import Tensor

from src.data.base import ByteDataModule
from src.data.byte_windows import Bytes
from src.data.bytes_file import BytesFile
from src.data.portions import Portions
from src.errors import UserError

CONTEXT, BATCH = 16, 8


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.bin"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 1_003, dtype=np.uint8).tobytes())
    return path


def module(path: Path, *, place: dict[str, int] | None = None, **options: Any) -> ByteDataModule:
    """Make a data module, and put it on one device of an imagined trainer."""
    data = BytesFile(path, Portions(CONTEXT, BATCH, 5, **options))
    data.prepare_data()
    data.setup()
    if place is not None:
        trainer = {"global_step": 0, "max_steps": 20, "global_rank": 0, "world_size": 1, **place}
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(strategy=strategy, **trainer)  # type: ignore[assignment]
    return data


def steps(data: ByteDataModule) -> list[Tensor]:
    """Load a device's share of each step, its micro-batches joined."""
    batches = [batch.x for batch in data.train_dataloader()]
    world = 1 if data.trainer is None else data.trainer.world_size
    count = data.micro_batches(world)
    return [torch.cat(batches[start : start + count]) for start in range(0, len(batches), count)]


@pytest.mark.parametrize(
    ("world", "micro_batch", "workers"), [(1, 8, 0), (1, 2, 0), (2, 2, 0), (4, None, 0), (2, 1, 2)]
)
def test_training_bytes_are_the_same_on_any_number_of_devices_and_workers(
    file: Path, world: int, micro_batch: int | None, workers: int
) -> None:
    alone = steps(module(file, place={}))
    shares = [
        steps(module(file, place={"global_rank": rank, "world_size": world}, micro_batch=micro_batch, workers=workers))
        for rank in range(world)
    ]
    assert len(alone) == 20
    for step, expected in enumerate(alone):
        assert torch.equal(torch.cat([share[step] for share in shares]), expected)


def test_training_starts_at_the_trainers_step(file: Path) -> None:
    unbroken, resumed = steps(module(file, place={})), steps(module(file, place={"global_step": 13}))
    assert len(resumed) == 7
    assert all(torch.equal(*pair) for pair in zip(unbroken[13:], resumed, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_scores_every_byte_once_over_all_devices(file: Path, split: str, world: int) -> None:
    rows: list[bytes] = []
    batches = set()
    for rank in range(world):
        data = module(file, place={"global_rank": rank, "world_size": world}, eval_batch_size=2)
        loaded = list(getattr(data, f"{split}_dataloader")())
        batches.add(len(loaded))
        rows += [
            x[:length].numpy().tobytes() for batch in loaded for x, length in zip(batch.x, batch.length, strict=True)
        ]
    content = file.read_bytes()
    expected = content[902:952] if split == "val" else content[952:]
    windows = [expected[start : start + CONTEXT] for start in range(0, len(expected), CONTEXT)]
    assert sorted(row for row in rows if row) == sorted(windows)
    assert len(batches) == 1


def test_without_a_trainer_training_is_one_epoch(file: Path) -> None:
    data = module(file)
    assert data.train_sequences == (902 - 15) // 16 == 55
    assert len(steps(data)) == data.steps(1) == 7
    assert data.steps(2) == 14  # 110 sequences fill 13.75 batches
    assert (data.train_bytes, data.val_bytes, data.test_bytes) == (902, 50, 51)


class Recorder(lightning.LightningModule):
    """Learns next to nothing, and writes down what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []
        self.evaluated: list[int] = []

    def training_step(self, batch: Bytes, batch_idx: int) -> Tensor:
        self.seen.append(batch.x.clone())
        return (self.weight * batch.x.float().mean()).sum()

    def validation_step(self, batch: Bytes, batch_idx: int) -> None:
        self.evaluated.append(int(batch.length.sum()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def fit(
    file: Path, max_steps: int, checkpoint: Path | None = None, folder: Path | None = None
) -> tuple[Recorder, lightning.Trainer]:
    data = BytesFile(file, Portions(CONTEXT, BATCH, 5, micro_batch=2))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=data.micro_batches(1),
        val_check_interval=8,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    recorder = Recorder()
    trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint)
    return recorder, trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("error:.*not resumable")
def test_lightning_resumes_in_the_middle_with_the_next_bytes(file: Path, tmp_path: Path) -> None:
    unbroken, _ = fit(file, 12)
    first, trainer = fit(file, 5)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    second, resumed = fit(file, 12, tmp_path / "last.ckpt")
    assert resumed.global_step == 12
    assert len(first.seen) == 5 * 4
    assert torch.equal(torch.stack(first.seen + second.seen), torch.stack(unbroken.seen))
    assert sum(unbroken.evaluated) == 6 * 50  # after every second step, each byte of validation once


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"context": 0}, r"data\.context must be at least 1, found 0"),
        ({"batch_size": -1}, r"data\.batch_size must be at least 1, found -1"),
        ({"seed": -3}, "seed must be at least 0, found -3"),
        ({"micro_batch": 0}, r"data\.micro_batch must be at least 1, found 0"),
        ({"workers": -1}, r"data\.workers must be at least 0, found -1"),
    ],
)
def test_impossible_values_are_refused_by_name(file: Path, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Portions(**{"context": CONTEXT, "batch_size": BATCH, **options})
