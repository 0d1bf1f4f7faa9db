"""Score held-out bytes with the histogram of the training bytes: the order-0 figure that a model has to beat.

The histogram is over all training bytes, each value counted once more so that none is impossible. Pictures get a second
figure, with a histogram for each colour channel. Any configuration of src.train: add its KEY=VALUE arguments.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np


def main() -> int:
    """Parse the command line and print the figures; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.paper.histogram_baseline", description=__doc__)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for src.train, for example experiment=cifar10"
    )
    overrides = parser.parse_args().overrides
    from src.config.composing import composed
    from src.data.pictures import PictureDataModule
    from src.errors import UserError
    from src.jobs import build

    try:
        data = build.data_module(composed(overrides))
        data.prepare_data()
        data.setup()
        splits = data.splits
        print(splits.label)
        kinds = (1, 3) if isinstance(data, PictureDataModule) else (1,)
        train = counts(lambda indices: splits.train.batch(np.zeros_like(indices), indices), len(splits.train))
        for name, items in (("val", splits.val), ("test", splits.test)):
            held = counts(items.batch, len(items))
            for channels in kinds:
                suffix = ", a histogram a channel" if channels == 3 else ""
                print(f"{name}/bits_per_byte of an order-0 model{suffix}: {bits_per_byte(train, held, channels):.4f}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def counts(batch: Any, size: int) -> Any:
    """Count byte values by position modulo 3: int64 (3, 256), over ``size`` sequences read by ``batch``."""
    found = np.zeros((3, 256), np.int64)
    for start in range(0, size, 256):
        x, length = batch(np.arange(start, min(start + 256, size)))
        for channel in range(3):
            kept = (np.arange(x.shape[1]) % 3 == channel) & (np.arange(x.shape[1]) < length.numpy()[:, None])
            found[channel] += np.bincount(x.numpy()[kept], minlength=256)
    return found


def bits_per_byte(train: Any, held: Any, channels: int) -> float:
    """Score counts ``held``, int64 (3, 256), with ``train``: one histogram (``channels`` 1), or one a channel (3)."""
    seen = (train if channels == 3 else train.sum(0, keepdims=True)) + 1
    bits = -np.log2(seen / seen.sum(1, keepdims=True))
    return float((held * bits).sum() / held.sum())


if __name__ == "__main__":
    sys.exit(main())
