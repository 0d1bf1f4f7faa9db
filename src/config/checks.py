"""The checks that a configuration must pass before anything starts.

``check`` is the one place that refuses an impossible value, with a sentence that names the key, the value and what is
allowed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, cast, get_args

from src.attention.chosen import chosen
from src.attention.patterns import HeadPattern, Pattern, PatternName
from src.config.schema import AttentionConfig, Config, EvalConfig, ModelConfig, SampleConfig
from src.errors import UserError

# Pixels of a row of each picture data set.
PICTURE_SIDES = {"cifar10": 32, "imagenet64": 64}
_ESCAPES = {rb"\n": b"\n", rb"\r": b"\r", rb"\t": b"\t", rb"\0": b"\0"}
LONGEST_NAME = 200  # file systems take 255, and a time stamp follows
_NAME_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def check(config: Config) -> None:
    """Refuse a configuration that cannot run.

    Raises:
        UserError: one sentence with the key, the value found and what is allowed.
    """
    check_fields(config)
    _check_pattern(config.attention, config.model.heads)
    _check_model(config.model)
    _check_batches(config)
    if config.precision.name == "fp16" and config.trainer.strategy == "fsdp2":
        raise UserError("precision=fp16 does not go with trainer.strategy=fsdp2: take bf16 or fp32, or strategy ddp")
    _check_picture(config)
    _check_documents(config)
    if config.data.name == "bytes" and config.data.path is None:
        raise UserError("data.path must name a file for data=bytes, found null")
    if not (name := config.name) or not set(name) <= _NAME_CHARACTERS or name.startswith(("-", ".")):
        raise UserError(f"name must be made of letters, digits, '.', '_' and '-', found {name!r}")
    if len(name) > LONGEST_NAME:
        raise UserError(f"name must have at most {LONGEST_NAME} characters, found {len(name)}")


def check_eval(command_line: EvalConfig, config: Config) -> list[int]:
    """Give the rows that ``eval.min_context`` asks for, as a list.

    Args:
        command_line: of ``src.eval``.
        config: of the run.

    Raises:
        UserError: one sentence with the key, the value found and what is allowed.
    """
    given, context = command_line.eval.min_context, config.data.context
    rows = given if isinstance(given, list) else [given]
    if not rows or not all(type(row) is int for row in rows):
        raise UserError(f"eval.min_context must be a whole number or a list such as [0,1024], found {given!r}")
    if len(set(rows)) < len(rows):
        raise UserError(f"eval.min_context must name each number once, found {given}")
    if wrong := [row for row in rows if not 0 <= row < context]:
        raise UserError(f"eval.min_context must be at least 0 and below data.context ({context:,}), found {wrong[0]:,}")
    if any(rows) and config.data.name in PICTURE_SIDES:
        raise UserError(f"eval.min_context must be 0 for pictures, found {given}: each is one whole sequence")
    return rows


def check_sample(config: SampleConfig) -> None:
    """Refuse keys of ``src.sample`` that cannot be, beyond what ``check`` sees.

    Raises:
        UserError: one sentence with the key, the value found and what is allowed.
    """
    if not 0 < config.top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, found {config.top_p}")
    if config.prompt is not None and config.prompt_file is not None:
        raise UserError("prompt and prompt_file exclude each other: give one of them")


def attention_pattern(attention: AttentionConfig) -> HeadPattern:
    """Build the attention pattern.

    Raises:
        UserError: values that make none.
    """
    try:
        if attention.pattern not in get_args(PatternName):
            return chosen(attention.pattern, attention.options)
        if attention.options:
            raise ValueError(
                f"options must be empty for attention.pattern={attention.pattern}, whose keys are attention.stride and "
                f"those beside it, found {attention.options}"
            )
        return Pattern(
            name=cast(Any, attention.pattern),
            stride=attention.stride,
            summary=attention.summary,
            mode=cast(Any, attention.mode),
            distinct=attention.distinct,
            interleave=interleave_ratio(attention.interleave),
        )
    except ValueError as error:
        raise UserError(f"attention.{error}") from error


def interleave_ratio(text: str) -> tuple[int, int]:
    """Parse ``attention.interleave``, a ratio such as ``1:1``."""
    first, colon, second = text.partition(":")
    if not (colon and first.isdecimal() and second.isdecimal()):
        raise UserError(f"attention.interleave must be a ratio such as 1:1, found {text!r}")
    return int(first), int(second)


def separator_bytes(text: str) -> bytes:
    r"""Parse ``data.documents``: UTF-8, in which \n, \r, \t, \0 and \xHH stand for a byte; \x5c is a backslash.

    Raises:
        UserError: nothing, or another backslash.
    """
    written = text.encode(errors="surrogateescape")  # as the shell handed it over
    if not written:
        raise UserError("data.documents must have at least one byte, found ''; null is for one text")
    parts = re.findall(rb"\\x[0-9a-fA-F]{2}|\\[nrt0]|[^\\]", written, re.DOTALL)
    if sum(map(len, parts)) < len(written):
        known = r"\n \r \t \0 \xHH (\x5c is one)"
        raise UserError(f"data.documents must have no backslash but those of {known}, found {text!r}")
    return b"".join(_ESCAPES.get(part) or (bytes.fromhex(part[2:].decode()) if part[1:] else part) for part in parts)


def check_fields(node: Any, prefix: str = "") -> None:
    """Refuse a value that its key cannot have, whatever the other keys are.

    Raises:
        UserError: one sentence with the key, the value found and what is allowed.
    """
    for item in dataclasses.fields(node):
        key, value = prefix + item.name, getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{key}.")
        elif value is not None:
            _check_value(key, value, item.metadata)


def _check_value(key: str, value: Any, allowed: Mapping[str, Any]) -> None:
    choices, least, below, most = (allowed.get(name) for name in ("choices", "least", "below", "most"))
    if choices is not None and value not in choices:
        raise UserError(f"{key} must be one of {', '.join(choices)}, found {value!r}")
    if least is not None and not value >= least:  # written so that NaN is refused as well
        raise UserError(f"{key} must be at least {least}, found {value}")
    if below is not None and not value < below:
        raise UserError(f"{key} must be below {below}, found {value}")
    if most is not None and not value <= most:
        raise UserError(f"{key} must be at most {most}, found {value}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} must be finite, found {value}")


def _check_pattern(attention: AttentionConfig, heads: int) -> None:
    pattern = attention_pattern(attention)
    if isinstance(pattern, Pattern) and pattern.name != "dense" and pattern.mode == "multihead" and heads < 2:
        raise UserError(f"model.heads must be at least 2 for attention.mode=multihead, found {heads}")
    try:
        for block in range(pattern.turns):
            pattern.layer(heads, block)
    except ValueError as error:
        raise UserError(
            f"attention.pattern={attention.pattern} does not go with model.heads={heads}: {error}"
        ) from error


def _check_model(model: ModelConfig) -> None:
    if model.half_size_qk and model.width % 2:
        raise UserError(f"model.width must be even for model.half_size_qk=true, found {model.width}")
    narrow = model.width // 2 if model.half_size_qk else model.width
    if narrow % model.heads:
        what = "half of model.width" if model.half_size_qk else "model.width"
        raise UserError(f"model.heads must divide {what} ({narrow}), found {model.heads}")
    if model.kv_heads is not None and model.heads % model.kv_heads:
        raise UserError(f"model.kv_heads must divide model.heads ({model.heads}), found {model.kv_heads}")
    if model.rotary is not None and narrow // model.heads % 2:
        raise UserError(
            f"model.rotary needs an even width of a head's queries and keys, found {narrow // model.heads}: change "
            "model.heads, or take model.rotary=null"
        )


def _check_picture(config: Config) -> None:
    side = PICTURE_SIDES.get(config.data.name)
    if side is None:
        return
    if config.data.context != 3 * side * side:
        raise UserError(
            f"data.context must be {3 * side * side} for data={config.data.name}, found {config.data.context}"
        )
    if config.model.positions == "image" and config.model.row != side:
        raise UserError(f"model.row must be {side} pixels for data={config.data.name}, found {config.model.row}")


def _check_documents(config: Config) -> None:
    data = config.data
    given = {"data.documents": data.documents, "data.document_offsets": data.document_offsets}
    for key, value in given.items():
        if value is not None and data.name in PICTURE_SIDES:
            raise UserError(f"{key} must be null for data={data.name}, found {value!r}: each picture is a sequence")
    if None not in given.values():
        raise UserError("data.documents and data.document_offsets exclude each other: give one of them")
    if data.documents is not None:
        separator_bytes(data.documents)


def _check_batches(config: Config) -> None:
    data, trainer, optimizer = config.data, config.trainer, config.optimizer
    if optimizer.short_context_steps and data.context % optimizer.short_context:
        raise UserError(
            f"optimizer.short_context must divide data.context ({data.context:,}), found {optimizer.short_context:,}"
        )
    ranks = trainer.devices * trainer.num_nodes
    if data.batch_size % ranks:
        raise UserError(
            f"data.batch_size must be a multiple of the {ranks} devices (trainer.devices * trainer.num_nodes), "
            f"found {data.batch_size}"
        )
    if data.micro_batch is not None and (data.batch_size // ranks) % data.micro_batch:
        raise UserError(
            f"data.micro_batch must divide the {data.batch_size // ranks} sequences that each device takes a step, "
            f"found {data.micro_batch}"
        )
