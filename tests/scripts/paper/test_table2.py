"""Table 2 as a command: which jobs, in pieces as unbroken, and figures from run directories alone."""

import json

import pytest

from scripts.paper import table2
from scripts.paper.study import pack, run_folders
from src.config.command_line import CONF
from src.reporting.markdown import put_into
from src.reporting.results import BEGIN, END, results
from src.runs.run import Run
from src.sweep.runner import TIME_UP, Runner
from tests.in_process import train
from tests.reporting.made import config, run
from tests.tiny_runs import assert_same_outcome, corpus

LITTLE = (
    "model.depth=1", "model.width=16", "model.heads=2", "model.dropout=0.2", "data.context=64", "attention.stride=8",
    "optimizer.short_context=16", "optimizer.short_context_steps=12", "attention.summary=2", "data.batch_size=2",
    "data.workers=0", "logger=csv", "logger.sample_bytes=0",
    "logger.attention_picture=false", "optimizer.warmup_steps=5", "trainer.log_every=1",
)  # fmt: skip
VAL = [(10, 9.0, 5.0), (20, 19.0, 4.0), (30, 29.0, 3.0)]


def jobs(*arguments):
    return table2.jobs(table2.parser().parse_args(list(arguments)))


def said(capsys, *arguments):
    assert table2.main(list(arguments)) == 2
    return capsys.readouterr().err


def test_jobs_come_by_seed_then_data_then_attention(tmp_path):
    found = jobs("--text", str(corpus(tmp_path)), "--pictures", "--seeds", "3,1", "--", "precision=fp32")
    assert [config.name for _, config in found[:7]] == [
        "text-dense-seed3", "text-fixed-seed3", "text-strided-seed3",
        "pictures-dense-seed3", "pictures-fixed-seed3", "pictures-strided-seed3", "text-dense-seed1",
    ]  # fmt: skip
    assert found[3][0] == {"data": "pictures", "attention": "dense", "seed": "3"}
    text, pictures = found[0][1], found[3][1]
    assert (text.data.name, text.data.context, text.model.depth, text.model.width, text.model.heads) == (
        "bytes", 12_288, 12, 512, 4,
    )  # fmt: skip
    assert (pictures.data.name, pictures.data.context, pictures.data.allow_partial) == ("cifar10", 3072, False)
    same = {(c.data.batch_size, c.trainer.max_steps, c.optimizer.learning_rate, c.model.depth) for _, c in found[:3]}
    assert len(same) == 1


def test_words_behind_the_dashes_are_for_all_runs_or_those_of_one_kind(tmp_path):
    words = ("--", "attention=strided", "precision=fp32", "text:model.depth=2", "pictures:trainer.max_steps=7")
    text, pictures = (config for _, config in jobs("--text", "--pictures", *words))
    assert (text.attention.pattern, pictures.attention.pattern) == ("strided", "strided")
    assert (text.model.depth, pictures.trainer.max_steps, text.trainer.max_steps) == (2, 7, 5000)
    assert {text.precision.name, pictures.precision.name} == {"fp32"}


