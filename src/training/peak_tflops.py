"""What GPUs could do at best: the denominator of model FLOP utilisation."""

from __future__ import annotations

import re

# Dense bf16 TFLOP/s with float32 accumulation, from the makers' data sheets, by a part of the device's name; the
# first that fits counts, so longer names stand before the shorter ones that they hold.
PEAK_TFLOPS = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.4),
    ("H200", 989.4),
    ("H100 NVL", 835.5),
    ("H100 PCIe", 756.5),
    ("H100", 989.4),
    ("H800", 989.4),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L40S", 362.1),
    ("L40", 181.1),
    ("L4", 121.0),
    ("RTX 6000 Ada", 364.2),
    ("RTX A6000", 154.8),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 4080", 97.5),
    ("RTX 3090", 71.0),
)


def peak_tflops(device_name: str) -> float | None:
    """Give the dense bf16 peak of a GPU in TFLOP/s by its name as CUDA tells it; None for one that is not known.

    The measure is the same whatever the precision of a run, so that runs can be compared.
    """
    return next((peak for part, peak in PEAK_TFLOPS if re.search(rf"\b{part}\b", device_name)), None)
