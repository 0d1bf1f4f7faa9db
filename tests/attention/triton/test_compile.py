"""Every kernel compiles for every GPU generation from Ampere on, with no GPU, and fits where it may have to run."""

from __future__ import annotations

import functools

import pytest

from tests.attention.triton.compile_kernels import launched_kernels
from tests.attention.triton.compiled import (
    DECODING,
    FUSED,
    KERNELS,
    LARGEST,
    MUON,
    ROOT,
    SMALLEST,
    TILED,
    check,
    compiled,
)

pytest.importorskip("triton")

KERNELS_OF = {"attention": KERNELS, "tiled": TILED, "decoding": DECODING, "fused": FUSED, "muon": MUON}
ARCHS = ("80", "86", "89", "90")
FAST = {part: ("86", "90") if part in ("attention", "tiled") else ("90",) for part in KERNELS_OF}  # others: test-all
SLOW = {part: tuple(arch for arch in ARCHS if arch not in FAST[part]) for part in KERNELS_OF}


@functools.cache
def all_parts(slow: bool) -> dict[str, list[dict]]:
    """The kernels of each part of the project as an unknown GPU of each generation would run them; and "stored": those
    of attention as the table of tiles has them. One process compiles all, about one kernel a second."""
    lines = {
        part: ["--of", part, "--case", "fixed", *(word for arch in archs for word in ("--arch", arch))]
        for part, archs in (SLOW if slow else FAST).items()
    }
    lines["attention"] += ["--case", "strided"]
    if not slow:
        lines["stored"] = ["--arch", "90", "--stored", "--case", "strided", "--case", "fixed"]
    found: dict[str, list[dict]] = {name: [] for name in lines}
    for row in compiled(*[word for line in lines.values() for word in ("+", *line)][1:]):
        found[list(lines)[row["part"]]].append(row)
    return found


@pytest.mark.parametrize(
    ("part", "arch"),
    [(part, arch) for part in KERNELS_OF for arch in FAST[part]]
    + [pytest.param(part, arch, marks=pytest.mark.slow) for part in KERNELS_OF for arch in SLOW[part]],
)
def test_safe_configurations_fit_100_kb_and_do_not_spill(part: str, arch: str) -> None:
    rows = [row for row in all_parts(arch in SLOW[part])[part] if row["arch"] == int(arch)]
    assert {row["kernel"] for row in rows} == KERNELS_OF[part]
    check(rows, spill=0)


def test_no_kernel_is_forgotten() -> None:
    """Every kernel that is launched anywhere in the project is among those that the tests here compile."""
    found = {row["function"] for part in KERNELS_OF for row in all_parts(False)[part]}
    assert found == launched_kernels(ROOT / "src")


@pytest.mark.parametrize("stored", [(), pytest.param(("--stored",), marks=pytest.mark.slow)], ids=["safe", "stored"])
def test_kernels_of_shared_keys_fit_too(stored: tuple[str, ...]) -> None:
    """Their gradients of keys and values are float32."""
    rows = compiled("--arch", "90", "--ratio", "2", *stored, "--case", "strided", "--case", "fixed heads")
    assert {row["kernel"] for row in rows} == KERNELS
    for row in rows:
        assert row["shared"] <= (LARGEST if stored else SMALLEST), row
        assert row["spilled"] <= (256 if stored else 0), row


def test_stored_configurations_compile_for_their_gpu() -> None:
    rows = all_parts(False)["stored"]
    assert max(row["config"][3] for row in rows) > 2, "the stored table was not used"
    for row in rows:
        assert row["shared"] <= LARGEST, row
        assert row["spilled"] <= 256, row
