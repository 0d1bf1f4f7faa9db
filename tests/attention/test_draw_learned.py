"""Pictures of learned attention: every weight is drawn on the byte that its key holds, and nowhere else."""

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import Rectangle

from src.attention.draw_learned import COLUMNS, LINES, draw_learned
from src.attention.learned import Learned, spread

HEIGHT, WIDTH = 6, 5
GREY = np.full(HEIGHT * WIDTH * 3, 90, dtype=np.uint8)


def learned(query: int, *weights: dict[int, float]) -> Learned:
    """One block; a head for each set of weights, by key position."""
    rows = np.zeros((1, len(weights), query + 1), dtype=np.float32)
    for head, given_ in enumerate(weights):
        for key, weight in given_.items():
            rows[0, head, key] = weight
    return Learned(query, rows, [3], range(len(weights)), [["dense"] * len(weights)])


def panels(figure, first: int = 0) -> list:
    return [axes for axes in figure.axes[first:] if axes.get_images()]


def coloured(image: np.ndarray) -> set[tuple[int, int]]:
    """Cells that are not grey."""
    rows, columns = np.nonzero(np.ptp(image, axis=-1) > 1e-6)
    return set(zip(rows.tolist(), columns.tolist(), strict=True))


def pixel(byte: int) -> tuple[int, int]:
    return divmod(byte // 3, WIDTH)


@pytest.mark.parametrize("query", [40, 41, 42, HEIGHT * WIDTH * 3 - 1])
def test_weights_lie_on_the_pixels_of_the_bytes_that_keys_hold(query: int) -> None:
    figure = draw_learned(learned(query, {1: 0.25, query: 0.75}, {7: 0.1, 8: 0.1, 9: 0.1, 10: 0.7}), GREY, WIDTH)
    picture, first, second = (axes.get_images()[0].get_array() for axes in panels(figure))
    assert coloured(picture) == set()
    assert coloured(first) == {pixel(0), pixel(query - 1)}
    assert coloured(second) == {pixel(6), pixel(9)}
    row, column = pixel(query)
    for axes in panels(figure):
        (mark,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
        assert mark.get_xy() == (column - 0.5, row - 0.5)


def test_bytes_of_a_pixel_are_summed_and_the_largest_is_full_colour() -> None:
    figure = draw_learned(learned(60, {1: 0.2, 2: 0.2, 3: 0.2, 31: 0.4}, {1: 0.1, 31: 0.9}), GREY, WIDTH)
    one, other = (axes.get_images()[0].get_array() for axes in panels(figure)[1:])
    assert np.allclose(one[pixel(0)], other[pixel(30)])
    strength = [np.ptp(one[pixel(30)]), np.ptp(one[pixel(0)])]
    assert strength[0] / strength[1] == pytest.approx((0.4 / 0.6) ** 0.5, rel=1e-5)


def test_what_the_query_does_not_know_is_pale() -> None:
    image = panels(draw_learned(learned(40, {1: 1.0}), GREY, WIDTH))[1].get_images()[0].get_array()
    brightness = image.mean(-1).reshape(-1)
    assert brightness[1:14].max() < 0.5 < brightness[14:].min()  # byte 40 is of pixel 13, whose red byte is known


@pytest.mark.parametrize("query", [0, 1, COLUMNS, COLUMNS * LINES - 1, COLUMNS * LINES, 3000])
def test_text_shades_the_cells_of_the_bytes_that_keys_hold(query: int) -> None:
    text = np.arange(query + 1, dtype=np.uint8)
    keys = sorted({1, query - 40, query} & set(range(1, query + 1)))
    figure = draw_learned(learned(query, dict.fromkeys(keys, 1 / max(1, len(keys)))), text, None)
    first = max(0, query // COLUMNS - LINES + 1)
    cells = panels(figure)[0].get_images()[0].get_array()
    assert cells.shape == (query // COLUMNS - first + 1, COLUMNS, 3)
    wanted = {divmod(key - 1 - first * COLUMNS, COLUMNS) for key in keys if key - 1 >= first * COLUMNS}
    assert coloured(cells) == wanted


def test_a_strip_shows_what_lies_further_back_than_the_text() -> None:
    text = np.full(4096, 97, dtype=np.uint8)
    figure = draw_learned(learned(4095, {1: 0.6, 4095: 0.4}), text, None)
    (axes,) = panels(figure)
    strip = axes.get_images()[1].get_array()
    assert {column for _, column in coloured(strip)} == {0, strip.shape[1] - 1}
    assert "60% further back" in axes.get_xlabel()


def test_captions_say_how_concentrated_a_head_is() -> None:
    figure = draw_learned(learned(60, {0: 0.5, 31: 0.5}, {}, {0: 1.0}, {1: 0.5, 10: 0.45, 40: 0.05}), GREY, WIDTH)
    assert [axes.get_xlabel() for axes in panels(figure)] == [
        "the picture",
        "dense: 90% on 1 pixels, 50% on the start",
        "dense: sees nothing",
        "dense: all on the start",
        "dense: 90% on 2 pixels",
    ]


def test_a_panel_for_each_block_and_head_by_its_number(tmp_path) -> None:
    weights = np.full((2, 3, 61), 1 / 61, dtype=np.float32)
    shown = Learned(60, weights, [0, 7], [1, 4, 5], [["window"] * 3, ["column"] * 3])
    figure = draw_learned(shown, GREY, WIDTH)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["head 1", "head 4", "head 5"]
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["block 0", "block 7"]
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert matplotlib.image.imread(tmp_path / "figure.png").std() > 0.05


@given(count=st.integers(1, 200), most=st.integers(1, 20))
def test_an_even_choice_has_both_ends(count: int, most: int) -> None:
    chosen = spread(count, most)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(count, most)
    assert chosen[0] == 0 and (most == 1 or chosen[-1] == count - 1)
    steps = np.diff(chosen)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1
