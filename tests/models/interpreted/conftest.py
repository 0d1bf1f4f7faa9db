"""These tests need Triton's interpreter from the start of the process: ``test_interpreted`` one folder up runs them.

By hand: ``TRITON_INTERPRET=1 python -m pytest tests/models/interpreted``.
"""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.attention.triton.interpreter import prepare_once_a_launch

    prepare_once_a_launch()
