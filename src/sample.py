"""Sample: ``python -m src.sample run=RUN_DIR`` draws text or pictures from a run's best checkpoint."""

from __future__ import annotations

if __name__ == "__main__":
    from src.system.signals import stop_quietly

    stop_quietly()

import gc
from pathlib import Path
from typing import cast

from omegaconf import DictConfig

from src.config.checks import check, check_fields, check_sample
from src.config.command_line import command, overridden_keys, typed
from src.config.restore import restore
from src.config.schema import Config, SampleConfig
from src.errors import UserError
from src.runs.run import Run

OWN_KEYS = ("run", "checkpoint", "prompt", "prompt_file", "length", "batch", "temperature", "top_k", "top_p", "seed")


def sample(cfg: DictConfig) -> None:
    """Draw from the run that the command line names, with its own configuration."""
    command_line = cast(SampleConfig, typed(cfg, SampleConfig))
    check_fields(command_line)  # the run says what goes with what
    check_sample(command_line)
    run = Run.find(command_line.run)
    changed = [key for key in overridden_keys() if key not in OWN_KEYS and not key.startswith("pictures.")]
    config = restore(run.config(), command_line, changed)
    check(config)
    checkpoint = run.checkpoint(command_line.checkpoint)
    prompt = prompt_bytes(command_line, config)

    gc.disable()  # nothing that is imported can go: looking takes a third of a second
    from src.jobs.sampling import sample_pictures, sample_text  # late: torch takes seconds to import

    gc.enable()

    if config.model.positions == "image":
        sample_pictures(run, config, checkpoint, command_line)
    else:
        sample_text(run, config, checkpoint, command_line, prompt)


def prompt_bytes(command_line: SampleConfig, config: Config) -> bytes:
    """Read the prompt, empty where none is given, and check that it fits the model.

    Raises:
        UserError: a prompt for a picture model, a file that cannot be read, or more bytes than the context holds.
    """
    key = "prompt" if command_line.prompt is not None else "prompt_file"
    context, length = config.data.context, command_line.length
    if config.model.positions == "image":
        if command_line.prompt is not None or command_line.prompt_file is not None:
            raise UserError(f"{key} is for text, and this run's model draws pictures: take pictures.given=0.5")
        if length is not None:
            raise UserError(f"length is for text, and this run's model draws whole pictures, found {length}")
        if command_line.pictures.file is not None and command_line.pictures.given == 0:
            raise UserError("pictures.file is completed from its upper part: give pictures.given as well, such as 0.5")
        return b""
    if command_line.pictures.file is not None:
        raise UserError(f"pictures.file is for pictures, found {command_line.pictures.file} for a text model")
    if command_line.pictures.given > 0:
        raise UserError(f"pictures.given is for pictures, found {command_line.pictures.given} for a text model")
    prompt = (command_line.prompt or "").encode()
    if command_line.prompt_file is not None:
        try:
            prompt = Path(command_line.prompt_file).read_bytes()
        except OSError as error:
            raise UserError(f"prompt_file={command_line.prompt_file} cannot be read: {error.strerror}") from error
        if not prompt:
            raise UserError(f"prompt_file={command_line.prompt_file} is empty: leave it out to begin with nothing")
    if len(prompt) >= context:
        raise UserError(f"{key} must be shorter than the model's context of {context:,} bytes, found {len(prompt):,}")
    if length is not None and len(prompt) + length > context:
        raise UserError(f"length must be at most {context - len(prompt)} behind a prompt of {len(prompt)} bytes, "
                        f"for the model's context of {context}, found {length}")  # fmt: skip
    return prompt


if __name__ == "__main__":
    command("sample", sample)
