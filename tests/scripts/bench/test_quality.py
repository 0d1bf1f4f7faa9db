"""The peer beside us: rows that are trained, chosen, skipped, or fail; tables and drawings of what they gave."""

import importlib.util
import json
import sys

import pytest
import torch

from scripts.bench import quality, quality_models, quality_queue, quality_run
from scripts.bench.quality_rows import BEGIN, END, identity, report, rows
from scripts.paper.study import runnable
from src.reporting.markdown import put_into
from src.sweep.runner import TIME_UP
from tests.tiny_runs import corpus

LITTLE = (
    "model.depth=1", "model.width=16", "model.heads=2", "data.context=64", "data.batch_size=4", "data.workers=0",
    "attention.stride=8", "attention.summary=2", "precision=fp32",
)  # fmt: skip
OURS, OLD, PEER = "ours, fixed", "ours, fixed, paper's recipe", "x-transformers, context 12,288"
MADE = {"card": "H100", "packages": {"torch": "2.11", "triton": "3.6", "x-transformers": "2.3"}, "date": "2026-01-02",
        "commit": "abc"}  # fmt: skip


class Here:
    """Answers jobs in this process; ``count`` tells how many processes there were, ``names`` what they did."""

    count = 0
    names: tuple[str, ...] = ()

    def __init__(self, device):
        Here.count += 1
        self.device = device

    def answer(self, job, say):
        Here.names += (job["name"],)
        return json.loads(json.dumps(quality_run.answer(json.loads(json.dumps(job)), say)))

    def close(self):
        pass

    kill = close


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quality_queue, "Child", Here)
    monkeypatch.setattr(Here, "count", 0)
    monkeypatch.setattr(Here, "names", ())
    monkeypatch.setattr(quality_run, "WARM", 1)
    monkeypatch.setattr(quality_run, "TIMED", 2)
    return Here


def arguments(tmp_path, *names, minutes=0.001, words=LITTLE, more=()):
    chosen = [part for name in names for part in ("--row", name)]
    file = tmp_path / "text.bin"
    if not file.exists():
        corpus(tmp_path).rename(file)
    return ["--text", str(file), "--minutes", str(minutes), *chosen, *more, "--", *words]


def results(tmp_path):
    return json.loads((tmp_path / "runs" / "bench_quality.json").read_text())["results"]


def made(name="ours, fixed", bits=2.0, kind="text", minutes=2.0, card="H100", label="wiki.txt (9 bytes)", **more):
    job = next(row for row in rows(kind) if row.name == name).job(["data=bytes"], minutes, 0.25)
    return {
        **job, "val_bytes": None, "made": MADE | {"card": card}, "label": label, "partial": False, "official": False,
        "rate": 0.003, "muon_rate": 0.02, "parameters": 1234, "ms": 5.0, "seconds": 60 * minutes, "bytes": 4_000_000,
        "curve": [[60.0, 2_000_000, bits + 1], [120.0, 4_000_000, bits]], "val": bits, "val_half": bits - 0.1,
        "test": bits, "test_half": None, "command": "python -m scripts.bench.quality --text x", **more,
    }  # fmt: skip


def failed(name, error):
    job = next(row for row in rows("text") if row.name == name).job(["data=bytes"], 2.0, 0.25)
    return {**job, "val_bytes": None, "error": error, "command": "x"}


def test_a_row_in_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "docs" / "results.md"
    given = arguments(tmp_path, OLD, minutes=0.01, more=("--output", str(out), "--val-bytes", "1000"))
    assert quality.main(given) == 0
    (found,) = results(tmp_path)
    assert (found["name"], found["kind"], found["minutes"]) == (OLD, "text", 0.01)
    seconds, nbytes, bits = zip(*found["curve"], strict=True)
    assert len(found["curve"]) == 8 and list(seconds) == sorted(seconds) and bits[-1] == found["val"] < 8.1
    assert found["bytes"] == nbytes[-1] == found["steps"] * 4 * 64
    assert found["seconds"] == pytest.approx(found["steps"] * found["ms"] / 1000, rel=0.1, abs=0.01)
    assert found["rate"] == 0.00035 and found["peak_gib"] is None
    for split in ("val", "test"):
        assert abs(found[f"{split}_half"] - found[split]) < 0.1
    assert f"text: {OLD}: step {found['steps']:,} of {found['steps']:,}" in capsys.readouterr().out
    text = out.read_text()
    assert f"| {OLD} | AdamW 0.00035 | {found['parameters']:,} |" in text
    assert "a stand-in. Trained for minutes: NOT comparable with published figures." in text
    (drawing,) = (out.parent / "results").iterdir()
    assert f"(results/{drawing.name})" in text and drawing.suffix == ".svg"


