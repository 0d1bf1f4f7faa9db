"""Rates that table 2 looks for and the peer beside ours: which jobs, in which order, and what the table says."""

import json
import sys

import pytest

from scripts.paper import table2
from scripts.paper.study import Studied, run_folders
from src.config.command_line import CONF
from src.reporting.results import results
from src.sweep.plan import planned
from src.sweep.runner import TIME_UP
from tests.reporting.made import config, run
from tests.scripts.paper.stub import package
from tests.scripts.paper.test_table2 import LITTLE, VAL, said
from tests.tiny_runs import corpus

TUNED = {("text", "fixed"): "0.02", ("text", "x-transformers, context 1,024"): "0.001"}


def wanted(*arguments):
    return table2.parser().parse_args(["--text", *arguments])


def names(found):
    return [config.name for _, config in found]


def test_the_first_seed_tries_the_rates_and_the_others_take_the_best():
    asked = wanted("--seeds", "3,1,2", "--rates", "0.010,0.02", "--", "attention=fixed")
    trials = ["text-fixed-rate0.01-seed3", "text-fixed-rate0.02-seed3"]
    found = table2.jobs(asked)
    assert names(found) == trials
    assert [c.optimizer.muon_learning_rate for _, c in found] == [0.01, 0.02]
    assert {c.optimizer.learning_rate for _, c in found} == {0.003}
    assert found[0][0] == {"data": "text", "attention": "fixed", "seed": "3", "rate": "0.01"}
    more = table2.jobs(asked, tuned=TUNED)
    assert names(more) == [*trials, "text-fixed-rate0.02-seed1", "text-fixed-rate0.02-seed2"]  # seed 3 is not run twice
    assert names(table2.jobs(asked, tuned={})) == trials  # no run of the row came to its end


def test_the_rate_is_adamw_s_where_it_trains_everything():
    (first, _) = table2.jobs(wanted("--rates", "0.001,0.002", "--", "attention=dense", "recipe=paper"))
    assert (first[1].optimizer.name, first[1].optimizer.learning_rate) == ("adamw", 0.001)


def test_the_peer_has_as_many_bytes_a_step_and_its_own_recipe():
    asked = wanted("--pictures", "--peer", "1024,12288", "--", "attention=fixed", "trainer.max_steps=9",
                   "optimizer.muon_learning_rate=0.5", "recipe=modern")  # fmt: skip
    found = {config.name: (own, config) for own, config in table2.jobs(asked)}
    assert list(found) == [
        "text-fixed-seed1", "text-x-transformers-1024-seed1", "text-x-transformers-12288-seed1",
        "pictures-fixed-seed1", "pictures-x-transformers-3072-seed1",
    ]  # fmt: skip
    own, short = found["text-x-transformers-1024-seed1"]
    assert own == {"data": "text", "model": "x-transformers, context 1,024", "seed": "1"}
    assert (short.data.context, short.data.batch_size, short.trainer.max_steps) == (1024, 12, 9)
    assert (short.optimizer.name, short.optimizer.learning_rate, short.optimizer.schedule) == ("adamw", 0.001, "linear")
    assert short.model.depth == found["text-fixed-seed1"][1].model.depth
    pictures = found["pictures-x-transformers-3072-seed1"][1].data
    assert (pictures.context, pictures.batch_size) == (3072, 4)


def test_the_peer_tries_its_own_rates():
    tried = [config.optimizer.learning_rate for own, config in
             table2.jobs(wanted("--peer", "--rates", "0.02", "--", "attention=fixed")) if "model" in own]  # fmt: skip
    assert tried == [0.0005, 0.001, 0.002]
    asked = wanted("--peer", "--peer-rates", "0.003,0.001", "--seeds", "1,2", "--", "attention=fixed")
    assert names(table2.jobs(asked)) == [
        "text-fixed-seed1", "text-x-transformers-1024-rate0.003-seed1", "text-x-transformers-1024-rate0.001-seed1",
        "text-fixed-seed2",
    ]  # fmt: skip
    assert names(table2.jobs(asked, tuned=TUNED))[-1] == "text-x-transformers-1024-rate0.001-seed2"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--rates", "0.1,x"), "--rates must be different numbers above 0 such as 0.0005,0.001, found '0.1,x'"),
        (("--rates", "0.1,0.10"), "--rates must be different numbers above 0 such as 0.0005,0.001, found '0.1,0.10'"),
        (("--peer", "--peer-rates", "-1"), "--peer-rates must be different numbers above 0"),
        (("--peer", "1000"), "--peer must be contexts that divide the 12,288 bytes of a step, found '1000'"),
        (("--peer",), "--peer needs x-transformers, which is not installed: pip install x-transformers, or leave"),
    ],
)
def test_mistakes_are_told_in_a_sentence_and_leave_nothing(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "x_transformers", None)
    option = "--peer-rates=" if "--peer-rates" in arguments else ""
    given = [*arguments[:-2], option + arguments[-1]] if option else arguments
    assert said(capsys, "--text", *given).startswith(f"error: {sentence}")
    assert not list(tmp_path.iterdir())


