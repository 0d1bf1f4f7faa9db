"""The configuration of an existing run: what its config.yaml says, and what the command line may change of it."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.config.omegaconf_internals import node
from src.config.schema import CONF, Config, schema_leaves
from src.errors import UserError

# The file of conf/ whose values stand for the keys that a group has got since a run was begun. Where a field of the
# group names the choice, its file; otherwise the one that is named here. Keys that it lacks are the paper's recipe's.
CHOICES = {
    "attention": "{pattern}",
    "model": "enwik8",
    "data": "{name}",
    "optimizer": "{name}",
    "precision": "{name}",
    "trainer": "default",
    "logger": "{kind}",
    "watch": "default",
    "debug": "none",
}
UNNAMED = {"optimizer": "adamw"}
"""The choice of a group whose oldest runs do not name it."""

# What a run may change after it has begun: where and how it computes, never what it computes.
CHANGEABLE = (
    "logger",
    "logger.kind",
    "logger.project",
    "logger.entity",
    "logger.group",
    "logger.tags",
    "logger.columns",
    "logger.sample_bytes",
    "logger.sample_pictures",
    "logger.sample_seconds",
    "logger.attention_picture",
    "attention.backend",
    "model.recompute",
    "model.backend",
    "model.cuda_graph",
    "data.path",
    "data.document_offsets",
    "data.micro_batch",
    "data.eval_batch_size",
    "data.workers",
    "paths.data_dir",
    "trainer.max_steps",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.val_every",
    "trainer.checkpoint_every",
    "trainer.checkpoint_minutes",
    "trainer.keep",
    "trainer.log_every",
    "trainer.early_stopping",
    "trainer.progress",
    "trainer.peak_tflops",
    "watch",
    "watch.nonfinite",
    "watch.nonfinite_steps",
    "watch.stall_seconds",
    "deterministic",
    "debug",
    "debug.trace_after",
    "debug.trace_steps",
)


def read_config(file: Path) -> Config:
    """Read a run's config.yaml; keys that are newer than the run get the values that conf/ gives them.

    Raises:
        UserError: the file is damaged, or holds keys that this version does not know.
    """
    try:
        content = OmegaConf.load(file)
        if not isinstance(content, DictConfig):
            raise ValueError("it is not a table of keys")
        merged = OmegaConf.merge(OmegaConf.structured(Config), newer_keys(content), content)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error


def newer_keys(content: DictConfig) -> DictConfig:
    """Give the keys of conf/ that a saved configuration lacks, with their values."""
    found = OmegaConf.create()
    whole = OmegaConf.to_container(content)
    assert isinstance(whole, dict)
    if lacking := [key for key in schema_leaves() if "." not in key and key not in content]:
        root = _of_conf("config.yaml")
        for key in (key for key in lacking if key in root):
            found[key] = node(root, key)
    for group, choice in CHOICES.items():
        saved = whole.get(group, {})
        if not isinstance(saved, dict):
            continue
        known = {key.removeprefix(f"{group}.") for key in schema_leaves() if key.startswith(f"{group}.")}
        if known <= set(saved):
            continue
        chosen = choice.format_map({"pattern": None, "kind": None, "name": UNNAMED.get(group), **saved})
        file = f"{group}/{chosen}.yaml"
        own = _of_conf(file) if (CONF / file).is_file() else OmegaConf.create()
        standard = OmegaConf.merge(_of_conf("recipe/paper.yaml").get(group, {}), own)
        assert isinstance(standard, DictConfig)
        newer = {key: node(standard, key) for key in known & set(standard) - set(saved)}
        if newer:
            found[group] = newer
    return found


def _of_conf(file: str) -> DictConfig:
    content = OmegaConf.load(CONF / file)
    assert isinstance(content, DictConfig)
    return content


def restore(saved: Config, command_line: Config, changed: list[str]) -> Config:
    """Take a run's saved configuration and the changes that the command line makes to it.

    Args:
        saved: from the run's config.yaml.
        command_line: as composed; only the values under ``changed`` are taken from it.
        changed: keys that the command line names.

    Raises:
        UserError: a key that a run cannot change, by name.
    """
    config = copy.deepcopy(saved)
    for key in changed:
        if key not in CHANGEABLE:
            raise UserError(f"{key} cannot be changed for an existing run: allowed are {', '.join(CHANGEABLE)}")
        *path, leaf = key.split(".")
        setattr(_node(config, path), leaf, getattr(_node(command_line, path), leaf))
    return config


def _node(config: Any, path: list[str]) -> Any:
    return functools.reduce(getattr, path, config)