def test_done_rows_are_skipped_and_failed_ones_tried_again(tmp_path, here, monkeypatch, capsys):
    whole = quality_run.train
    broken = [True]

    def train(model, config, *rest):
        if config.optimizer.name == "muon" and broken[0]:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(model, config, *rest)

    monkeypatch.setattr(quality_run, "train", train)
    given = arguments(tmp_path, OLD, OURS)
    assert quality.main(given) == quality_queue.FAILED
    assert sorted(here.names) == [OURS, OLD] and here.count == 2  # a failure costs the process
    printed = capsys.readouterr().out
    reason = "there is not enough memory (CUDA out of memory. Tried to allocate 2 GiB)"
    assert f"| {OURS}: failed, {reason}" in printed and f"| {OLD} | AdamW " in printed
    broken[0] = False
    assert quality.main(given) == 0
    assert here.names[2:] == (OURS,) and f"bench_quality.json: {OLD}\n" in capsys.readouterr().out
    assert ["val" in one for one in results(tmp_path)] == [True, True]
    assert quality.main(given) == 0 and len(here.names) == 3


def test_other_minutes_rates_or_words_make_another_row():
    row = rows("text")[0]
    jobs = [row.job(["a=1"], 2.0, 0.25), row.job(["a=2"], 2.0, 0.25), row.job(["a=1"], 3.0, 0.25),
            row.job(["a=1"], 2.0, 0.5), rows("text", [0.1])[0].job(["a=1"], 2.0, 0.25)]  # fmt: skip
    assert len({identity(job) for job in jobs}) == len(jobs)
    assert identity(json.loads(json.dumps(jobs[0]))) == identity(jobs[0])


def test_the_best_of_the_rates_gets_the_minutes(tmp_path, here, monkeypatch):
    class Nothing(quality_models.Ours):
        pass

    trained = []

    def train(model, config, data, steps, points, most, say):
        rate = config.optimizer.learning_rate
        trained.append((rate, points))
        model.begin(config, steps)
        bits = {0.1: 3.0, 0.2: 2.5, 0.3: float("nan")}[rate]
        return quality_run.Training([(0.1, 256, bits)], 0.01 * steps, None)

    monkeypatch.setattr(quality_run, "Peer", Nothing)
    monkeypatch.setattr(quality_run, "train", train)
    monkeypatch.setattr(quality_run, "measured", lambda *rest: quality_run.Planned(0.005, 1.0))
    assert quality.main(arguments(tmp_path, PEER, minutes=0.1, more=("--rates", "0.3,0.1,0.2"))) == 0
    assert trained == [(0.3, 1), (0.1, 1), (0.2, 1), (0.2, quality_run.POINTS)]
    (found,) = results(tmp_path)
    assert found["rates_tried"] == {"0.3": None, "0.1": 3.0, "0.2": 2.5} and found["rate"] == 0.2
    assert found["steps"] == 600  # as the rates' runs took 10 ms a step
    text, _ = report([found], "x")
    assert "runs of 25% of the minutes: 0.3: no figure, 0.1: 3.000, 0.2: 2.500." in text


def test_without_the_package_the_peer_is_a_sentence(tmp_path, here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "x_transformers", None)
    assert quality.main(arguments(tmp_path, PEER, OLD)) == quality_queue.FAILED
    printed = capsys.readouterr().out
    assert f"| {PEER}: failed, x-transformers is not installed" in printed and "pip install x-transformers" in printed
    assert f"| {OLD} | AdamW" in printed


@pytest.mark.skipif(importlib.util.find_spec("x_transformers") is None, reason="needs x-transformers")
def test_the_peer_predicts_every_byte_from_those_before_it():
    config = runnable(["experiment=text_short", "logger=none", "attention=dense", "recipe=paper", *LITTLE])
    torch.manual_seed(0)
    model = quality_models.decoder(config).eval()
    x = torch.randint(256, (2, 64), dtype=torch.uint8)
    other = x.clone()
    other[:, 40] = 255 - other[:, 40]
    with torch.no_grad():
        before, after = model(x), model(other)
    assert before.shape == x.shape and torch.allclose(before[:, :40], after[:, :40], atol=1e-5)
    assert (before[:, 41:] != after[:, 41:]).any()


def test_rows_that_would_end_too_late_do_not_begin(tmp_path, here, capsys):
    given = arguments(tmp_path, OURS, OLD, more=("--deadline", "60"))
    assert quality.main(given) == TIME_UP and here.count == 0
    assert f"not begun, for they would end behind --deadline: {OURS}; {OLD}" in capsys.readouterr().out


