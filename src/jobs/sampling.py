"""What ``src.sample`` does once its configuration is known to be right: restore the model, draw, show and keep."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from src.checkpoint.file import check_model, read, usable_for
from src.config.schema import Config, SampleConfig
from src.data.picture_grid import as_picture, completions_grid, given_bytes, read_picture, save_grid, square
from src.decoding.sampling import Draw, Tick, as_text, generate
from src.errors import UserError, said_if_out_of_memory
from src.jobs import build
from src.jobs.shared import finish_wandb, prepared_data
from src.loggers.build import wandb_logger
from src.models.build import network
from src.models.sparse_transformer import SparseTransformer
from src.runs.log import quiet_libraries
from src.runs.run import Run
from src.system.atomic_files import written_whole


def sample_text(run: Run, config: Config, checkpoint: Path, wanted: SampleConfig, prompt: bytes) -> None:
    """Continue a prompt ``wanted.batch`` times: to the terminal, to RUN_DIR/samples/ and to the run's wandb."""
    model = restored(config, checkpoint)
    file = new_file(run, checkpoint, wanted, "txt")
    device = model.output.weight.device
    start = torch.frombuffer(bytearray(prompt), dtype=torch.uint8) if prompt else torch.zeros(0, dtype=torch.uint8)
    count = wanted.length or model.context - len(prompt)
    drawn = draw_bytes(model, config, wanted, start.to(device).expand(wanted.batch, -1), count)
    texts = [as_text(x) for x in drawn]
    content = "\n".join(f"===== sample {i + 1} of {len(texts)} =====\n{text}" for i, text in enumerate(texts)) + "\n"
    print(content, end="")
    with written_whole(file) as out:
        out.write(content.encode())
    print(f"written to {file}", file=sys.stderr)
    log_to_wandb(run, config, "sampled/text", lambda wandb: wandb.Table(["sample"], [[text] for text in texts]))


def sample_pictures(run: Run, config: Config, checkpoint: Path, wanted: SampleConfig) -> None:
    """Draw pictures, or complete those of a split, as a PNG grid in RUN_DIR/samples/ and in the run's wandb."""
    row, context = config.model.row, config.data.context
    if context % (3 * row):
        raise UserError(f"data.context must be whole rows of model.row={row} pixels to make a picture, found {context}")
    given = given_bytes(wanted.pictures.given, row, context)
    originals = to_complete(config, wanted) if given else None
    model = restored(config, checkpoint)
    file = new_file(run, checkpoint, wanted, "png")
    device = model.output.weight.device
    if originals is None:
        prompt = torch.zeros(wanted.batch, 0, dtype=torch.uint8, device=device)
    else:
        prompt = originals[:, :given].repeat_interleave(wanted.pictures.completions, dim=0).to(device)
    drawn = draw_bytes(model, config, wanted, prompt, context - given)
    if originals is None:
        grid: Any = square([as_picture(x, row, context) for x in drawn])
    else:
        grid = completions_grid(originals, drawn, given, row, context)
    save_grid(file, grid)
    print(f"written to {file}")
    if originals is not None:
        print("each row: the original, what the model was given, its completions")
    log_to_wandb(run, config, "sampled/pictures", lambda wandb: wandb.Image(str(file)))


def restored(config: Config, checkpoint: Path) -> SparseTransformer:
    """Build the network with a checkpoint's weights, on the device that ``trainer.accelerator`` asks for.

    Raises:
        UserError: a checkpoint that cannot be read or is another model's, or a device that is not there.
    """
    quiet_libraries()
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu needs a CUDA GPU and this machine has none: take cpu or auto")
    checkpoint = usable_for(checkpoint)
    model = network(config)
    check_model(checkpoint, model, prefix="model.")
    state = read(checkpoint)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): weight for name, weight in state.items()})
    return model.to("cuda" if build.on_gpu(config) else "cpu").eval()


def draw_bytes(model: SparseTransformer, config: Config, wanted: SampleConfig, prompt: Tensor, count: int) -> Tensor:
    """Draw behind a progress bar; (B, P + count) uint8 on the CPU."""
    draw = Draw(wanted.temperature, wanted.top_k, wanted.top_p, wanted.seed)
    dtype = build.activation_dtype(config) if prompt.device.type == "cuda" else torch.float32
    too_large = f"{len(prompt)} samples side by side do not fit the memory of the device: take a smaller batch"
    with said_if_out_of_memory(lambda: too_large), progress(len(prompt), count, config.trainer.progress) as tick:
        return generate(model, prompt, count, draw, dtype=dtype, tick=tick).cpu()


@contextmanager
def progress(rows: int, count: int, shown: bool) -> Iterator[Tick]:
    """Show bytes drawn, bytes a second over all rows, and the time left, on stderr."""
    columns = (
        TextColumn("Sampling"), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f} bytes"),
        TextColumn("{task.fields[speed]}"), TimeRemainingColumn(),
    )  # fmt: skip
    begun = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("", total=rows * count, speed="")

        def tick(done: int) -> None:
            speed = rows * done / max(time.monotonic() - begun, 1e-9)
            bar.update(task, completed=rows * done, speed=f"{speed:,.0f} bytes/s")

        yield tick


def to_complete(config: Config, wanted: SampleConfig) -> Tensor:
    """Read the pictures that are completed, uint8 (1, context) of ``pictures.file``, else (batch, context) of a split.

    Raises:
        UserError: a file that is no such picture, or more pictures than the split has.
    """
    if wanted.pictures.file is not None:
        return read_picture(Path(wanted.pictures.file), config.model.row, config.data.context)[None]
    data = prepared_data(config)
    items = data.splits.test if wanted.pictures.split == "test" else data.splits.val
    stop = wanted.pictures.first + wanted.batch
    if stop > len(items):
        raise UserError(
            f"pictures.first + batch must be at most the {len(items)} pictures of the {wanted.pictures.split} split, "
            f"found {wanted.pictures.first} + {wanted.batch}"
        )
    return items.batch(np.arange(wanted.pictures.first, stop, dtype=np.int64)).x


def new_file(run: Run, checkpoint: Path, wanted: SampleConfig, ending: str) -> Path:
    """Name a file that does not exist yet.

    Raises:
        UserError: the run's folder cannot be written.
    """
    folder = run.path / "samples"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from error
    name = f"{checkpoint.stem}-seed{wanted.seed}"
    taken = {path.name for path in folder.iterdir()}
    names = (f"{name}.{ending}" if i == 1 else f"{name}_{i}.{ending}" for i in range(1, len(taken) + 2))
    return folder / next(name for name in names if name not in taken)


def log_to_wandb(run: Run, config: Config, key: str, content: Any) -> None:
    """Log to the run's own wandb run, if it has one and ``logger.kind`` is wandb."""
    if config.logger.kind != "wandb" or not run.has_wandb_id():
        return
    import wandb

    logger = wandb_logger(config, run, {})
    code = 1
    try:
        logger.experiment.log({key: content(wandb)})
        code = 0
    finally:
        finish_wandb(code)
