"""What tests would make anew for each of some hundred runs is made once a process."""

from __future__ import annotations

import copy
import functools
import io
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra  # noqa: F401  (the repository alone cannot be imported first)

from src.config.schema import CONF

KEPT = ("", "hydra.conf", str(CONF))  # of the ConfigStore, of Hydra, ours; what a test writes is read each time


def keep() -> None:
    """Read files of conf/ and of Hydra itself once; who gets a configuration may change it, so each gets a copy."""
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


def keep_pictures() -> None:
    """Draw the picture that each run begins with once for each pattern, number of heads and length."""
    from src.attention import draw

    pattern_drawn = draw.draw_pattern

    @functools.cache
    def png(*arguments: Any) -> bytes:
        file = io.BytesIO()
        pattern_drawn(*arguments).savefig(file, format="png")
        return file.getvalue()

    class Kept:
        def __init__(self, *arguments: Any) -> None:
            self.arguments = arguments

        def savefig(self, file: Any, format: str) -> None:
            assert format == "png"
            file.write(png(*self.arguments))

    draw.draw_pattern = Kept  # type: ignore[assignment,misc]