def test_a_process_that_dies_is_a_failed_row(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert quality.main(arguments(tmp_path, OURS, OLD)) == quality_queue.FAILED
    assert capsys.readouterr().out.count(": failed, its process ended with exit code 1 |") == 2


def test_what_cannot_be_is_said_in_a_sentence(tmp_path, here, capsys):
    def said(*given):
        assert quality.main(given) == 2
        return capsys.readouterr().err

    assert "--row must be one of x-transformers, context 1,024; " in said(*arguments(tmp_path, "theirs"))
    assert "--rates must be different numbers above 0" in said(*arguments(tmp_path, more=("--rates", "1,a")))
    assert "--rate-share must be above 0 and at most 1, found 2" in said(*arguments(tmp_path, more=("--rate-share=2",)))
    assert "--minutes must be a number of minutes above 0" in said(*arguments(tmp_path, minutes=0))
    assert "--gpus must be at most the 0" in said(*arguments(tmp_path, more=("--gpus", "1")))
    assert "must not be of experiment, recipe, attention" in said(*arguments(tmp_path, words=("recipe=paper",)))
    assert "model.depth" in said(*arguments(tmp_path, words=("model.depth=0",)))
    assert "must be given, found none of them" in said("--minutes", "2")
    (tmp_path / "other.json").write_text("[]")
    assert "must be a file that --output-json wrote" in said("--from", str(tmp_path / "other.json"))
    assert here.count == 0


def test_tables_and_drawings_of_several_runs_joined(tmp_path, capsys):
    first = [made(bits=2.1), made("ours, dense", 2.2), failed(PEER, "it broke")]
    second = [
        made(PEER, 2.0, rates_tried={"0.001": 2.5}, muon_rate=None), made(minutes=8.5), made(card="H200"),
        made(label="b (8 bytes)"), made("ours, strided", 3.0, "pictures", val_half=None, partial=True),
    ]  # fmt: skip
    files = [tmp_path / name for name in ("a.json", "b.json")]
    for file, found in zip(files, (first, second), strict=True):
        file.write_text(json.dumps({"results": found}))
    out = tmp_path / "results.md"
    out.write_text(f"# Mine\n\n{BEGIN}\nold\n{END}\n\nbelow\n")
    assert quality.main([word for file in files for word in ("--from", str(file))] + ["--output", str(out)]) == 0
    text = out.read_text()
    assert text.startswith("# Mine\n") and text.endswith("\n\nbelow\n") and "old" not in text and "it broke" not in text
    table = [line.split(" | ")[0][2:] for line in text.splitlines() if line.startswith(("| x", "| ours"))]
    assert table[:3] == [PEER, OURS, "ours, dense"]  # by validation
    assert f"| {PEER} | AdamW 0.003 | 1,234 | 5.0 | 120 | 4.0 | **2.000** | **1.900** | **2.000** | – |" in text
    assert text.count("## Text, 2 minutes on one H100: ours beside") == 1
    assert "## Text, 2 minutes on one H100 (2): ours" in text and "## Text, 2 minutes on one H200: ours" in text
    assert "## Text, 8.5 minutes on one H100: ours" in text and ", partial. Trained for minutes: NOT comp" in text
    assert "H100, torch 2.11, triton 3.6, x-transformers 2.3, 2026-01-02, commit abc: `python -m scripts." in text
    drawings = {file.name for file in (tmp_path / "results").iterdir()}
    assert len(drawings) == 5 and all(f"(results/{name})" in text for name in drawings)


def test_colours_tell_the_peer_from_our_attentions():
    names = ("ours, dense", "ours, fixed", "ours, strided", "ours, dense, context 1,024", PEER)
    _, drawings = report([made(name) for name in names], "x")
    (drawing,) = (content.decode() for content in drawings.values())
    for hue in ("hue-dense", "hue-fixed", "hue-strided", "hue-3"):
        assert f'class="line {hue}"' in drawing
    assert ">x-transformers</text>" in drawing and ">context 1,024</text>" in drawing


def test_only_the_part_of_a_document_that_is_ours_is_replaced():
    block = f"{BEGIN}\n\nnew\n\n{END}\n"
    assert put_into(f"# Mine\n\n{BEGIN}\nold\n{END}\n\nbelow\n", block) == f"# Mine\n\n{block.rstrip()}\n\nbelow\n"
    assert put_into("# Mine\n", block) == f"# Mine\n\n{block}"
    assert put_into("", block) == block


def test_words_that_not_all_rows_have_are_named():
    text, _ = report([made(words=["seed=1"], keys=["1"]), made(words=["seed=2"], keys=["2"])], "x")
    assert "| ours, fixed (seed=1) |" in text and "| ours, fixed (seed=2) |" in text
