"""A configuration outside of ``hydra.main``: composed from conf/ and the words of a command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src.config.checks import check
from src.config.command_line import CONF, composition_sentence, typed
from src.config.schema import Config
from src.config.words import as_meant
from src.errors import UserError


def composed(words: Sequence[str], *, checked: bool = True) -> Config:
    """Compose a configuration, as ``src.train`` does.

    Args:
        words: KEY=VALUE, GROUP=NAME, as on a command line.
        checked: refuse values that cannot be.

    Raises:
        UserError: words that name nothing, or values that cannot be.
    """
    try:
        config = typed(raw("config", as_meant(words)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_sentence(error)) from error
    if checked:
        check(config)
    return config


def raw(name: str, words: Sequence[str], **options: Any) -> DictConfig:
    """Compose conf/NAME.yaml as Hydra has it: no types, no checks; ``options`` are those of ``hydra.compose``."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(words), **options)
