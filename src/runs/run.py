"""A run directory: create it, find it, restore what it holds.

NAME_2026-01-31_12-00-00/
    config.yaml        the whole configuration, resolved: all that a job needs to start
    provenance.jsonl   git commit, package versions, machine, command, a line for each process
    checkpoints/       best.ckpt (by validation) and last.ckpt
    metrics.csv        what was logged, against the optimizer step
    train.log          what was said
    wandb/             wandb's own files
    summary.json       final figures, under the names of the logged metrics
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.config.restore import read_config
from src.config.schema import Config
from src.errors import UserError
from src.system.atomic_files import written_whole


@dataclass(frozen=True)
class Run:
    """One run directory."""

    path: Path

    @classmethod
    def create(cls, config: Config) -> Run:
        """Make a new run directory under ``paths.output_dir`` and write the configuration into it.

        Raises:
            UserError: the directory cannot be made or written.
        """
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        parent = Path(config.paths.output_dir)
        run = None
        try:
            parent.mkdir(parents=True, exist_ok=True)
            run = cls(_fresh_folder(parent, f"{config.name}_{stamp}"))
            run.checkpoints.mkdir()
            run.write_config(config)
        except OSError as error:
            if run is not None:
                shutil.rmtree(run.path, ignore_errors=True)
            raise UserError(f"paths.output_dir={parent} cannot be written: {error.strerror}") from error
        return run

    @classmethod
    def find(cls, path: str | Path) -> Run:
        """Open an existing run directory.

        Raises:
            UserError: there is none at ``path``.
        """
        run = cls(Path(path).expanduser())
        if not run.path.is_dir():
            raise UserError(f"{path} is not a run directory: there is no such folder")
        if not run.config_file.is_file() and run.config_of_checkpoint("is missing") is None:
            raise UserError(f"{path} is not a run directory: it holds no config.yaml")
        return run

    @property
    def config_file(self) -> Path:  # noqa: D102
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:  # noqa: D102
        return self.path / "checkpoints"

    @property
    def summary_file(self) -> Path:  # noqa: D102
        return self.path / "summary.json"

    @property
    def provenance_file(self) -> Path:  # noqa: D102
        return self.path / "provenance.jsonl"

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint to go on from, or None before the first one."""
        last = self.checkpoints / "last.ckpt"
        return last if last.is_file() else None

    def checkpoint(self, which: str) -> Path:
        """Give the path of the ``best`` or ``last`` checkpoint.

        Raises:
            UserError: the run has none yet.
        """
        path = self.checkpoints / f"{which}.ckpt"
        if not path.is_file():
            raise UserError(
                f"{path} does not exist: the run has no {which} checkpoint yet, "
                f"go on with it by python -m src.train resume={self.path}"
            )
        return path

    def config(self) -> Config:
        """Read the configuration; a damaged config.yaml is made anew from the newest whole checkpoint.

        Raises:
            UserError: config.yaml is damaged without a checkpoint, or holds keys that this version does not know.
        """
        try:
            return read_config(self.config_file)
        except UserError as error:
            if self.config_of_checkpoint(f"is damaged ({error})") is None:
                raise
        return read_config(self.config_file)

    def config_of_checkpoint(self, what: str) -> Path | None:
        """Write config.yaml as the newest whole checkpoint has it, saying so; None where none can help.

        A config.yaml that is there stays as config.yaml.damaged.
        """
        if not any(self.checkpoints.glob("*.ckpt")):
            return None
        from src.checkpoint.file import entry, usable  # late: torch takes seconds to import, and is needed here alone
        from src.checkpoint.shelf import all_rows

        newest = usable(all_rows(self.checkpoints))
        content = entry(newest, "config")
        if not isinstance(content, dict):
            return None
        print(f"{self.config_file} {what}: taken from {newest}", file=sys.stderr)
        if self.config_file.is_file():
            self.config_file.replace(self.config_file.with_name("config.yaml.damaged"))
        write_atomically(self.config_file, OmegaConf.to_yaml(OmegaConf.create(content)))
        return newest

    def write_config(self, config: Config) -> None:
        """Write the configuration, atomically."""
        content = OmegaConf.to_container(OmegaConf.structured(config))
        assert isinstance(content, dict)
        content["resume"] = None
        write_atomically(self.config_file, OmegaConf.to_yaml(OmegaConf.create(content)))

    def plain_config(self) -> dict[str, Any]:
        """Read the configuration as plain containers, for loggers and checkpoints."""
        content = OmegaConf.to_container(OmegaConf.load(self.config_file))
        assert isinstance(content, dict)
        return {str(key): value for key, value in content.items()}

    def discard_if_unused(self) -> None:
        """Remove the directory if no process ever began to work on it: it holds a configuration and nothing else."""
        if not self.provenance_file.exists() and self.last_checkpoint is None:
            shutil.rmtree(self.path, ignore_errors=True)

    def has_wandb_id(self) -> bool:
        """Whether an earlier process has begun the wandb run."""
        return (self.path / "wandb_id").is_file()

    def wandb_id(self) -> str:
        """The run's wandb id, made on the first call and the same for good: a resumed run is the same wandb run.

        Raises:
            UserError: what is stored is no id.
        """
        file = self.path / "wandb_id"
        if not file.is_file():
            write_atomically(file, secrets.token_hex(4) + "\n")
        found = file.read_bytes().strip()
        if re.fullmatch(rb"[A-Za-z0-9_-]{1,64}", found) is None:
            raise UserError(
                f"{file} must hold the letters and digits of a wandb id, found {found[:20]!r}: remove it to "
                "go on as a new wandb run"
            )
        return found.decode()

    def keep_wandb_id(self, wandb_id: str) -> None:
        """Keep the id that wandb took, so that a resumed run is that wandb run."""
        if wandb_id != self.wandb_id():
            write_atomically(self.path / "wandb_id", wandb_id + "\n")

    def summary(self) -> dict[str, Any]:
        """Figures written so far; empty before the first.

        Raises:
            UserError: the file is damaged.
        """
        if not self.summary_file.is_file():
            return {}
        try:
            figures = json.loads(self.summary_file.read_text())
            if not isinstance(figures, dict):
                raise ValueError("it is not a table of figures")
        except ValueError as error:
            raise UserError(
                f"{self.summary_file} cannot be read ({error}): remove it, and write its figures anew by "
                f"python -m src.eval run={self.path}"
            ) from error
        return figures

    def update_summary(self, figures: dict[str, Any]) -> None:
        """Add figures to summary.json, atomically; a figure of the same name is replaced."""
        content = json.dumps({**self.summary(), **figures}, indent=2, sort_keys=True)
        write_atomically(self.summary_file, content + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader, or a crash, sees the old content or the new, never a part."""
    with written_whole(path) as file:
        file.write(text.encode())


def _fresh_folder(parent: Path, name: str) -> Path:
    """Make a folder that did not exist; jobs that start within one second get a counter behind their name."""
    for counter in range(1, 1000):
        folder = parent / (name if counter == 1 else f"{name}_{counter}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise UserError(f"{parent / name} exists a thousand times: give the run another name=")
