"""What ``make docs`` does beside MkDocs: the README is the first page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parents[1] / "README.md"


def on_files(files: Any, config: Any) -> Any:
    """Add the README, its links seen from docs/."""
    from mkdocs.structure.files import File  # installed in .tools alone

    content = re.sub(r"(\]\(|src=\")docs/", r"\1", README.read_text())
    files.append(File.generated(config, "index.md", content=content))
    return files
