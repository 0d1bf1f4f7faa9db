"""The fixture that runs a row, and notes it for the table that ``python -m tests.bad`` prints."""

import pytest

from tests.bad.door import Bad, is_refused


@pytest.fixture
def refused(request, tmp_path, monkeypatch, capfd, record_property):
    """Check a row of this file's table by its name."""

    def check(bad: Bad, name: str) -> None:
        sentence = is_refused(bad, tmp_path, monkeypatch, capfd)
        record_property(
            "bad", (request.path.stem.removeprefix("test_"), name, 2, sentence.strip().replace(f"{tmp_path}/here/", ""))
        )

    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    return check
