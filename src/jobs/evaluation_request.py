"""What ``src.eval`` asks of its processes: a small file in the run directory, gone when they have ended."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from src.config.schema import Config
from src.errors import UserError
from src.runs.run import Run


@dataclass(kw_only=True)
class Request:
    """One evaluation.

    Args:
        run: the run directory.
        config: the run's configuration, with the changes of the command line.
        checkpoint: ``best`` or ``last``.
        split: ``test`` or ``val``.
        min_context: least bytes of context of each row of the table.
        batch_size: windows of a batch, whatever the number of devices.
    """

    run: str
    config: Config
    checkpoint: str
    split: str
    min_context: list[int]
    batch_size: int

    @classmethod
    def read(cls, file: Path) -> Request:
        """Read a request that ``written`` wrote."""
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.load(file)))  # type: ignore[return-value]

    @contextlib.contextmanager
    def written(self) -> Iterator[Path]:
        """Keep the request in a file of the run directory for the time of the context.

        Raises:
            UserError: the run directory cannot be written, so that the figures could not be kept either.
        """
        folder = Run.find(self.run).path
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(
                    tempfile.NamedTemporaryFile("w", prefix=".evaluation-", suffix=".yaml", dir=folder)
                )
                file.write(OmegaConf.to_yaml(OmegaConf.structured(self)))
                file.flush()
            except OSError as error:
                raise UserError(
                    f"{folder} cannot be written ({error.strerror}), and src.eval keeps its figures there"
                ) from error
            yield Path(file.name)
