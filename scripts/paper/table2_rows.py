"""The rows of table 2: kinds of attention of ours and x-transformers beside them, each with the rates that it tries."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.bench.quality_rows import OF_PEER, PEER, RATES
from scripts.paper import study
from src.errors import UserError

MUON, ADAMW = "optimizer.muon_learning_rate", "optimizer.learning_rate"
RATE = 0.001  # of the peer where none is looked for: the best of RATES in docs/results.md
NOT_OF_PEER = ("experiment", "recipe", "attention", "optimizer")  # words behind -- that are for ours alone


@dataclass(frozen=True)
class Row:
    """A row.

    Args:
        name: in the table; of ours the kind of attention.
        stem: in the names of its runs.
        words: of its configuration, but for seed, name and rate.
        key: of the configuration, its learning rate.
        rates: that the first seed tries, as text; none: that of the configuration.
        peer: a model of x-transformers.
    """

    name: str
    stem: str
    words: tuple[str, ...]
    key: str
    rates: tuple[str, ...]
    peer: bool = False

    def own(self) -> dict[str, str]:
        """What tells its jobs from those of other rows."""
        return {study.PEER: self.name} if self.peer else {"attention": self.name}


def ours(experiment: str, words: Sequence[str], rates: str | None) -> list[Row]:
    """Lay out the kinds of attention, or those that ``words`` name.

    Args:
        experiment: of the kind of data.
        words: behind ``--``.
        rates: those of Muon, or of AdamW where it trains all; None: that of the configuration.

    Raises:
        UserError: rates that are no numbers, or a word that is none.
    """
    kept = [f"experiment={experiment}", *(w for w in words if w.partition("=")[0] not in ("attention", "experiment"))]
    tried, key = tuple(f"{rate:g}" for rate in study.rates_of("--rates", rates)) if rates else (), MUON
    if tried and study.runnable(kept).optimizer.name != "muon":
        key = ADAMW
    kinds = study.grid("table2", words)["attention"]
    return [Row(kind, kind, (*kept, f"attention={kind}"), key, tried) for kind in kinds]


def peers(experiment: str, words: Sequence[str], contexts: str | None, rates: str | None) -> list[Row]:
    """Lay out x-transformers: as many bytes a step as ours, in sequences of each context.

    Args:
        experiment: of the kind of data.
        words: behind ``--``; those of ``NOT_OF_PEER`` are left out.
        contexts: of its sequences, such as 1024,12288; None: that of the experiment.
        rates: those of AdamW; None: ``RATE``.

    Raises:
        UserError: rates or contexts that are no numbers, or do not fit.
    """
    tried = tuple(f"{rate:g}" for rate in study.rates_of("--peer-rates", rates)) if rates else ()
    kept = [word for word in words if word.partition("=")[0].partition(".")[0] not in NOT_OF_PEER]
    base = (f"experiment={experiment}", "attention=dense", *OF_PEER, *kept, f"{ADAMW}={RATE}")
    data = study.runnable(base).data
    nbytes, found = data.batch_size * data.context, []
    for word in [str(data.context)] if contexts is None else contexts.split(","):
        context = int(word) if word.strip().isdecimal() else 0
        if context < 1 or nbytes % context:
            raise UserError(f"--peer must be contexts that divide the {nbytes:,} bytes of a step, found {word!r}")
        size = (f"data.context={context}", f"data.batch_size={nbytes // context}", "data.micro_batch=null")
        found.append(Row(f"{PEER}, context {context:,}", f"{PEER}-{context}", (*base, *size), ADAMW, tried, peer=True))
    return found


def peer_rates(rates: str | None, ours_tune: bool) -> str | None:
    """Give the peer's rates: those asked for, or where ours look for theirs the ones of ``scripts.bench.quality``."""
    return rates or (",".join(map(str, RATES)) if ours_tune else None)


def check_package() -> None:
    """Make sure that the peer can be trained.

    Raises:
        UserError: its package is missing.
    """
    if importlib.util.find_spec("x_transformers") is None:
        raise UserError(f"--peer needs {PEER}, which is not installed: pip install {PEER}, or leave --peer out")
