"""requirements.lock and pyproject.toml say the same; the audit fails on what is found, and on nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import audit
from scripts.licences import accepted

ROOT = Path(__file__).resolve().parents[2]
OPEN = {"torch", "triton"}  # with what they bring: builds differ by machine
LOCKED = {
    canonicalize_name(name): (version, len(re.findall(r"--hash=sha256:[0-9a-f]{64}", hashes)))
    for name, version, hashes in re.findall(
        r"^([\w.-]+)==(\S+)((?: \\\n    --hash=\S+)*)", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ASKED = [Requirement(text) for text in sum(EXTRAS.values(), PROJECT["dependencies"])]
ASKED = [wanted for wanted in ASKED if wanted.name != PROJECT["name"]]  # an extra that takes in the others


def test_every_locked_package_has_hashes():
    assert len(LOCKED) > 50
    assert all(hashes for _, hashes in LOCKED.values())
    assert not OPEN & set(LOCKED)


@pytest.mark.parametrize("wanted", ASKED, ids=lambda wanted: wanted.name)
def test_the_lock_is_that_of_pyproject(wanted):
    """Where this fails, run ``make lock``."""
    if wanted.name in OPEN:
        return
    version, _ = LOCKED[canonicalize_name(wanted.name)]
    assert wanted.specifier.contains(version, prereleases=True), f"{wanted} is locked as {version}: run make lock"


def test_the_lock_holds_what_locked_packages_need():
    """Whatever the installed packages ask for here is locked too: nothing is fetched without a hash."""
    todo, seen = [canonicalize_name(wanted.name) for wanted in ASKED], set()
    while todo:
        name = todo.pop()
        if name in seen or name in OPEN:
            continue
        seen.add(name)
        assert name in LOCKED, f"{name} is not locked: run make lock"
        needed = map(Requirement, importlib.metadata.requires(name) or [])
        todo += [canonicalize_name(r.name) for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]


KNOWN = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
FINE = {"name": "b", "version": "1", "vulns": []}
UNKNOWN = {"name": "c", "skip_reason": "not found on PyPI"}


@pytest.mark.parametrize(
    ("said", "code", "sentence"),
    [
        (json.dumps({"dependencies": [KNOWN, FINE, UNKNOWN]}), 1, "error: a 1 has PYSEC-1, mended in 2"),
        (json.dumps({"dependencies": [FINE, UNKNOWN]}), 0, "1 packages audited, 0 known vulnerabilities"),
        (json.dumps({"dependencies": [UNKNOWN]}), 0, "not reachable"),
        ("could not connect to PyPI", 0, "not reachable"),
        ("unrecognized arguments", 1, "error: pip-audit failed"),
    ],
)
def test_the_audit_fails_on_vulnerabilities_alone(said, code, sentence, tmp_path, capsys):
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat <<'END' {'' if said.startswith('{') else '>&2'}\n{said}\nEND\n")
    program.chmod(0o755)
    assert audit.main([str(program)]) == code
    assert sentence in capsys.readouterr().out


def test_licences_are_accepted_by_name_alone():
    assert accepted("Apache-2.0 AND (MIT OR BSD-3-Clause)") and accepted("Apache-2.0 WITH LLVM-exception")
    assert not accepted("GNU Affero General Public License v3") and not accepted("UNKNOWN")
    assert not accepted("MIT AND AGPL-3.0")
