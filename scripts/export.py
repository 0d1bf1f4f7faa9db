"""Write a trained run for others: weights as safetensors, the network's configuration, a page that says what it is.

    python -m scripts.export run=runs/NAME                       # runs/NAME/export
    python -m scripts.export run=runs/NAME checkpoint=last folder=my_model

``src.library.load_model(FOLDER)`` gives the network back in plain PyTorch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.errors import UserError, exit_code
from src.library import CONFIG, WEIGHTS, load_model
from src.runs.run import Run

PROGRAM = "python -m scripts.export"
ELSEWHERE = {
    "name": "exported",
    "resume": None,
    "paths": {"data_dir": "data", "output_dir": "runs"},
    "logger": {"kind": "none"},
}
"""Parts of a configuration that are of the machine where it ran, as an export has them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, write the folder; the exit code."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="KEY=VALUE", help="run=RUN_DIR, checkpoint=best|last, folder=DIR")
    given = parser.parse_args(arguments).words
    return exit_code(lambda: print(export(**words(given))))


def words(given: Sequence[str]) -> dict[str, Any]:
    """Read ``run=``, ``checkpoint=`` and ``folder=``.

    Raises:
        UserError: another word, or no run.
    """
    found = dict(word.partition("=")[::2] for word in given)
    for key in found:
        if key not in ("run", "checkpoint", "folder"):
            raise UserError(f"{key} is no key of scripts.export: allowed are run, checkpoint, folder")
    if not found.get("run"):
        raise UserError("run has no value: give it as run=RUN_DIR")
    return found


def export(run: str, checkpoint: str = "best", folder: str | None = None) -> Path:
    """Write a run's network into a folder, whole or not at all.

    Args:
        run: the run directory.
        checkpoint: ``best`` or ``last``.
        folder: where to; the run's ``export`` by default. It must not be there, or be an export.

    Returns:
        The folder.

    Raises:
        UserError: no such run or checkpoint, or the folder holds something else.
    """
    from safetensors.torch import save_file

    model, found = load_model(run, checkpoint), Run.find(run)
    target = Path(folder).expanduser() if folder else found.path / "export"
    if target.exists() and not (target / WEIGHTS).is_file():
        raise UserError(f"folder must be new or an export that is written anew, found {target}")
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, draft / WEIGHTS)
    config = found.plain_config() | ELSEWHERE
    config["data"]["path"] = None
    (draft / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (draft / "README.md").write_text(page(found, checkpoint, model.parameter_count()), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    draft.replace(target)
    return target


def page(run: Run, checkpoint: str, parameters: int) -> str:
    """Say what the model is, with its figures and how it is loaded."""
    config, summary = run.config(), run.summary()
    names = ("val/bits_per_byte", "test/bits_per_byte", "train/steps", "data/label", "data/partial")
    figures = "".join(f"- {name}: {summary[name]}\n" for name in names if name in summary)
    return (
        f"# {run.path.name}\n\n"
        f"A Sparse Transformer of {parameters:,} parameters: {config.attention.pattern} attention, "
        f"context {config.data.context:,} bytes, the {checkpoint} checkpoint.\n\n{figures}\n"
        "```python\nfrom src.library import load_model\n\nmodel = load_model(FOLDER)  # this folder\n"
        "logits = model(x)  # (B, N) bytes to (B, N, 256)\n```\n"
    )


if __name__ == "__main__":
    sys.exit(main())
