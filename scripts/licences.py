"""Write docs/licences.md, the licence of every package that the project installs: ``make licences``.

A licence that is not among those in ``ACCEPTED`` fails, so that somebody reads it before the project depends on it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "licences.md"
UNLOCKED = ("torch", "triton")
# All of them allow use, change and passing on, in any work; MPL asks that changes to its own files stay open.
ACCEPTED = (
    "0BSD", "3-Clause BSD", "Apache", "BSD", "BSL-1.0", "CC0-1.0", "DFSG approved", "ISC", "LLVM-exception", "MIT",
    "MPL", "PSF-2.0", "Python Software Foundation", "Unlicense", "Zlib",
)  # fmt: skip
HEAD = """# Licences of the packages that are installed

Written by `make licences`, from the packages themselves; it fails on a licence that nobody has read yet. All of them
allow use, change and passing on. On machines with NVIDIA GPUs, PyTorch brings NVIDIA's own libraries under NVIDIA's
terms.

| package | version | licence |
| --- | --- | --- |
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table; returns 1 if there is a licence to be read first."""
    parser = argparse.ArgumentParser(prog="python -m scripts.licences", description=__doc__)
    parser.add_argument("program", help="the pip-licenses to use")
    wanted = parser.parse_args(arguments)
    names = [*re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE), *UNLOCKED]
    line = [wanted.program, f"--python={sys.executable}", "--format=json", "--with-urls", "--packages", *names]
    found = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    unread = [package for package in found if not accepted(package["License"])]
    for package in unread:
        print(f"error: {package['Name']} has a licence that is not in scripts/licences.py: {package['License']}")
    if unread:
        return 1
    rows = [f"| {_linked(package)} | {package['Version']} | {package['License']} |\n" for package in found]
    TABLE.write_text(HEAD + "".join(sorted(rows, key=str.lower)))
    print(f"{len(rows)} packages, all with accepted licences: {TABLE.relative_to(ROOT)}")
    return 0


def accepted(licence: str) -> bool:
    """Say whether every part of a licence's name is a known one."""
    parts = re.split(r"\s+(?:AND|OR|WITH)\s+|;\s*", licence.replace("(", " ").replace(")", " ").strip())
    return all(any(known in part for known in ACCEPTED) for part in parts)


def _linked(package: dict[str, str]) -> str:
    return package["Name"] if package["URL"] == "UNKNOWN" else f"[{package['Name']}]({package['URL']})"


if __name__ == "__main__":
    raise SystemExit(main())
