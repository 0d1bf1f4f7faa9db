"""The paper's table 2 with models of yours: dense, fixed and strided attention on text and on pictures.

    python -m scripts.paper.table2 --text FILE --pictures ARCHIVE --seeds 1,2 --minutes 9 --pack table2.tar.gz
    python -m scripts.paper.table2 --text FILE --minutes 9 -- text:trainer.max_steps=600 precision=fp16
    python -m scripts.paper.table2 --text FILE --seeds 1,2,3 --rates 0.01,0.02,0.03 --peer --equal-time --minutes 9
    python -m scripts.paper.table2 --from table2.tar.gz --output docs/results.md

One command a machine. Started again it goes on: finished runs are left alone, interrupted ones resume from their
checkpoints. All runs of a seed see the same bytes in the same order. After training, and by itself where no data are
named, it writes the figures at equal bytes and at equal time as Markdown with drawings. Overrides of the configuration
follow behind ``--``, those of one kind of data as text:KEY=VALUE or pictures:KEY=VALUE. docs/sweeps.md has more.

Exit code: 0 when all runs are finished, 75 when the time is up and something is left, otherwise as of a sweep.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.paper import study, table2_rows
from scripts.paper.table2_rows import Row, check_package
from src.config.words import quoted
from src.errors import UserError, exit_code
from src.processes.ranks import TOLD

if TYPE_CHECKING:
    from src.reporting.study import Study

SIZES = {
    "tiny": {"text": "quickstart", "pictures": "pictures_small"},
    "short": {"text": "text_short", "pictures": "pictures_short"},
    "paper": {"text": "enwik8", "pictures": "cifar10"},
}
OWN = ""  # of --text and --pictures: the experiment's own data set
ENDED = (0, 1, TOLD)  # exit codes of a sweep that was not stopped: what failed stays without a figure
PLANNED = "_equal_time"  # behind the name of the folder of runs that are planned for equal time


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, report; the exit code."""
    began = time.monotonic()
    given = list(sys.argv[1:] if arguments is None else arguments)
    wanted = parser().parse_args(given)
    codes: list[int] = []

    def work() -> None:
        folders = [Path(wanted.runs, "sweeps", wanted.name + end) for end in ("", PLANNED)]
        for archive in wanted.archives:
            folders += study.unpack(archive, folders[0].parent)
        folders = list(dict.fromkeys(folders))
        if kinds(wanted):
            codes.append(train(wanted, ["-m", "scripts.paper.table2", *given], began, study.limits(wanted)))
        write(folders, wanted.output or folders[0] / "table2.md", bool(kinds(wanted) or wanted.archives))
        if wanted.pack is not None:
            size = study.pack([folder for folder in folders if folder.is_dir()], wanted.pack)
            print(f"{wanted.pack}: {size / 1e6:.1f} MB, read back by --from")

    return exit_code(work) or max(codes, default=0)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="python -m scripts.paper.table2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    for kind, what in (("text", "a file"), ("pictures", "an archive or folder of CIFAR-10")):
        add(f"--{kind}", nargs="?", const=OWN, metavar="PATH", help=f"{what}; without PATH the experiment's own data")
    add("--size", choices=tuple(SIZES), default="short", help="experiments: quickstart and pictures_small, text_short "
        "and pictures_short, or enwik8 and cifar10 (default: short)")  # fmt: skip
    add("--seeds", default="1", metavar="1,2", help="in this order: all runs of a seed before those of the next")
    add("--equal-time", action="store_true", help="then train the others as long as dense attention took")
    add("--rates", metavar="0.01,0.02", help="of Muon: the first seed tries them in whole runs, the others take each "
        "row's best by validation (default: that of the configuration)")  # fmt: skip
    add("--peer", nargs="?", const="1024", metavar="CONTEXTS", help="a row of x-transformers as well, on text in "
        "sequences of each of these contexts (1024, or 1024,12288), on pictures in whole pictures")  # fmt: skip
    add("--peer-rates", metavar="0.0005,0.001", help="the same of its AdamW (default: 0.0005,0.001,0.002 with --rates, "
        "0.001 without)")  # fmt: skip
    study.add_limits(found)
    add("--name", default="table2", help="of the folder in FOLDER/sweeps (default: table2)")
    add("--from", dest="archives", action="append", default=[], type=Path, metavar="FILE.tar.gz",
        help="results that --pack wrote: their finished runs count as done; may be repeated")  # fmt: skip
    add("--pack", type=Path, metavar="FILE.tar.gz", help="write all results, without checkpoints, into one archive")
    add("--output", type=Path, metavar="FILE.md", help="of the figures, with drawings in FILE/; of a file that "
        "has such figures only these are replaced (default: table2.md in the folder of the runs)")  # fmt: skip
    add("overrides", nargs="*", metavar="-- KEY=VALUE", help="of the configuration of every run, or text:KEY=VALUE")
    return found


