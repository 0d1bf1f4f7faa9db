"""Look the installed packages up among known vulnerabilities: ``make audit``.

``pip-audit`` asks the vulnerability service of PyPI. A vulnerability that it finds fails; a service that cannot be
reached does not, and is told, so that a machine without a network can still run everything else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sysconfig
from collections.abc import Sequence
from typing import Any

UNREACHABLE = "the vulnerability service is not reachable: the audit of dependencies was skipped"
_NO_NETWORK = ("could not connect", "connection", "timed out", "network", "resolve")


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit; returns 0 if nothing is known or nobody could be asked, 1 for vulnerabilities or a failure of the tool."""
    parser = argparse.ArgumentParser(prog="python -m scripts.audit", description=__doc__)
    parser.add_argument("program", help="the pip-audit to use")
    parser.add_argument("--path", default=sysconfig.get_paths()["purelib"], help="site-packages to audit")
    wanted = parser.parse_args(arguments)
    line = [wanted.program, "--path", wanted.path, "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return _failed(done.stderr)
    return _verdict(found)


def _verdict(dependencies: Sequence[dict[str, Any]]) -> int:
    audited = [package for package in dependencies if "skip_reason" not in package]
    skipped = [package["name"] for package in dependencies if "skip_reason" in package]
    if not audited:
        print(UNREACHABLE)
        return 0
    known = [(package, flaw) for package in audited for flaw in package["vulns"]]
    for package, flaw in known:
        mended = ", ".join(flaw["fix_versions"]) or "no version yet"
        print(f"error: {package['name']} {package['version']} has {flaw['id']}, mended in {mended}")
    print(f"{len(audited)} packages audited, {len(known)} known vulnerabilities")
    if skipped:
        print(f"not known to the service: {', '.join(skipped)}")
    return 1 if known else 0


def _failed(said: str) -> int:
    if any(word in said.lower() for word in _NO_NETWORK):
        print(UNREACHABLE)
        return 0
    print(f"error: pip-audit failed: {said.strip()}")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