def test_a_part_of_an_official_set_is_taken_as_one(tmp_path):
    (tmp_path / "enwik8_first4000000").write_bytes(b"")
    ((_, text),) = jobs("--text", str(tmp_path / "enwik8_first4000000"), "--", "attention=dense")
    assert (text.data.name, text.data.allow_partial, text.paths.data_dir) == ("enwik8", True, str(tmp_path))
    ((_, pictures),) = jobs("--pictures", str(tmp_path), "--", "attention=dense")
    assert (pictures.data.path, pictures.data.allow_partial) == (str(tmp_path), True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--text", "nowhere.txt"), "--text must be an existing file or folder, found none there: "),
        (("--text", "--seeds", "1,x"), "--seeds must be different whole numbers such as 1,2, found '1,x'"),
        (("--text", "--seeds", "1,1"), "--seeds must be different whole numbers such as 1,2, found '1,1'"),
        (("--text", "--minutes", "0"), "--minutes must be a number of minutes above 0, found 0.0"),
        (("--text", "--slots", "0"), "--slots must be a whole number of at least 1, found 0"),
        (("--text", "--", "depth"), "'depth' behind -- must be KEY=VALUE, text:KEY=VALUE or pictures:KEY=VALUE"),
        (("--text", "--", "sound:model.depth=1"), "'sound:model.depth=1' behind -- must begin with text: or pictures:"),
        (("--text", "--", "model.depht=1"), "model.depht is not a key of the configuration: did you mean model.depth?"),
        (("--from", "none.tar.gz"), "none.tar.gz cannot be read: No such file or directory"),
    ],
)
def test_mistakes_are_told_in_a_sentence_and_leave_nothing(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert said(capsys, *arguments).startswith(f"error: {sentence}")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [(100,), (20, 160)])
def test_cut_into_pieces_is_as_unbroken_to_the_last_bit(cuts, tmp_path, monkeypatch, capsys):
    """A text run that limits cut off and that the same command carries on, against one that never stopped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(CONF.parent))
    words = ("--", "attention=fixed", *LITTLE, "trainer.max_steps=400", "trainer.val_every=150")
    arguments = ("--size", "tiny", "--text", str(corpus(tmp_path)), "--minutes", "60", *words)
    ((_, whole),) = jobs(*arguments)
    whole.paths.output_dir, whole.trainer.progress = str(tmp_path / "whole"), False
    unbroken = Run.create(whole)
    train(unbroken)

    folder = tmp_path / "runs" / "sweeps" / "table2" / "text-fixed-seed1"
    for most in cuts:  # rows of metrics.csv, one a step

        def at(runner, most=most):
            file = folder / "metrics.csv"
            return file.is_file() and len(file.read_text().splitlines()) > most

        with monkeypatch.context() as patch:
            patch.setattr(Runner, "out_of_time", at)
            assert table2.main(arguments) == TIME_UP
        printed = capsys.readouterr().out
        assert "0 of 1 runs are done; left: text-fixed-seed1 (stopped, step " in printed
    assert table2.main(arguments) == 0
    assert "1 of 1 runs are done" in capsys.readouterr().out
    assert (folder / "train.log").read_text().count("going on from step") == len(cuts)
    assert_same_outcome(folder, unbroken.path)
    assert "| fixed | Muon 0.02, AdamW 0.01 | 1 | " in (folder.parent / "table2.md").read_text()
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert table2.main(arguments) == 0  # finished runs are left alone
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def made(folder):
    """Text by dense and fixed attention with two seeds each, pictures by strided attention, on parts of the sets."""
    for kind, ms, gain in (("dense", 100.0, 0.0), ("fixed", 50.0, 0.1)):
        for seed in (1, 2):
            val = [(step, seconds, bits - gain + 0.2 * seed) for step, seconds, bits in VAL]
            run(folder / f"text-{kind}-seed{seed}", config(kind, seed=seed), val, ms, test=3.0 - gain + 0.2 * seed)
    content = config("strided", model__positions="image", data__name="cifar10")
    label = "CIFAR-10, partial: 8,336 + 1,017 of 50,000 + 10,000 pictures"
    run(folder / "pictures-strided-seed1", content, VAL, 20.0, test=3.5, label=label)


def test_figures_from_an_archive_alone(tmp_path, capsys):
    made(tmp_path / "study")
    pack([tmp_path / "study"], tmp_path / "p.tar.gz")
    out = tmp_path / "docs" / "results.md"
    assert table2.main(["--from", str(tmp_path / "p.tar.gz"), "--runs", str(tmp_path / "r"), "--output", str(out)]) == 0
    text = out.read_text()
    lines = text.splitlines()
    dense, fixed, strided = (next(line for line in lines if line.startswith(f"| {kind} |"))
                             for kind in ("dense", "fixed", "strided"))  # fmt: skip
    assert dense == "| dense | – | 2 | 3.300 ± 0.141 | 3.300 ± 0.141 | 100.0 ± 0.0 | 1.00× | 1.00 | 1,310 | 1.00× |"
    assert fixed == "| fixed | – | 2 | 3.200 ± 0.141 | 3.200 ± 0.141 | 50.0 ± 0.0 | 2.00× | 0.99 | 550 | 2.38× |"
    assert strided == "| strided | – | not yet run | – | – | – | – | 1.13 | 350 | 3.74× |"
    assert "| dense | 4.800 ± 0.141 | 15 kB | 3.300 ± 0.141 | 3.300 ± 0.141 | 30 | 30 kB |" in text  # at 1.5 s
    assert "| fixed | 3.200 ± 0.141 | 30 kB | not yet run | – | – | – |" in text
    assert "## Text: enwik8, partial: first 1,000,000 bytes of 100,000,000" in text
    assert "## Pictures: CIFAR-10, partial: 8,336 + 1,017 of 50,000 + 10,000 pictures" in text
    assert text.count("NOT comparable with published figures") == 2
    assert "| strided | – | 1 | 3.500 | 3.000 | 20.0 | – | 2.80 | 380 | 1.42× |" in text
    drawings = {file.name for file in (out.parent / "results").iterdir()}
    assert {
        f"{kind}-validation-against-{what}.svg" for kind in ("text", "pictures") for what in ("time", "data")
    } <= drawings
    assert all(f"(results/{name})" in text for name in drawings)


def test_what_spoils_a_comparison_is_said(tmp_path):
    made(tmp_path)
    origin = tmp_path / "text-fixed-seed2" / "provenance.jsonl"
    origin.write_text(json.dumps({**json.loads(origin.read_text()), "gpus": ["H100"]}) + "\n")
    (tmp_path / "text-fixed-seed1" / "summary.json").unlink()
    text, _ = results(run_folders(tmp_path), "x")
    assert "Runs of different machines (H100; no GPU)" in text
    assert "Not finished: text-fixed-seed1 (step 30)" in text
    assert "| fixed | – | 1 of 2 | 3.300 |" in text


def test_runs_of_another_depth_stand_apart(tmp_path):
    made(tmp_path)
    for number, (kind, depth) in enumerate((("dense", 4), ("fixed", 4), ("fixed", 2))):
        changes = {} if number < 2 else {"logger__columns": {"sweep/length": "equal time"}}
        run(tmp_path / f"other{number}", config(kind, depth, **changes), VAL, 40.0, test=2.9)
    text, _ = results(run_folders(tmp_path), "x")
    assert text.count("| equal bytes |") == 3
    assert "depth 2; 2 blocks of width 64" in text and "depth 4; 4 blocks of width 64" in text
    assert text.count("| 3.000 | 2.900 | 30 |") == 2  # planned, of depth 2 and dense attention of depth 4


def test_nothing_begins_when_the_time_is_up(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--size", "tiny", "--text", str(corpus(tmp_path)), "--minutes", "1e-9", "--", *LITTLE]
    assert table2.main(arguments) == TIME_UP
    assert "0 of 3 runs are done; left: text-dense-seed1 (waiting), " in capsys.readouterr().out
    assert not list((tmp_path / "runs").rglob("config.yaml"))


def test_another_configuration_under_the_same_name_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    begun = tmp_path / "runs" / "sweeps" / "table2" / "text-fixed-seed1"
    begun.mkdir(parents=True)
    arguments = ("--size", "tiny", "--text", str(corpus(tmp_path)), "--", "attention=fixed", *LITTLE)
    ((_, config),) = jobs(*arguments)
    config.optimizer.learning_rate = 0.123
    Run(begun).write_config(config)
    assert "holds a run with another configuration: give another --name" in said(capsys, *arguments)


def test_without_runs_every_figure_is_marked_as_missing():
    text, drawings = results([], "x")
    assert not drawings
    assert text.count("| – | not yet run | – | – | – | – |") == 6
    assert "## Text: not yet run" in text and "## Pictures: not yet run" in text


def test_only_the_part_of_a_document_that_is_ours_is_replaced():
    block = f"{BEGIN}\n\nnew\n\n{END}\n"
    assert put_into(f"# Mine\n\n{BEGIN}\nold\n{END}\n\nbelow\n", block) == f"# Mine\n\n{block.rstrip()}\n\nbelow\n"
    assert put_into("# Mine\n", block) == f"# Mine\n\n{block}"
    assert put_into("", block) == block


def test_steps_of_equal_time_follow_from_what_dense_attention_took(tmp_path):
    made(tmp_path / "sweeps" / "table2")
    arguments = ["--text", "--runs", str(tmp_path), "--seeds", "1,2", "--", *LITTLE, "precision=fp32"]
    wanted = table2.parser().parse_args(arguments)
    found = table2.jobs(wanted, equal_time=True)
    assert [(config.name, config.trainer.max_steps) for _, config in found] == [
        ("text-fixed-seed1-equal-time", 60), ("text-fixed-seed2-equal-time", 60),
    ]  # fmt: skip
    begun = tmp_path / "sweeps" / "table2_equal_time" / "text-fixed-seed2-equal-time"
    begun.mkdir(parents=True)
    found[1][1].trainer.max_steps = 61
    Run(begun).write_config(found[1][1])  # a run that has begun keeps its length, whatever is measured since
    assert [config.trainer.max_steps for _, config in table2.jobs(wanted, equal_time=True)] == [60, 61]
