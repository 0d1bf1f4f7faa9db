"""The paper's table 3: every row scores the same bytes, each at its place within a block, and says how sure it is."""

import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from scripts.paper import table3
from scripts.paper.table3_plan import Row, Shares, plan
from scripts.paper.table3_score import scored
from scripts.paper.table3_text import PAPER, about_the_last_block, figures, gain, report, scaled, verdict
from src.errors import UserError
from src.jobs.shared import prepared_data
from src.library import load_model
from src.processes.ranks import Place
from src.runs.run import Run
from tests.tiny_runs import composed, train_tiny


@given(stride=st.integers(1, 9), blocks=st.integers(1, 8), rest=st.integers(0, 8), data=st.data())
def test_each_row_scores_each_byte_once_at_the_same_place_of_a_block_with_its_context(stride, blocks, rest, data):
    context = stride * blocks + min(rest, stride - 1)
    size = data.draw(st.integers(2 * (context + stride), 20 * context + 40))
    least = sorted(data.draw(st.sets(st.integers(0, context - stride), min_size=1, max_size=4)))
    made = plan(size, context, stride, least, data.draw(st.integers(1, size)))
    shares = Shares(made)
    row, byte, window, position = shares.of(0, len(shares.windows))
    counts = np.zeros((len(made.rows), len(made.places)), dtype=int)
    np.add.at(counts, (row, byte), 1)
    assert (counts == 1).all()
    begins = shares.windows[window]
    assert (begins >= 0).all() and (begins % stride == 0).all()
    assert (begins + position == made.places[byte]).all()
    assert (position < context).all()
    assert all((position[row == index] >= one.least).all() for index, one in enumerate(made.rows))
    assert (np.bincount(made.places % stride, minlength=stride) == len(made.places) // stride).all()
    assert made.places[-1] < size and (np.diff(made.places) > 0).all()


def test_rows_of_the_papers_size_take_the_positions_from_their_least_context_to_the_end():
    least = scaled(12_288, 128)
    made = plan(5_000_000, 12_288, 128, least, 1_000_000)
    widths = {row.least: row.width for row in made.rows[: len(least)]}
    assert {row: widths[row] for row in (0, 6144, 11_904)} == {0: 12_288, 6144: 6144, 11_904: 384}
    assert widths[12_096] == widths[12_160] == 128  # the first from the middle of a block to the middle of the next
    assert {row for row in made.rows if row.width == 128} >= {Row(block * 128, 128) for block in (92, 93, 94, 95)}
    assert len(made.places) == 81 * 12_288
    assert len(made.windows()) < 1.05 * 81 * 96  # as many as the last row has alone
    spread = np.diff(made.places[::12_288])
    assert spread.max() <= spread.min() + 12_288


def test_rows_are_the_papers_in_proportion():
    assert scaled(12_288, 128) == sorted({0, 1024, 3072, *PAPER})
    assert scaled(1024, 32) == [0, 85, 256, 512, 768, 896, 992]
    assert scaled(8, 8) == [0]


@pytest.mark.parametrize("least", [-1, 57])
def test_a_row_that_a_blocks_first_byte_cannot_have_is_refused(least):
    with pytest.raises(UserError, match=f"--rows must be from 0 to 56 .*found {least}"):
        plan(1000, 64, 8, [0, least], 100)


def test_a_split_of_less_than_two_windows_is_refused():
    with pytest.raises(UserError, match="at least 128 bytes, those of two windows, found 127"):
        plan(127, 64, 8, [0], 100)


def test_processes_share_the_windows_and_add_up_to_one_alone():
    made = plan(2000, 64, 8, [0, 20, 56], 300)

    def nats(begins):
        return (begins[:, None] * 1000 + np.arange(64)).astype(np.float32)

    alone = scored(nats, made, 3, Place("none"))
    shares = [scored(nats, made, 3, Place("supervise", rank, rank, 2)) for rank in range(2)]
    assert ((~np.isnan(shares[0])).astype(int) + ~np.isnan(shares[1]) == 1).all()
    assert np.array_equal(np.where(np.isnan(shares[0]), shares[1], shares[0]), alone)
    for row, found in zip(made.rows, alone, strict=True):
        begins = made.begins(row)
        assert np.array_equal(found, begins * 1000 + made.places - begins)


def test_a_difference_has_the_standard_error_of_paired_stretches():
    before = {"stretches": [4.0, 2.0, 3.0]}
    by, error = gain(before, {"stretches": [3.9, 1.8, 2.7]})
    assert by == pytest.approx(0.2)
    assert error == pytest.approx(0.1 / math.sqrt(3))
    assert gain({"stretches": [4.0]}, {"stretches": [3.0]}) == (1.0, None)


def test_the_verdict_counts_gains_and_losses_that_are_sure():
    levels = ([3.0, 3.1, 3.2], [2.5, 2.61, 2.7], [2.51, 2.6, 2.7], [2.61, 2.7, 2.81])
    rows = [{"least": at, "positions": 1, "bits_per_byte": 0, "stretches": level} for at, level in enumerate(levels)]
    assert "**More context does not help all the way**: 1 of 3 steps are gains, 1 of them" in verdict(rows)
    assert "; 1 are losses by more than that" in verdict(rows)
    assert "**More context helps all the way**: 1 of 1 steps" in verdict(rows[:2])
    assert "nothing is said" in verdict(rows[:1])


def test_a_score_that_is_missing_is_no_figure():
    made = plan(1000, 64, 8, [0], 100)
    nats = np.ones((len(made.rows), len(made.places)), dtype=np.float32)
    assert figures(nats, made)[0]["bits_per_byte"] == pytest.approx(1 / math.log(2))
    nats[0, 5] = np.nan
    with pytest.raises(RuntimeError, match=r"1 of .* scores are missing"):
        figures(nats, made)


def test_rows_stand_beside_the_papers_and_the_text_says_how_they_are_made_comparable():
    config = composed("data=bytes", "data.path=FILE", "data.context=64", "attention.stride=8", "attention.summary=2")
    made = plan(1000, 64, 8, [0, 20, 32], 128)
    found = figures(np.full((len(made.rows), len(made.places)), math.log(2), dtype=np.float32), made)
    text = report(found, [0, 20, 32], config, made, "HEAD")
    assert text.startswith("HEAD\n\n| least context |")
    assert "| 0 | 0 to 63 | 1.0000 | | | |" in text
    assert "| 20 | 20 to 59 | 1.0000 | 0.0000 ± 0.0000 | | |" in text
    assert "| 32 | 32 to 63 | 1.0000 | 0.0000 ± 0.0000 | 6,144 | 0.9952 |" in text
    assert "| 8 of 8 | 56 to 63 | 1.0000 |" in text
    assert "the same 128 bytes: 2 stretches of 64" in text and "middle of a block (20)" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("attention=fixed",), "sees 15 keys a head at the block's first byte and 22 at its last; .* before sees 20"),
        (("attention=fixed",), "2 summary cells of each of the 7 blocks before"),
        (("attention=dense",), "sees 57 keys a head at the block's first byte and 64 at its last"),
        (("recipe=modern",), "a distance of 7 blocks occurs in it alone"),
        (("recipe=paper",), "learned position embedding learns from the losses of its 8 positions alone"),
    ],
)
def test_the_last_block_is_explained_by_what_its_queries_see(words, said):
    sizes = ("data=bytes", "data.path=FILE", "data.context=64", "attention.stride=8")
    summary = () if words == ("attention=dense",) else ("attention.summary=2",)
    assert re.search(said, " ".join(about_the_last_block(composed(*words, *sizes, *summary))))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "error: nowhere is not a run directory"),
        (["run", "--rows", "many"], "argument --rows: must be whole numbers such as 0,1024, found many"),
        (["run", "--bytes", "0"], "argument --bytes: must be a whole number of at least 1, found 0"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, sentence, capsys):
    assert code_of(arguments) == 2
    assert sentence in capsys.readouterr().err


