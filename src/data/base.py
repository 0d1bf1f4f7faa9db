"""What every data set of bytes shares: loaders in a reproducible order, and the facts that a run logs."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from src.data.byte_windows import Bytes, ByteStore, EvalWindows, TrainWindows
from src.data.loading import EvalDataset, EvalItems, TrainDataset, TrainItems, loader
from src.data.portions import Portions
from src.data.sampler import EvalBatchSampler, TrainBatchSampler, TrainOrder, micro_batch_size
from src.data.score_windows import ScoreBatchSampler, ScoreWindows
from src.data.waiting import Waits
from src.errors import UserError

Fact = str | int | bool


@dataclass(frozen=True)
class Splits:
    """An opened data set.

    Args:
        train: the training sequences.
        val: the validation sequences.
        test: the test sequences.
        label: the name that goes with every figure, saying so if the data are partial.
        partial: the data are less than the official set.
        facts: what identifies the data: path, size, checksum.
    """

    train: TrainItems
    val: EvalItems
    test: EvalItems
    label: str
    partial: bool = False
    facts: Mapping[str, Fact] = field(default_factory=dict)


class ByteDataModule(LightningDataModule):
    """Base of the data sets: subclasses bring the files (``prepare_data``) and open them (``open_splits``).

    The training loader starts at the trainer's global step and ends at its ``max_steps``; its order is a
    function of (seed, step) alone. The trainer must be made with ``use_distributed_sampler=False``. Without a
    trainer the loaders are those of a single device, and training is one epoch.

    Args:
        portions: of a sequence, a batch and the order; its fields are attributes of the module as well.
    """

    def __init__(self, portions: Portions) -> None:
        super().__init__()
        self.context, self.batch_size, self.seed = portions.context, portions.batch_size, portions.seed
        self.micro_batch, self.eval_batch_size = portions.micro_batch, portions.eval_batch_size
        self.workers = portions.workers
        self.waits = Waits()
        """What this process waits for while it waits for a batch."""
        self._splits: Splits | None = None

    @abstractmethod
    def open_splits(self) -> Splits:
        """Open the files that ``prepare_data`` left; runs in every process."""

    def setup(self, stage: str | None = None) -> None:
        """Open the splits, once."""
        if self._splits is None:
            self._splits = self.open_splits()

    @property
    def splits(self) -> Splits:
        """The opened data set; only after ``setup``."""
        if self._splits is None:
            raise RuntimeError(f"{type(self).__name__}.setup() has not run yet")
        return self._splits

    @property
    def train_sequences(self) -> int:
        """Training sequences an epoch (N)."""
        return len(self.splits.train)

    @property
    def train_bytes(self) -> int:
        """Bytes of the training split."""
        return self.splits.train.nbytes

    @property
    def val_bytes(self) -> int:
        """Bytes of the validation split, each scored exactly once."""
        return self.splits.val.nbytes

    @property
    def test_bytes(self) -> int:
        """Bytes of the test split, each scored exactly once."""
        return self.splits.test.nbytes

    @property
    def label(self) -> str:
        """The name that goes with every figure, saying so if the data are partial."""
        return self.splits.label

    @property
    def partial(self) -> bool:
        """The data are less than the official set."""
        return self.splits.partial

    def facts(self) -> dict[str, Fact]:
        """Give what identifies the data in a report: label, path, size, checksum, bytes of each split."""
        return {
            "label": self.label,
            "partial": self.partial,
            **self.splits.facts,
            "train_bytes": self.train_bytes,
            "val_bytes": self.val_bytes,
            "test_bytes": self.test_bytes,
            "train_sequences": self.train_sequences,
        }

    def steps(self, epochs: float) -> int:
        """Turn epochs into optimizer steps, rounded up."""
        return math.ceil(epochs * self.train_sequences / self.batch_size)

    def micro_batches(self, world: int = 1) -> int:
        """Give one device's forward passes in one optimizer step (Lightning's accumulate_grad_batches).

        Raises:
            UserError: the batch does not split evenly over ``world`` devices.
        """
        return self.batch_size // world // micro_batch_size(self.batch_size, world, self.micro_batch)

    def train_dataloader(self) -> DataLoader[Bytes]:
        """Load this device's micro-batches from the trainer's global step to its last step."""
        rank, world = self._place()
        start, stop = 0, self.steps(1)
        if self.trainer is not None:
            start, stop = self.trainer.global_step, self.trainer.max_steps
            if stop < 1:
                raise UserError(f"trainer.max_steps must be at least 1, found {stop}")
        sampler = TrainBatchSampler(
            self.batch_size,
            micro_batch=self.micro_batch,
            rank=rank,
            world=world,
            start_step=start,
            stop_step=stop,
        )
        order = TrainOrder(self.train_sequences, self.seed)
        return self._loader("training", TrainDataset(self.splits.train, order), sampler)

    def val_dataloader(self) -> DataLoader[Bytes]:
        """Load this device's share of the whole validation split."""
        return self._eval_loader("validation", self.splits.val)

    def test_dataloader(self) -> DataLoader[Bytes]:
        """Load this device's share of the whole test split."""
        return self._eval_loader("test", self.splits.test)

    def score_dataloader(
        self, split: str, batch_size: int, min_context: int = 0, rank: int = 0, world: int = 1
    ) -> DataLoader[Any]:
        """Load one device's share of a whole split, in batches that are the same on any number of devices.

        Args:
            split: ``val`` or ``test``.
            batch_size: sequences of a batch.
            min_context: bytes that every byte but the first ``context`` ones shall have before it; text alone.
            rank: the device, from 0.
            world: number of devices.

        Raises:
            UserError: a ``min_context`` that cannot be.
        """
        items: EvalItems = self.splits.val if split == "val" else self.splits.test
        if min_context:
            items = self.overlapping(items, min_context)
        sampler = ScoreBatchSampler(len(items), batch_size, rank, world)
        return self._loader(split, EvalDataset(items), sampler)

    def overlapping(self, items: EvalItems, min_context: int) -> EvalItems:
        """Give the windows of a split that overlap by ``min_context`` bytes."""
        raise UserError(f"eval.min_context must be 0 for pictures, found {min_context}: each is one whole sequence")

    def _eval_loader(self, name: str, items: EvalItems) -> DataLoader[Bytes]:
        rank, world = self._place()
        size = self.eval_batch_size or micro_batch_size(self.batch_size, world, self.micro_batch)
        return self._loader(name, EvalDataset(items), EvalBatchSampler(len(items), size, rank, world))

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, name: str, dataset: Dataset[Any], sampler: Sampler[list[int]]) -> DataLoader[Any]:
        cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return loader(name, self.waits, dataset, sampler, self.workers, pin_memory=cuda)


