"""The peer beside us: validation bits per byte against seconds of training, same card, same minutes, same data.

    python -m scripts.bench.quality --text FILE --minutes 2                     # every row of the text
    python -m scripts.bench.quality --pictures FILE --minutes 2
    python -m scripts.bench.quality --text FILE --minutes 8.5 --row "ours, fixed" --row "x-transformers, context 1,024"
    python -m scripts.bench.quality --from results.json --output docs/results.md   # tables and plots of runs joined

The peer is x-transformers (pip install x-transformers; no dependency of ours), compiled with CUDA graphs, at the best
of three learning rates, which short runs find. Rows are dealt over all GPUs. Results are in --output-json after every
row; started again with the same file and minutes, the command does what is left. Overrides of the configuration follow
behind ``--``, those of one kind of data as text:KEY=VALUE or pictures:KEY=VALUE.

Exit code: 0 when all rows are done, 1 when one failed, 75 when the time was up before all had begun.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.bench.quality_queue import Bench, read
from scripts.bench.quality_rows import OWN_KEYS, RATES, Result, Row, report, rows
from scripts.paper.study import rates_of, runnable
from scripts.paper.table2 import OWN, kinds, overrides
from src.errors import UserError, exit_code
from src.reporting.markdown import write_into
from src.sweep.launcher import check_count, checked_minutes

PROGRAM = "python -m scripts.bench.quality"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train what is left, report; the exit code."""
    began = time.monotonic()
    given = list(sys.argv[1:] if arguments is None else arguments)
    wanted = parser().parse_args(given)
    codes: list[int] = []

    def work() -> None:
        found = [result for file in wanted.sources for result in read(file)]
        if kinds(wanted):
            bench = Bench(jobs(wanted), wanted, shlex.join([*PROGRAM.split(), *given]), began)
            codes.append(bench.run())
            found += bench.results
        elif not wanted.sources:
            raise UserError("--text FILE, --pictures FILE or --from FILE.json must be given, found none of them")
        write(found, wanted.output)

    code = exit_code(work, f"stopped: the rows that are done are in {wanted.output_json}, the same command goes on")
    return code or max(codes, default=0)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    found = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    for kind, what in (("text", "a file"), ("pictures", "an archive or folder of CIFAR-10")):
        add(f"--{kind}", nargs="?", const=OWN, metavar="PATH", help=f"{what}; without PATH the experiment's own data")
    add("--minutes", type=float, default=2.0, help="of training of each row (default: %(default)s)")
    add("--row", action="append", metavar="NAME", help="default: all; may be repeated")
    add("--rates", default=",".join(map(str, RATES)), help="of the peer (default: %(default)s)")
    add("--rate-share", type=float, default=0.25, help="of the minutes, to try a rate (default: %(default)s)")
    add("--val-bytes", type=int, metavar="N", help="scored by validations before the last (default: the whole split)")
    add("--gpus", type=int, metavar="N", help="default: all")
    add("--deadline", type=float, metavar="SECONDS", help="rows that would end later, counted from now, do not begin")
    add("--output-json", type=Path, default=Path("runs/bench_quality.json"), metavar="FILE.json",
        help="all results (default: %(default)s)")  # fmt: skip
    add("--from", dest="sources", action="append", default=[], type=Path, metavar="FILE.json",
        help="results of other runs, shown as well; may be repeated")  # fmt: skip
    add("--output", type=Path, metavar="FILE.md", help="of the tables, with drawings in FILE/; of a file that has "
        "such tables only these are replaced")  # fmt: skip
    add("overrides", nargs="*", metavar="-- KEY=VALUE", help="of the configuration of every row, or text:KEY=VALUE")
    return found


def jobs(wanted: argparse.Namespace) -> list[Result]:
    """Lay out what is asked for, and check that it can run.

    Raises:
        UserError: an option, a row or a configuration that cannot be.
    """
    minutes, rates = checked_minutes("--minutes", wanted.minutes), rates_of("--rates", wanted.rates)
    if not 0 < wanted.rate_share <= 1:
        raise UserError(f"--rate-share must be above 0 and at most 1, found {wanted.rate_share:g}")
    for name in ("gpus", "val_bytes"):
        if getattr(wanted, name) is not None:
            check_count(f"--{name.replace('_', '-')}", getattr(wanted, name))
    found = []
    for row in chosen(wanted, rates):
        words = overrides(wanted, row.kind)
        for word in words:
            if word.partition("=")[0] in OWN_KEYS:
                raise UserError(f"{word!r} behind -- must not be of {', '.join(OWN_KEYS)}: the rows choose them")
        job = row.job(words, minutes, wanted.rate_share) | {"val_bytes": wanted.val_bytes}
        runnable(job["keys"])
        found.append(job)
    return found


def chosen(wanted: argparse.Namespace, rates: Sequence[float]) -> list[Row]:
    """Give the rows that are asked for.

    Raises:
        UserError: a name that no row has.
    """
    there = [row for kind in kinds(wanted) for row in rows(kind, rates)]
    names = dict.fromkeys(row.name for row in there)
    for name in wanted.row or ():
        if name not in names:
            raise UserError(f"--row must be one of {'; '.join(names)}, found {name!r}")
    return [row for row in there if not wanted.row or row.name in wanted.row]


def write(results: Sequence[Result], output: Path | None) -> None:
    """Print the tables, and write them with drawings where that is asked for.

    Raises:
        UserError: a file cannot be written.
    """
    block, drawings = report(results, "" if output is None else output.stem)
    print("\n".join(line for line in block.splitlines() if line.startswith(("## ", "> ", "| ", "- "))), flush=True)
    if output is None:
        return
    write_into(output, block, drawings)
    print(output)


if __name__ == "__main__":
    sys.exit(main())
