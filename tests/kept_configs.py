"""Files of conf/ and of Hydra itself are read once a process, where Hydra reads them for each configuration."""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra  # noqa: F401  (the repository alone cannot be imported first)

from src.config.schema import CONF

KEPT = ("", "hydra.conf", str(CONF))  # of the ConfigStore, of Hydra, ours; what a test writes is read each time


def keep() -> None:
    """Make Hydra in this process so; who gets a configuration may change it, so each gets a copy."""
    load = ConfigRepository.load_config
    known: dict[tuple[Any, ...], Any] = {}

    def kept(self: ConfigRepository, config_path: str) -> Any:
        places = tuple(source.path.removeprefix("pkg://") for source in self.get_sources())
        if not set(places) <= set(KEPT):
            return load(self, config_path)
        if (places, config_path) not in known:
            known[places, config_path] = load(self, config_path)
        return copy.deepcopy(known[places, config_path])

    ConfigRepository.load_config = kept  # type: ignore[method-assign]