def test_a_peer_is_done_by_its_own_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = planned(table2.jobs(wanted("--peer", "--", "attention=fixed")), [], "x")
    runner = Studied(sweep, None, None)
    assert [runner.program(job) for job in sweep.jobs] == ["src.job", "scripts.paper.peer_run"]


def made(folder, name, pattern="fixed", seed=1, rate=None, bits=3.0, test=3.0, model=None, length=None):
    """A run of 30 steps that ended at ``bits``; ``test`` None: it is not finished."""
    columns = {"sweep/seed": str(seed), "sweep/attention": pattern}
    columns |= {"sweep/rate": rate} if rate else {}
    columns |= {"sweep/length": "equal time"} if length else {}
    columns |= {"sweep/model": model} if model else {}
    optimizer = {"name": "adamw" if model else "muon", "learning_rate": float(rate) if model else 0.003,
                 "muon_learning_rate": 0.01 if model else float(rate), "schedule": "linear", "warmup_steps": None,
                 "warmup_share": 0.05, "warmup_most": 100, "decay_share": 0.4}  # fmt: skip
    changes = {"data": {**config()["data"], "context": 100, "batch_size": 10}} if model else {}
    content = config(pattern, seed=seed, logger={"columns": columns}, optimizer=optimizer, **changes)
    val = [*VAL[:-1], (30, 29.0, bits)]
    return run(folder / name, content, val, 50.0 if pattern == "fixed" else 100.0, test)


def study(folder):
    """Dense and fixed attention and a peer, two seeds each, the first at several rates."""
    for rate, bits in (("0.01", 2.6), ("0.02", 2.4), ("0.03", 2.5)):
        made(folder, f"f{rate}", rate=rate, bits=bits, test=9.0 if rate != "0.02" else 2.2)
        made(folder, f"d{rate}", "dense", rate=rate, bits=bits + 0.3 * float(rate) / 0.01, test=2.7)
    made(folder, "f2", seed=2, rate="0.02", bits=2.2, test=2.0)
    made(folder, "d2", "dense", seed=2, rate="0.01", bits=2.9, test=2.7)
    model = "x-transformers, context 100"
    made(folder, "x1", "dense", rate="0.0005", bits=2.9, test=2.8, model=model)
    made(folder, "x2", "dense", rate="0.001", bits=2.0, test=None, model=model)  # on its way
    made(folder, "e1", rate="0.02", bits=2.1, test=1.9, length="equal time")
    made(folder, "e2", rate="0.03", bits=1.1, test=0.9, length="equal time")  # of a rate that was best earlier