class WindowDataModule(ByteDataModule):
    """Base of the text data sets: one raw file that is cut into a training, a validation and a test range.

    Its documents, where it has some, are those of the whole file: they do not end where a range does.
    """

    def __init__(self, portions: Portions) -> None:
        super().__init__(portions)
        self.bounds = portions.documents

    def facts(self) -> dict[str, Fact]:
        """Give what identifies the data, and what tells their documents apart."""
        return {**super().facts(), **self.bounds.facts()}

    def windows(self, path: Path, sizes: tuple[int, int, int], label: str, partial: bool, **facts: Fact) -> Splits:
        """Open the ranges of ``sizes`` bytes that follow one another in the file ``path``.

        Raises:
            UserError: the training range is too short for the context, or another one is empty; or the documents
                cannot be found.
        """
        if min(sizes) < 1:
            raise UserError(
                f"{path} has {sum(sizes):,} bytes, too few to split into training, validation and test data"
            )
        documents = self.bounds.of(path, sum(sizes))
        beginnings = None if documents is None else documents.first
        ends = itertools.accumulate(sizes, initial=0)
        stores = [ByteStore(path, start, stop, beginnings) for start, stop in itertools.pairwise(ends)]
        return Splits(
            TrainWindows(stores[0], self.context, self.seed),
            EvalWindows(stores[1], self.context),
            EvalWindows(stores[2], self.context),
            label,
            partial,
            {"path": str(path), "size": sum(sizes), **facts},
        )

    def overlapping(self, items: EvalItems, min_context: int) -> EvalItems:
        """Give the windows of a split that overlap by ``min_context`` bytes (the paper's table 3)."""
        assert isinstance(items, EvalWindows)
        return ScoreWindows(items.store, self.context, min_context)
