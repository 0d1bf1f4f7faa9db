"""Run all bad inputs and print them as a table, and how many there are of each kind: ``python -m tests.bad``."""

import sys
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table


class Rows:
    """Collects what the tests of the table note."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, int, str]] = []
        self.asked = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.asked = sum("refused" in getattr(item, "fixturenames", ()) for item in session.items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.rows += [row for name, row in report.user_properties if name == "bad"]


def main() -> int:
    rows = Rows()
    code = pytest.main(["-q", str(Path(__file__).parent), *sys.argv[1:]], plugins=[rows])
    table = Table("subject", "bad input", "code", "message")
    for subject, name, exit_code, sentence in rows.rows:
        table.add_row(subject, name, str(exit_code), sentence)
    console = Console(width=200)
    console.print(table, markup=False)
    print("| subject | refused |\n| --- | ---: |")
    for subject, count in Counter(row[0] for row in rows.rows).items():
        print(f"| {subject.replace('_', ' ')} | {count} |")
    console.print(f"{len(rows.rows)} of {rows.asked} bad inputs refused in one sentence, with every file as it was")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