def test_the_table_has_each_row_at_its_best_rate_and_says_what_was_tried(tmp_path):
    study(tmp_path)
    text, _ = results(run_folders(tmp_path), "x")
    assert text.count("| equal bytes |") == 2  # a table of text, and one of pictures
    assert "| fixed | Muon 0.02, AdamW 0.003 | 2 | 2.100 ± 0.141 | 2.300 ± 0.141 | 50.0 ± 0.0 | 2.00× | 0.99" in text
    assert "| dense | Muon 0.01, AdamW 0.003 | 2 | 2.700 ± 0.000 | 2.900 ± 0.000 | 100.0 ± 0.0 | 1.00× | 1.00" in text
    assert "| x-transformers, context 100 | AdamW 0.0005 | 1 | 2.800 | 2.900 | 100.0 | 1.00× | – | – | – |" in text
    assert "- fixed: validation at the end of seed 1 by Muon's rate: 0.01: 2.600, 0.02: 2.400, 0.03: 2.500." in text
    assert "0.01: 2.900, 0.02: 3.000, 0.03: 3.400; the best is at the edge of what was tried." in text
    assert "by AdamW's rate: 0.0005: 2.900, 0.001: no figure; the best is at the edge of what was tried." in text
    assert "| fixed | 2.300 ± 0.141 | 30 kB | 2.100 | 1.900 | 30 | 30 kB |" in text
    assert ("30 steps of 1,000 bytes; Muon at the rate of each row, AdamW 0.003, 2 steps of warm-up, constant, then "
            "linear to 0 over the last 40% of the steps, fp32; 30 kB") in text  # fmt: skip
    assert "a Decoder of the same depth, width and heads" in text and "10 × 100 bytes a step; AdamW, 2 steps of" in text
    assert "context 100 instead" not in text  # what keeps ours from being compared says nothing of the peer
    assert "| finished | e2 |" in text and "| finished | f0.03 |" in text  # all that was run is listed


def test_steps_of_equal_time_and_rates_follow_from_the_best_runs(tmp_path):
    study(tmp_path / "sweeps" / "table2")
    asked = wanted("--runs", str(tmp_path), "--seeds", "1,2", "--rates", "0.01,0.02,0.03", "--", *LITTLE)
    best = table2.tuned(asked)
    assert best == {
        ("text", "dense"): "0.01", ("text", "fixed"): "0.02", ("text", "x-transformers, context 100"): "0.0005",
    }  # fmt: skip
    found = table2.jobs(asked, equal_time=True, tuned=best)
    assert [(config.name, config.trainer.max_steps, config.optimizer.muon_learning_rate) for _, config in found] == [
        ("text-fixed-rate0.02-seed1-equal-time", 60, 0.02), ("text-fixed-rate0.02-seed2-equal-time", 60, 0.02),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_study_from_its_rates_to_equal_time(tmp_path, monkeypatch, capsys):
    """Two starts, the first without time; the archive of it all gives the same tables, and nothing is done twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{CONF.parent}:{package(tmp_path)}")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.syspath_prepend(str(tmp_path / "stub"))
    words = ("attention=dense", *LITTLE, "trainer.max_steps=30", "trainer.val_every=10", "trainer.accelerator=cpu")
    given = ["--size", "tiny", "--text", str(corpus(tmp_path)), "--seeds", "1,2", "--rates", "0.02", "--peer", "64",
             "--peer-rates", "0.001,0.01", "--equal-time", "--slots", "2", "--pack", "p.tar.gz"]  # fmt: skip
    assert table2.main([*given, "--minutes", "1e-9", "--", *words]) == TIME_UP
    assert table2.main([*given, "--", *words]) == 0
    folder = tmp_path / "runs" / "sweeps" / "table2"
    assert sorted(path.name for path in run_folders(folder)) == [
        "text-dense-rate0.02-seed1", "text-dense-rate0.02-seed2", "text-x-transformers-64-rate0.001-seed1",
        "text-x-transformers-64-rate0.01-seed1", "text-x-transformers-64-rate0.01-seed2",
    ]  # fmt: skip
    assert len(run_folders(folder.with_name("table2_equal_time"))) == 2
    text = (folder / "table2.md").read_text()
    assert "| dense | Muon 0.02, AdamW 0.01 | 2 |" in text
    assert "| x-transformers, context 64 | AdamW 0.01 | 2 |" in text
    assert text.count("not yet run") == 2 * 2 + 2 + 1 + 3  # fixed, strided; pictures
    capsys.readouterr()
    assert table2.main([*given, "--runs", "other", "--from", "p.tar.gz", "--", *words]) == 0
    assert "sweep other/sweeps/table2: 0 of 5 jobs to run" in capsys.readouterr().out
    again = tmp_path / "other" / "sweeps" / "table2" / "table2.md"
    assert [line for line in again.read_text().splitlines() if "|" in line] == [
        line for line in text.splitlines() if "|" in line
    ]
    summary = json.loads((folder / "text-x-transformers-64-rate0.01-seed2" / "summary.json").read_text())
    assert f"{summary['test/bits_per_byte']:.3f}" in text
