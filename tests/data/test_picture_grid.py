"""Pictures as bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from src.data.picture_grid import as_picture, read_picture, shown_byte
from src.errors import UserError


def test_a_picture_that_is_no_square_is_read_row_by_row(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = read_picture(tmp_path / "a.png", row=5, context=45)
    assert np.array_equal(as_picture(x, row=5, context=45), pixels)
    with pytest.raises(UserError, match="must be an 8-bit RGB PNG of 3 x 5 pixels, and it is 5 x 3 pixels"):
        read_picture(tmp_path / "a.png", row=3, context=45)


@given(row=st.integers(1, 80), height=st.integers(1, 80))
def test_the_byte_that_is_shown_is_a_red_one_inside(row, height):
    byte = shown_byte(row, 3 * row * height)
    assert 0 <= byte < 3 * row * height and byte % 3 == 0
