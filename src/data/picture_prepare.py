"""Writing one split of ImageNet 64x64 as a memory-mapped file: on all cores, in bounded memory, going on after a kill.

Pictures have their place before any is read, so workers write into the same draft without waiting for one another. A
journal beside it has a line for every chunk that is on the disk; the draft gets its name when all are.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.files import alone, written_whole
from src.data.picture_sources import WIDTH, NpzTask, PngTask, npz_count, png_index
from src.errors import UserError
from src.system.progress_bars import count_progress

HEADER = 128  # bytes before the pictures in a .npy file of this shape
PNG = "ImageNet 64x64 (van den Oord et al. 2016)"
NPZ = "ImageNet 64x64, npz release (Chrabaszcz et al. 2017), not comparable with the paper's figures"


@dataclass(frozen=True)
class Split:
    """One split of one release.

    Args:
        name: ``train`` or ``validation``.
        release: ``png`` or ``npz``.
        label: the release's name, as it goes with every figure.
        files: the archives, in order.
        official: pictures that the official split has.
    """

    name: str
    release: str
    label: str
    files: tuple[Path, ...]
    official: int


def find_splits(folder: Path) -> list[Split]:
    """Find both splits of one release in a folder.

    Raises:
        UserError: there is neither release, or both, or one is incomplete.
    """
    tars = [folder / "train_64x64.tar", folder / "valid_64x64.tar"]
    batches = [folder / f"train_data_batch_{number}.npz" for number in range(1, 11)]
    npz, val = [path for path in batches if path.is_file()], folder / "val_data.npz"
    if all(path.is_file() for path in tars) and not npz:
        names = (("train", tars[0], 1_281_149), ("validation", tars[1], 49_999))
        return [Split(name, "png", PNG, (path,), count) for name, path, count in names]
    if npz and val.is_file() and not any(path.is_file() for path in tars):
        return [
            Split("train", "npz", NPZ, tuple(npz), 1_281_167),
            Split("validation", "npz", NPZ, (val,), 50_000),
        ]
    there = [path.name for path in (*tars, *npz, val) if path.is_file()]
    raise UserError(
        f"{folder} must hold train_64x64.tar and valid_64x64.tar, or train_data_batch_1.npz to _10.npz and "
        f"val_data.npz, of one release alone, found {', '.join(there) or 'none of them'}: get them from image-net.org, "
        "which asks for a login"
    )


class Preparation:
    """The making of ``out/NAME.npy`` and ``NAME.json``.

    Args:
        split: what is read.
        out: the folder.
        skip_bad: leave bad pictures out and list them; else refuse them.
        allow_partial: accept another number of pictures than the official.
        workers: processes.
        chunk: pictures that are read, written and journaled at once.
    """

    def __init__(
        self, split: Split, out: Path, *, skip_bad: bool, allow_partial: bool, workers: int, chunk: int = 1024
    ) -> None:
        self.split, self.out = split, out
        self.skip_bad, self.allow_partial = skip_bad, allow_partial
        self.workers, self.chunk = workers, chunk
        self.final = out / f"{split.name}.npy"
        self.side_file = out / f"{split.name}.json"
        self.draft = out / f".{split.name}.npy.draft"
        self.journal = out / f".{split.name}.journal"

    def run(self) -> dict[str, Any]:
        """Prepare the split, or go on with it, and give its side file's content.

        Raises:
            UserError: a bad picture or archive, a wrong count, no space, or files of something else in the way.
        """
        with alone(self.out):
            known = self._finished()
            if known is not None:
                return known
            index = [png_index(path) for path in self.split.files] if self.split.release == "png" else []
            counts = [len(part) for part in index] or [npz_count(path) for path in self.split.files]
            self._judge_count(sum(counts))
            try:
                done = self._begin(sum(counts))
                self._work(list(self._tasks(index, counts, done)), sum(counts), done)
                return self._finish(sum(counts), done)
            except OSError as error:
                raise UserError(
                    f"cannot write in {self.out} ({error.strerror or error}); choose another --out"
                ) from error

    def sources(self) -> list[dict[str, Any]]:
        """Give what tells the archives from others: name, bytes, time of change."""
        states = [(path.name, path.stat()) for path in self.split.files]
        return [{"name": name, "bytes": state.st_size, "mtime_ns": state.st_mtime_ns} for name, state in states]

    def _finished(self) -> dict[str, Any] | None:
        if not (self.final.exists() and self.side_file.exists()):
            return None
        try:
            known: dict[str, Any] = json.loads(self.side_file.read_text())
        except ValueError:
            known = {}
        if known.get("sources") != self.sources():
            raise UserError(f"{self.final} was prepared from other archives: remove it to prepare it again")
        if known["skipped"] and not self.skip_bad:
            raise UserError(f"{self.final} was prepared without bad pictures: remove it, or use --on-bad=skip")
        return known

    def _judge_count(self, count: int) -> None:
        if count < 1 or (count != self.split.official and not self.allow_partial):
            raise UserError(
                f"{self.split.files[0].parent} must hold {self.split.official:,} {self.split.name} pictures, found "
                f"{count:,}; --allow-partial takes them, labelled so"
            )

    def _begin(self, count: int) -> dict[int, dict[str, Any]]:
        """Open the draft and read the journal, or start both; give the lines of what is done, by first picture."""
        header = json.dumps({"sources": self.sources(), "pictures": count, "chunk": self.chunk})
        if self.draft.exists() and self.journal.exists():
            lines = self.journal.read_text().split("\n")[:-1]  # a last line without its end was cut by the kill
            if lines and lines[0] == header:
                whole = "\n".join(lines) + "\n"
                os.truncate(self.journal, len(whole.encode()))
                entries = [json.loads(line) for line in lines[1:]]
                return {entry["start"]: entry for entry in entries if self.skip_bad or not entry["bad"]}
        for leftover in (self.journal, self.draft):
            leftover.unlink(missing_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        needed, free = HEADER + count * WIDTH, shutil.disk_usage(self.out).free
        if free < needed:
            raise UserError(f"{self.out} needs {needed / 1e9:.1f} GB of free space, found {free / 1e9:.1f} GB")
        with self.draft.open("wb") as file:
            _write_header(file, count)
            file.truncate(needed)
        self.journal.write_text(header + "\n")
        return {}

    def _tasks(
        self, index: list[list[tuple[str, int, int]]], counts: list[int], done: dict[int, Any]
    ) -> Iterator[PngTask | NpzTask]:
        first = 0
        for number, (path, count) in enumerate(zip(self.split.files, counts, strict=True)):
            starts = range(first, first + count, self.chunk)
            if index:
                members = index[number]
                for start in starts:
                    if start not in done:
                        yield PngTask(path, start, members[start - first : start - first + self.chunk])
            elif not done.keys() >= set(starts):
                yield NpzTask(path, first, self.chunk, frozenset(done))
            first += count

    def _work(self, tasks: list[PngTask | NpzTask], count: int, done: dict[int, dict[str, Any]]) -> None:
        with count_progress() as progress:
            bar = progress.add_task(f"preparing {self.split.name}", total=count)
            for entry in self._entries(tasks):
                for start, line in entry.items():
                    if line["bad"] and not self.skip_bad:
                        _, name, reason = line["bad"][0]
                        raise UserError(
                            f"{self.split.files[0]}: {name} {reason}; "
                            "--on-bad=skip leaves such pictures out and lists them"
                        )
                    done[start] = line
                progress.update(bar, completed=sum(line["pictures"] for line in done.values()))

    def _entries(self, tasks: Iterable[PngTask | NpzTask]) -> Iterator[dict[int, dict[str, Any]]]:
        """Do the tasks and give the journal's new lines; a few tasks at a time are under way."""
        if self.workers == 1:
            yield from (do_task(task, self.draft, self.journal) for task in tasks)
            return
        waiting, running = iter(tasks), set[Future[dict[int, dict[str, Any]]]]()
        with ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn")) as pool:
            try:
                while True:
                    while len(running) < 2 * self.workers and (task := next(waiting, None)) is not None:
                        running.add(pool.submit(do_task, task, self.draft, self.journal))
                    if not running:
                        return
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        yield future.result()
            except BrokenProcessPool as error:
                raise UserError("a worker was killed, perhaps for memory: run the same command to go on") from error
            finally:
                pool.shutdown(cancel_futures=True)

    def _finish(self, count: int, done: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """Give the draft its name, without the skipped pictures' rows."""
        lines = [done[start] for start in sorted(done)]
        bad = [item for line in lines for item in line["bad"]]
        kept = count - len(bad)
        if kept < 1:
            raise UserError(f"{self.split.files[0]} has no picture that can be used: all {count:,} are bad")
        sums = "".join(line["sha256"] for line in lines)
        known = {
            "release": self.split.release,
            "label": self.split.label,
            "pictures": kept,
            "official": self.split.official,
            "skipped": [{"picture": number, "member": name, "reason": reason} for number, name, reason in bad],
            "sources": self.sources(),
            "order": "sorted by member name" if self.split.release == "png" else "order of the batches",
            "sha256": hashlib.sha256(sums.encode()).hexdigest(),
        }
        if bad:
            self._write_kept(count, kept, {number for number, *_ in bad})
        with written_whole(self.side_file) as file:
            file.write(json.dumps(known, indent=1).encode())
        if not bad:
            self.draft.replace(self.final)
        self.draft.unlink(missing_ok=True)
        self.journal.unlink()
        return known

    def _write_kept(self, count: int, kept: int, bad: set[int]) -> None:
        with self.draft.open("rb") as draft, written_whole(self.final) as file:
            draft.seek(HEADER)
            _write_header(file, kept)
            for number in range(count):
                row = draft.read(WIDTH)
                if number not in bad:
                    file.write(row)


def do_task(task: PngTask | NpzTask, draft: Path, journal: Path) -> dict[int, dict[str, Any]]:
    """Read a task's pictures, write each portion to the draft and then its line to the journal; give the lines."""
    lines: dict[int, dict[str, Any]] = {}
    for portion in task.read():
        with draft.open("r+b") as file:
            file.seek(HEADER + portion.start * WIDTH)
            file.write(portion.rows.data)
            file.flush()
            os.fsync(file.fileno())
        sha256 = hashlib.sha256(portion.rows.data).hexdigest()
        line = {"start": portion.start, "pictures": len(portion.rows), "sha256": sha256, "bad": portion.bad}
        with journal.open("ab", buffering=0) as file:
            file.write((json.dumps(line) + "\n").encode())  # one write: lines of several processes do not mix
        lines[portion.start] = line
    return lines


def _write_header(file: Any, count: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, WIDTH)})
    assert file.tell() == HEADER