def kinds(wanted: argparse.Namespace) -> list[str]:
    """Name the kinds of data that are to be trained on."""
    return [kind for kind in ("text", "pictures") if getattr(wanted, kind) is not None]


def train(wanted: argparse.Namespace, command: list[str], began: float, seconds: float | None) -> int:
    """Run what is left of the jobs, first those that look for rates; the exit code."""

    def run(found: list[Any], name: str) -> int:
        return study.run(found, command, name, left(began, seconds), wanted.slots)

    found = jobs(wanted)
    if wanted.peer is not None:
        check_package()
    code, tunes = run(found, wanted.name), any("rate" in own for own, _ in found)
    if tunes and code in ENDED and len(more := jobs(wanted, tuned=tuned(wanted))) > len(found):
        code = run(more, wanted.name)
    if not wanted.equal_time or (code and not tunes) or code not in ENDED:
        return code
    planned = jobs(wanted, equal_time=True, tuned=tuned(wanted))
    return (run(planned, wanted.name + PLANNED) or code) if planned else code


def left(began: float, seconds: float | None) -> float | None:
    """Give the seconds of a limit that are left."""
    return None if seconds is None else max(0.0, seconds - (time.monotonic() - began))


def jobs(
    wanted: argparse.Namespace, equal_time: bool = False, tuned: Mapping[tuple[str, str], str] | None = None
) -> list[tuple[dict[str, str], Any]]:
    """Compose the jobs in their order: by seed, then text before pictures, then rows.

    Args:
        wanted: the command line.
        equal_time: those whose length is chosen for equal time, else those of equal bytes.
        tuned: rate of each kind of data and row, found by the first seed; None: of the rows that look for a rate there
            are the jobs of the first seed alone.

    Raises:
        UserError: a configuration that cannot run, or an option that is no list of numbers.
    """
    found = []
    for number, seed in enumerate(seeds(wanted.seeds)):
        for kind in kinds(wanted):
            steps = equal_time_steps(wanted, kind) if equal_time else {}
            for row in rows(wanted, kind):
                if equal_time and row.name not in steps:
                    continue
                chosen = (tuned or {}).get((kind, row.name))
                rates = row.rates if number == 0 and not equal_time else (chosen,) if chosen else ()
                for rate in rates if row.rates else ("",):
                    found.append(job(wanted, kind, row, seed, rate, steps.get(row.name)))
    return found


def job(
    wanted: argparse.Namespace, kind: str, row: Row, seed: int, rate: str, steps: int | None
) -> tuple[dict[str, str], Any]:
    """Compose a job: what tells it from the others, and its configuration; ``steps`` of one of equal time."""
    own = {"data": kind, **row.own(), "seed": str(seed)}
    name = f"{kind}-{row.stem}" + (f"-rate{rate}" if rate else "") + f"-seed{seed}" + ("-equal-time" if steps else "")
    words = [*row.words, f"seed={seed}", f"name={name}", f"paths.output_dir={quoted(wanted.runs)}"]
    if rate:
        own["rate"] = rate
        words.append(f"{row.key}={rate}")
    if steps:
        own["length"] = "equal time"
        words.append(f"trainer.max_steps={steps_begun(wanted, name) or steps}")
    return own, study.runnable(words)


