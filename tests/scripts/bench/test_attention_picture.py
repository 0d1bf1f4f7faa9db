"""The picture of time against length can be drawn again from the table in the documentation."""

from pathlib import Path

import pytest

from scripts.bench.attention_picture import plot, read

PAGE = Path(__file__).parents[3] / "docs" / "benchmarks.md"


def test_the_table_of_the_documentation_is_drawn(tmp_path):
    lengths, times = read(PAGE.read_text())
    assert lengths == [1024 * 2**i for i in range(9)]
    assert all(len(row) == len(lengths) and min(row) > 0 for row in times.values())
    assert times["dense, SDPA cuDNN"][-1] > times["strided, l near sqrt(n)"][-1]
    plot(tmp_path / "time.png", lengths, times, "a GPU")
    assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_without_such_a_table_is_named():
    with pytest.raises(ValueError, match="no table that begins with"):
        read("| | 1 |\n")