def code_of(arguments) -> int:
    try:
        return table3.main(arguments)
    except SystemExit as ended:
        return ended.code


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("table3"))


@pytest.mark.slow
def test_a_run_gets_its_table_on_two_processes(run, capfd):
    assert table3.main([str(run), "--bytes", "300", "--devices", "2"]) == 0
    said = capfd.readouterr().out
    assert (run / "table3.md").read_text() in said
    kept = json.loads((run / "table3.json").read_text())
    assert kept["bytes"] == 320 and kept["devices"] == 2 and kept["split"] == "validation"
    rows = {Row(one["least"], one["positions"]): one["bits_per_byte"] for one in kept["rows"]}
    assert rows.keys() >= {Row(0, 64), Row(32, 32), Row(48, 16), Row(56, 8), Row(40, 8)}
    for row in (Row(0, 64), Row(56, 8), Row(5, 56)):
        assert rows[row] == pytest.approx(obvious(run, row, kept), abs=1e-5)


def obvious(run, row: Row, kept) -> float:
    """Score byte after byte, each from a window of its own in which it and all after it are hidden."""
    config = Run.find(run).config()
    data = prepared_data(config)
    text = torch.from_numpy(data.splits.val.store.read([0], data.val_bytes)[0]).long()
    model = load_model(run)
    stretches = [64 + number * 14 // 5 * 64 for number in range(5)]
    losses = []
    for byte in (start + offset for start in stretches for offset in range(64)):
        turns = [begin for begin in range(0, byte + 1, 8) if row.least <= byte - begin < row.least + row.width]
        begin = next(one for one in turns if (one + -(-row.least // 8) * 8 - 64) % row.width == 0)
        window = torch.zeros(1, 64, dtype=torch.long)
        window[0, : byte - begin] = text[begin:byte]
        with torch.no_grad():
            losses.append(F.cross_entropy(model(window)[0, byte - begin], text[byte]))
    return float(torch.stack(losses).double().mean()) / math.log(2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rows", "0,57"], "--rows must be from 0 to 56"),
        (["--split", "test", "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_scored_is_told_in_a_sentence(run, arguments, sentence, capfd):
    assert table3.main([str(run), *arguments]) == 2
    said = capfd.readouterr().err
    assert sentence in said and "Traceback" not in said
