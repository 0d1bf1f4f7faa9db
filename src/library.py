"""The public door for use as a library: attention, the network, and trained runs in plain PyTorch (docs/library.md).

Every name is imported when it is first asked for. ``import src.library`` takes milliseconds and does not load PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.attention import Column, Dense, Fixed, KeySet, OwnBlock, Pattern, Strided, Summary, Window, attend
    from src.config.schema import Config
    from src.data.portions import Portions
    from src.decoding.sampling import Draw, as_text, generate
    from src.errors import UserError
    from src.models.options import BlockOptions
    from src.models.sparse_transformer import SparseTransformer
    from src.optimizers.muon import Muon
    from src.runs.run import Run

__all__ = [
    "BlockOptions", "Column", "Dense", "Draw", "Fixed", "KeySet", "Muon", "OwnBlock", "Pattern", "Portions", "Run",
    "SparseTransformer", "Strided", "Summary", "UserError", "Window", "as_text", "attend", "generate", "load_model",
]  # fmt: skip

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""Files of an export."""
_HOMES = {
    "src.attention": "attend Pattern KeySet Dense Window Column Strided OwnBlock Summary Fixed",
    "src.data.portions": "Portions",
    "src.decoding.sampling": "Draw as_text generate",
    "src.errors": "UserError",
    "src.models.options": "BlockOptions",
    "src.models.sparse_transformer": "SparseTransformer",
    "src.optimizers.muon": "Muon",
    "src.runs.run": "Run",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def load_model(run_dir: str | Path, checkpoint: str = "best") -> SparseTransformer:
    """Load the network of a run, or of a folder that ``scripts.export`` wrote, with its trained weights.

    A damaged checkpoint is passed over for the newest whole one before it, with a line in the log. Attention and
    residual blocks take the fastest implementation of the device that the network is moved to, whatever the run took.
    PyTorch's random numbers go on as if nothing had been loaded.

    Args:
        run_dir: the run directory, with ``config.yaml`` and ``checkpoints/``; or the folder of an export.
        checkpoint: ``best``, by validation, or ``last``; an export has one.

    Returns:
        The network on the CPU in float32, in eval mode. ``model(x)`` takes (B, N) bytes of any integer dtype and gives
        (B, N, 256) logits, where position t scores byte t of ``x``.

    Raises:
        UserError: no such run or checkpoint, or files that are damaged or of another model.
    """
    from src.checkpoint.file import check_model, read, usable_for  # late: PyTorch takes seconds to import
    from src.config.checks import check
    from src.errors import UserError
    from src.runs.run import Run

    if checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint must be best or last, found {checkpoint!r}")
    if ((folder := Path(run_dir).expanduser()) / WEIGHTS).is_file():
        return _exported(folder)
    run = Run.find(run_dir)
    config = run.config()
    check(config)
    model = _network(config)
    file = usable_for(run.checkpoint(checkpoint))
    check_model(file, model, prefix="model.")
    weights = read(file)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()})
    return model.eval()


def _exported(folder: Path) -> SparseTransformer:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from src.checkpoint.file import differences
    from src.config.restore import read_config
    from src.errors import UserError

    model = _network(read_config(folder / CONFIG))
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    if found := differences(weights, model.state_dict()):
        raise UserError(f"{folder / WEIGHTS} is of another model than {CONFIG} describes: {found[0]}")
    model.load_state_dict(weights)
    return model.eval()


def _network(config: Config) -> SparseTransformer:
    """Build the network that a configuration describes, untrained."""
    import torch

    from src.models.build import network

    config.attention.backend = config.model.backend = "auto"
    drawing = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(list(drawing)):
        return network(config)
