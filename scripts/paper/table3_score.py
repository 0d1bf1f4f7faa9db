"""One process of ``scripts.paper.table3``: scores its share of the windows on one device.

``python -m scripts.paper.table3_score FOLDER`` reads FOLDER/request.json; ``src.processes.ranks`` starts one process a
device. Each writes FOLDER/RANK.npy, the nats of every byte in every row, with NaN where a byte is another one's. The
first one writes FOLDER/about.json too.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to save, and its parent says that it stopped

import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from scripts.paper.table3_plan import Plan, Shares, plan
from src.config.command_line import say_error
from src.config.schema import Config
from src.data.byte_windows import ByteStore, EvalWindows
from src.errors import UserError, of_the_machine, said_if_out_of_memory
from src.jobs import build
from src.jobs.shared import SAME_MISTAKE, prepared_data
from src.library import load_model
from src.models.sparse_transformer import SparseTransformer
from src.processes.ranks import Place, end_with_supervisor, first_process, place
from src.reporting.tables import duration
from src.runs.log import quiet_libraries
from src.runs.provenance import provenance
from src.runs.run import Run
from src.training.precision import precision_plugin, set_tf32

SAID_EVERY = 5.0  # seconds
Nats = npt.NDArray[np.float32]


class Request(NamedTuple):
    """What is asked for.

    Attributes:
        run: the run directory.
        checkpoint: ``best`` or ``last``.
        split: ``validation`` or ``test``.
        least: least contexts of the rows.
        wanted: bytes to score.
        batch: windows of a forward pass; 0: about 49,152 bytes.
        path: ``data.path`` where it is not the run's; None: it is.
    """

    run: str
    checkpoint: str
    split: str
    least: list[int]
    wanted: int
    batch: int
    path: str | None


def main(folder: Path) -> int:
    """Score the share of one process; the exit code."""
    end_with_supervisor()
    quiet_libraries()
    try:
        score(Request(**json.loads((folder / "request.json").read_text())), folder, place())
        return 0
    except Exception as error:
        told = error if isinstance(error, UserError) else of_the_machine(error)
        if told is None:
            raise
        if not first_process():
            time.sleep(SAME_MISTAKE)
        say_error(told)
        return 2


def score(asked: Request, folder: Path, here: Place) -> None:
    """Score the share of the process ``here``, and write it.

    Raises:
        UserError: what the user can mend: run, data, rows, memory.
    """
    config = Run.find(asked.run).config()
    if asked.path is not None:
        config.data.path = asked.path
    data = prepared_data(config)
    items = data.splits.test if asked.split == "test" else data.splits.val
    assert isinstance(items, EvalWindows)  # pictures are refused before
    wanted = plan(len(items.store), config.data.context, config.attention.stride, asked.least, asked.wanted)
    device = torch.device("cuda", here.local_rank) if build.on_gpu(config) else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    set_tf32(config.precision.tf32)
    nats = Scorer(load_model(asked.run, asked.checkpoint).to(device), config, device, items.store)
    np.save(folder / f"{here.rank}.npy", scored(nats, wanted, asked.batch, here))
    if here.rank == 0:
        about = {"size": len(items.store), "label": data.label, "partial": data.partial, "made": provenance()}
        (folder / "about.json").write_text(json.dumps(about))


class Scorer:
    """Scores windows of a split.

    Args:
        model: the network, on ``device``.
        config: of the run.
        device: a GPU or the CPU.
        store: the split.
    """

    def __init__(self, model: SparseTransformer, config: Config, device: torch.device, store: ByteStore) -> None:
        self.model, self.context, self.device, self.store = model, config.data.context, device, store
        self.precision = precision_plugin(config.precision.name, device.type)

    @torch.inference_mode()
    def __call__(self, begins: npt.NDArray[np.int64]) -> Nats:
        """Give -ln p of the windows that begin at ``begins``, int64 (B,): float32 (B, context).

        Raises:
            UserError: the windows do not fit the memory of the device.
        """
        x = torch.from_numpy(self.store.read(begins, self.context)).to(self.device)
        documents: Any = self.store.documents(begins, self.context)
        documents = None if documents is None else documents.to(self.device)
        sentence = f"{len(x)} windows of {self.context:,} bytes do not fit the memory: take a smaller --batch-size"
        with said_if_out_of_memory(lambda: sentence):
            with self.precision.forward_context():
                logits = self.model(x, None, documents)
            found: Tensor = F.cross_entropy(logits.flatten(0, 1).float(), x.flatten().long(), reduction="none")
            return found.view(x.shape).cpu().numpy()


def scored(nats: Any, wanted: Plan, batch: int, here: Place) -> Nats:
    """Score this process's batches, which are those of a single one dealt out in turn: float32 (rows, bytes).

    Args:
        nats: as ``Scorer``.
        wanted: what is scored.
        batch: windows at a time; 0: about 49,152 bytes.
        here: this process.
    """
    shares = Shares(wanted)
    count, batch = len(shares.windows), batch or max(1, 49_152 // wanted.context)
    result = np.full((len(wanted.rows), len(wanted.places)), np.nan, dtype=np.float32)
    starts = range(here.rank * batch, count, batch * here.world)
    began = said = time.monotonic()
    for done, start in enumerate(starts):
        stop = min(start + batch, count)
        found = nats(shares.windows[start:stop])
        row, byte, window, position = shares.of(start, stop)
        result[row, byte] = found[window, position]
        now = time.monotonic()
        if done == 0:
            began = now  # the first batch compiles
        elif here.rank == 0 and now >= said + SAID_EVERY:
            said, left = now, (now - began) / done * (len(starts) - done - 1)
            print(f"scored about {min(count, (done + 1) * batch * here.world):,} of {count:,} windows, "
                  f"about {duration(left)} left", flush=True)  # fmt: skip
    return result


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
