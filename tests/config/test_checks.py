"""How bytes between documents are written in a configuration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.config.checks import separator_bytes
from src.errors import UserError
from tests.tiny_runs import composed


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"\n\n", b"\n\n"),
        ("\n", b"\n"),
        ("<|endoftext|>", b"<|endoftext|>"),
        (r"</page>\n", b"</page>\n"),
        (r"\0\t\r\x5cn", b"\0\t\r\\n"),
        (r"\xff\x00", b"\xff\x00"),
        ("é", b"\xc3\xa9"),
    ],
)
def test_a_separator_is_what_it_says_and_needs_no_quotes_for_hydra(written, meant):
    assert separator_bytes(written) == meant
    assert separator_bytes(composed("data=quickstart", f"data.documents={written}").data.documents) == meant


@given(st.binary(min_size=1))
def test_any_bytes_can_be_written(wanted):
    assert separator_bytes("".join(f"\\x{byte:02x}" for byte in wanted)) == wanted


@pytest.mark.parametrize("written", ["", "\\", r"\q", r"a\x1", r"\xgg", r"\\"])
def test_others_are_refused(written):
    with pytest.raises(UserError, match=r"^data\.documents must have "):
        separator_bytes(written)