def rows(wanted: argparse.Namespace, kind: str) -> list[Row]:
    """Lay out the rows of a kind of data."""
    words, name = overrides(wanted, kind), experiment(wanted, kind)
    found = table2_rows.ours(name, words, wanted.rates)
    if wanted.peer is not None:
        rates = table2_rows.peer_rates(wanted.peer_rates, wanted.rates is not None)
        found += table2_rows.peers(name, words, wanted.peer if kind == "text" else None, rates)
    return found


def seeds(text: str) -> list[int]:
    """Read ``--seeds``.

    Raises:
        UserError: they are no whole numbers, or one comes twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(map(int, words))) < len(words):
        raise UserError(f"--seeds must be different whole numbers such as 1,2, found {text!r}")
    return [int(word) for word in words]


def experiment(wanted: argparse.Namespace, kind: str) -> str:
    """Name the experiment of a kind of data."""
    return SIZES[wanted.size][kind]


def overrides(wanted: argparse.Namespace, kind: str) -> list[str]:
    """Give the words of one kind of data: where its data are, then what stands behind ``--``.

    Raises:
        UserError: a word behind ``--`` that is none.
    """
    path, words = getattr(wanted, kind), []
    if path != OWN:
        file = Path(path).expanduser().absolute()
        if not file.exists():
            raise UserError(f"--{kind} must be an existing file or folder, found none there: {file}")
        words = [f"data.path={quoted(file)}"]
        if kind == "pictures":
            words.append("data.allow_partial=true")
        elif file.name.startswith("enwik8"):
            words = ["data=enwik8", f"paths.data_dir={quoted(file.parent)}", "data.allow_partial=true"]
        else:
            words.insert(0, "data=bytes")
    for word in wanted.overrides:
        head, colon, rest = word.partition(":")
        if "=" not in word:
            raise UserError(f"{word!r} behind -- must be KEY=VALUE, text:KEY=VALUE or pictures:KEY=VALUE")
        if colon and "=" not in head:
            if head not in ("text", "pictures"):
                raise UserError(f"{word!r} behind -- must begin with text: or pictures:, found {head}:")
            words += [rest] if head == kind else []
        else:
            words.append(word)
    return words


def equal_time_steps(wanted: argparse.Namespace, kind: str) -> dict[str, int]:
    """Give the steps that take each row as long as dense attention took, by the runs that are finished."""
    from src.reporting import study as figures

    return figures.equal_time_steps(trained(wanted)[kind].runs)


def tuned(wanted: argparse.Namespace) -> dict[tuple[str, str], str]:
    """Give the best rate of each kind of data and row, by the runs that are finished."""
    found = {}
    for kind, mine in trained(wanted).items():
        for group in mine.groups:
            for row in group.rows:
                if (tuning := mine.tuning(group, row.attention)) is not None and tuning.best is not None:
                    found[kind, row.attention] = tuning.best
    return found


def trained(wanted: argparse.Namespace) -> dict[str, Study]:
    """Read the runs of equal bytes, by the kind of their data."""
    from src.reporting import study as figures

    return {found.kind: found for found in figures.studies(study.run_folders(Path(wanted.runs, "sweeps", wanted.name)))}


def steps_begun(wanted: argparse.Namespace, name: str) -> int | None:
    """Give the steps of a run that has begun: they stay, or its schedule would be planned anew."""
    from src.runs.run import Run

    run = Run(Path(wanted.runs, "sweeps", wanted.name + PLANNED, name))
    return run.config().trainer.max_steps if run.config_file.is_file() else None


def write(folders: Sequence[Path], output: Path, trained: bool) -> None:
    """Write the figures of all runs in some folders, and say where they are; nothing where training began no run.

    Raises:
        UserError: a file cannot be written.
    """
    from src.reporting.markdown import write_into
    from src.reporting.results import results

    runs = [run for folder in folders for run in study.run_folders(folder)]
    if not runs and trained:
        return
    block, drawings = results(runs, output.with_suffix("").name)
    write_into(output, block, drawings)
    print(output)


if __name__ == "__main__":
    sys.exit(main())
