"""The pictures: they show the sets themselves, for every pattern, at any length."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.text import Text

from src.attention import Column, OwnBlock, Pattern, Summary, Window
from src.attention.draw import LARGEST, READY_MADE_SETS, draw_figure3, draw_pattern, draw_ready_made, sets_matrix
from src.attention.other_key_sets import READY_MADE
from tests.tiny_runs import command


def test_the_matrix_says_which_set_a_pair_is_in() -> None:
    kinds = sets_matrix(Window(2), Column(2), 4)
    assert kinds.tolist() == [[4, 0, 0, 0], [2, 4, 0, 0], [4, 2, 4, 0], [1, 4, 2, 4]]
    fixed = sets_matrix(OwnBlock(2), Summary(2, 1), 4)
    assert fixed.tolist() == [[2, 0, 0, 0], [2, 4, 0, 0], [1, 3, 2, 0], [1, 3, 2, 4]]


@pytest.mark.parametrize("mode", ["merged", "interleaved", "multihead"])
@pytest.mark.parametrize("name", ["dense", "strided", "fixed"])
def test_every_pattern_draws_itself_at_any_length(name: str, mode: str, tmp_path: Path) -> None:
    for stride, summary, n in ((128, 32, 12_288), (8, 2, 50), (1_024, 8, 1 << 20)):
        figure = draw_pattern(Pattern(name, stride, summary, mode), 8, n)  # type: ignore[arg-type]
        drawn = [image.get_array() for axes in figure.axes for image in axes.get_images()]
        assert drawn and all(max(image.shape) <= LARGEST for image in drawn)
    figure.savefig(tmp_path / "pattern.png", dpi=40)
    picture = matplotlib.image.imread(tmp_path / "pattern.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 3


def test_heads_have_the_numbers_that_the_network_gives_them() -> None:
    """Heads with equal key sets are neighbours where they share keys."""
    titles = {
        kv_heads: [axes.get_title() for axes in draw_pattern(Pattern("fixed", 8, 2), 8, 50, kv_heads).axes[:2]]
        for kv_heads in (None, 4)
    }
    assert titles == {None: ["fixed, heads 0, 4", "fixed, heads 1, 5"], 4: ["fixed, heads 0, 1", "fixed, heads 2, 3"]}


@pytest.mark.parametrize("mode", ["merged", "interleaved", "multihead"])
@pytest.mark.parametrize("name", ["dense", "strided", "fixed"])
def test_no_words_are_cut_off(name: str, mode: str) -> None:
    figure = draw_pattern(Pattern(name, 1_024, 8, mode), 8, 1 << 20)  # type: ignore[arg-type]
    figure.canvas.draw()
    for text in figure.findobj(Text):
        box = text.get_window_extent()
        assert not text.get_text() or (figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1), text
        assert not text.get_text() or (figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1), text


def test_figure_3_has_a_column_for_each_pattern() -> None:
    figure = draw_figure3(6, 2)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["dense", "strided", "fixed"]
    matrices = [axes.get_images()[0].get_array() for axes in figure.axes[3:]]
    assert [matrix.shape for matrix in matrices] == [(36, 36, 3)] * 3


@pytest.mark.parametrize("which", READY_MADE_SETS)
def test_patterns_of_other_papers_are_drawn_side_by_side(which: str) -> None:
    figure = draw_ready_made(which)
    count = len(READY_MADE_SETS[which])
    assert [axes.get_title() for axes in figure.axes[:count]] == [title for title, _, _ in READY_MADE_SETS[which]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["query", "keys that it sees"]


def test_every_pattern_of_another_paper_is_drawn() -> None:
    drawn = {type(keys) for panels in READY_MADE_SETS.values() for *_, keys in panels}
    assert drawn == set(READY_MADE.values())


def test_the_script_writes_a_picture_and_refuses_impossible_patterns(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "new" / "figure.png"))
    assert command("draw_patterns", *out, folder=tmp_path).returncode == 0
    assert matplotlib.image.imread(tmp_path / "new" / "figure.png").shape[0] > 500
    refused = command("draw_patterns", *out, "--summary", "3", folder=tmp_path)
    assert refused.returncode == 2
    assert "summary must divide stride (8), found 3" in refused.stderr
