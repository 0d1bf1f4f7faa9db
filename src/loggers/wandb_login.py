"""Whether wandb goes online, and what it would refuse: asked before anything is written, without importing wandb."""

from __future__ import annotations

import netrc
import os
import re
from urllib.parse import urlsplit

from src.config.schema import LoggerConfig
from src.errors import UserError

SERVER = "https://api.wandb.ai"
HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")  # of the public server: since wandb 0.31, and before
MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")  # the last two: older names of the first two
_NOT_IN_NAMES = "/\\#?%:"
_KEY = re.compile(r"(?:[^-]*-)?[\w-]{40,}|ey[\w-]+\.[\w-]+\.[\w-]+")


def login_known() -> bool:
    """Say whether wandb may go online: nothing tells it to stay off, and a key is in the environment or netrc."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    return bool(os.environ.get("WANDB_API_KEY")) or _in_netrc()


def check_wandb(logger: LoggerConfig) -> None:
    """Refuse settings that wandb would refuse when training is about to begin; a key is never shown.

    Raises:
        UserError: one sentence with the key or variable, the value found and what is allowed.
    """
    if logger.kind != "wandb":
        return
    for key, name in (("logger.project", logger.project), ("logger.entity", logger.entity)):
        if name is not None and (not 0 < len(name) <= 128 or set(name) & set(_NOT_IN_NAMES)):
            raise UserError(f"{key} must be 1 to 128 characters without any of {_NOT_IN_NAMES}, found {name!r}")
    for tag in logger.tags:
        if not 0 < len(tag) <= 64:
            raise UserError(f"logger.tags must have 1 to 64 characters each, found {tag!r}")
    mode, server = os.environ.get("WANDB_MODE", "online"), os.environ.get("WANDB_BASE_URL", SERVER)
    if mode not in MODES:
        raise UserError(f"WANDB_MODE must be one of {', '.join(MODES)}, found {mode!r}")
    if not _is_server(server):
        raise UserError(f"WANDB_BASE_URL must be an address such as {SERVER}, found {without_login(server)!r}")
    key = os.environ.get("WANDB_API_KEY", "")
    if key and login_known() and not _KEY.fullmatch(key):
        raise UserError(
            f"WANDB_API_KEY must be a key of 40 or more letters and digits, found one of {len(key)} characters: copy "
            "it again from https://wandb.ai/authorize, or set WANDB_MODE=offline"
        )


def without_login(url: str) -> str:
    """Take user and password out of an address, for messages."""
    return re.sub(r"//[^/@]*@", "//", url)


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # brackets or a port that are none
        return False


def _in_netrc() -> bool:
    named = os.environ.get("WANDB_BASE_URL")
    hosts = (named.split("://")[-1].split("/")[0],) if named else HOSTS
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
        return any(known.authenticators(host) is not None for host in hosts)
    except (OSError, netrc.NetrcParseError):
        return False
