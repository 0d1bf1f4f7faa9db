"""A GPU whose memory does not suffice: one sentence with the settings to lower and what each saves, by estimate."""

from __future__ import annotations

import copy
from pathlib import Path

from src.config.schema import Config

GIB = 2**30
KEPT = {"none": 12, "light": 6, "block": 1}
"""Tensors of (batch, context, width) that a residual block keeps for its backward pass, by ``model.recompute``."""
AT_WORK = 12
"""The same for the one block that is being computed."""
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def sentence(config: Config, run: Path) -> str:
    """Say what to lower, the settings that a run may change first."""
    new_run, resumed = savings(config)
    again = f"; go on with python -m src.train resume={run} and one of them" if resumed else ""
    told = [f"{setting} saves {saved / GIB:.2f} GiB" for setting, saved in resumed.items()]
    told += [f"{setting} (a new run) {saved / GIB:.2f} GiB" for setting, saved in new_run.items()]
    total = activation_bytes(config) / GIB
    return (
        f"the memory of the device does not suffice: activations of a step take about {total:.2f} GiB, of which by "
        f"estimate {', '.join(told)}{again}"
    )


def savings(config: Config) -> tuple[dict[str, int], dict[str, int]]:
    """Estimate what lowering a setting saves on each device: ``{"data.micro_batch=4": bytes, ...}``.

    Returns:
        Settings that only a new run can have, and settings that a run may change, each by falling gain.
    """
    share = config.data.batch_size // (config.trainer.devices * config.trainer.num_nodes)
    micro = config.data.micro_batch or share
    before = activation_bytes(config)

    def saved(**changes: object) -> int:
        changed = copy.deepcopy(config)
        for key, value in changes.items():
            group, _, name = key.partition("_")
            setattr(getattr(changed, group), name, value)
        return before - activation_bytes(changed)

    may_change: dict[str, int] = {}
    smaller = max((size for size in range(1, micro) if share % size == 0), default=None)
    if smaller is not None:
        may_change[f"data.micro_batch={smaller}"] = saved(data_micro_batch=smaller)
    for recompute in ("light", "block"):
        if KEPT[recompute] < KEPT[config.model.recompute]:
            may_change[f"model.recompute={recompute}"] = saved(model_recompute=recompute)
    context = config.data.context // 2 // config.attention.stride * config.attention.stride
    new_run: dict[str, int] = {}
    if context and config.model.positions == "text":  # a picture's context is its size
        new_run[f"data.context={context}"] = saved(data_context=context)
    if config.precision.name == "fp32":
        new_run["precision=bf16"] = saved(precision_name="bf16")
    if not may_change and not new_run:
        new_run[f"model.depth={max(1, config.model.depth // 2)}"] = saved(model_depth=max(1, config.model.depth // 2))
    return _by_gain(new_run), _by_gain(may_change)


def activation_bytes(config: Config) -> int:
    """Estimate what the activations of one micro-batch take on a device at the end of its forward pass."""
    share = config.data.batch_size // (config.trainer.devices * config.trainer.num_nodes)
    tokens = (config.data.micro_batch or share) * config.data.context
    shared = (
        1 - (config.model.kv_heads or config.model.heads) / config.model.heads
    )  # keys and values that are not there
    kept = KEPT[config.model.recompute] - (2 * shared if config.model.recompute != "block" else 0)
    tensors = config.model.depth * kept + AT_WORK
    logits = 256 * (BYTES[config.precision.name] + 4)  # and their gradient
    return tokens * (round(tensors * config.model.width) * BYTES[config.precision.name] + logits)


def _by_gain(settings: dict[str, int]) -> dict[str, int]:
    return dict(sorted(settings.items(), key=lambda item: -item[1]))
