"""Sweep folders made by hand: what runs leave, without any training."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

STEP_BYTES = 1000
LABEL = "enwik8, partial: first 1,000,000 bytes of 100,000,000"
BROKE = "it <broke> & ended"
Curve = list[tuple[int, float, float]]  # step, seconds, bits per byte


def config(pattern: str = "dense", depth: int = 2, **changes: Any) -> dict[str, Any]:
    made = {
        "name": f"enwik8-{pattern}-d{depth}",
        "seed": 1,
        "attention": {"pattern": pattern, "stride": 32},
        "model": {"depth": depth, "width": 64, "heads": 2, "row": 32},
        "data": {"name": "enwik8", "context": 500, "batch_size": 2, "path": None},
        "precision": {"name": "fp32"},
        "trainer": {"max_steps": 30, "epochs": 80},
        "logger": {"kind": "csv"},
        "paths": {"output_dir": "runs"},
    }
    for key, value in changes.items():
        group, _, leaf = key.partition("__")
        made[group] = {**made[group], leaf: value} if leaf else value
    return made


def run(
    folder: Path,
    content: dict[str, Any],
    val: Curve = (),  # type: ignore[assignment]
    step_ms: float | None = 100.0,
    test: float | None = None,
    partial: bool = True,
    label: str = LABEL,
) -> Path:
    """Leave a run directory; it is finished if it has a test figure."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    rows = []
    for step, seconds, bits in val:
        common = {"step": step, "train/bytes_seen": step * STEP_BYTES, "train/seconds": seconds}
        speed = {} if step_ms is None else {"train/step_ms": step_ms, "train/tokens_per_second": 1e6 / step_ms}
        rows.append({**common, "train/bits_per_byte": bits + 0.1, "train/peak_rss_gib": 0.5, **speed})
        rows.append({**common, "val/bits_per_byte": bits, "data/partial": float(partial)})
    if rows:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    if test is not None:
        summary = {"status": "finished", "test/bits_per_byte": test, "data/label": label, "data/partial": partial,
                   "train/steps": val[-1][0], "train/step_ms": step_ms}  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    origin = {"git_commit": "0123456789abcdef", "git_changed": False, "cpus": 2, "gpus": [],
              "packages": {"torch": "2.13.0", "lightning": "2.6.6"}}  # fmt: skip
    (folder / "provenance.jsonl").write_text(json.dumps(origin) + "\n")
    return folder


def sample(folder: Path, text: str = "The sample") -> None:
    (folder / "samples").mkdir()
    (folder / "attention").mkdir()
    (folder / "samples" / "step-0000010.txt").write_text("an older one")
    (folder / "samples" / "step-0000020.txt").write_text(text)
    Image.new("RGB", (900, 300), "teal").save(folder / "attention" / "step-0000020.png")
    Image.new("RGB", (64, 64), "navy").save(folder / "pattern.png")


def entry(number: int, name: str, state: str, overrides: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"number": number, "name": name, "overrides": overrides, "state": state, "run": name, "exit_code": None,
            "error": None, "started": None, "ended": None, "seconds": 1.0, **more}  # fmt: skip


def sweep(folder: Path, jobs: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"name": folder.name, "command": ["-m", "src.train", "-m", "attention=dense,fixed"], "slots": 2,
               "started": "2026-01-31T12:00:00+00:00", "varied": ["attention"], "jobs": jobs}  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def every_state(folder: Path) -> Path:
    """A sweep of five jobs: finished twice, killed while running, failed before it began, waiting."""
    run(folder / "a-dense", config(), [(10, 2.0, 5.0), (20, 4.0, 4.5), (30, 6.0, 4.2)], 200.0, test=4.3)
    sample(folder / "a-dense")
    run(folder / "a-fixed", config("fixed"), [(10, 1.0, 5.1), (20, 2.0, 4.6), (30, 3.0, 4.1)], 100.0, test=4.25)
    run(folder / "a-strided", config("strided"), [(10, 1.0, 5.2)], 50.0)
    jobs = [
        entry(0, "a-dense", "finished", {"attention": "dense", "model.depth": "2"}),
        entry(1, "a-fixed", "finished", {"attention": "fixed", "model.depth": "2"}),
        entry(2, "a-strided", "running", {"attention": "strided", "model.depth": "2"}),
        entry(3, "a-dense-4", "failed", {"attention": "dense", "model.depth": "4"}, run=None, error=BROKE),
        entry(4, "a-fixed-4", "waiting", {"attention": "fixed", "model.depth": "4"}, run=None),
    ]  # fmt: skip
    return sweep(folder, jobs)


def four_settings(folder: Path) -> Path:
    """A sweep of sixteen finished jobs: two kinds of attention, depths, precisions and recipes."""
    jobs = []
    for number in range(16):
        pattern, depth, precision, recipe = (
            values[number >> i & 1]
            for i, values in enumerate((("dense", "fixed"), (12, 30), ("bf16", "fp16"), ("modern", "paper")))
        )
        name, bits = f"enwik8-{pattern}-d{depth}-{precision}-recipe{recipe}", 4.0 + (recipe == "paper")
        content = config(pattern, depth, precision={"name": precision})
        run(folder / name, content, [(10, 1.0, bits + 1), (20, 2.0, bits)], 100.0 * depth, test=bits + 0.1)
        settings = {"attention": pattern, "model.depth": str(depth), "precision": precision, "recipe": recipe}
        jobs.append(entry(number, name, "finished", settings))
    return sweep(folder, jobs)
