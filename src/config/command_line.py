"""What the commands share: compose with Hydra, and tell a user's mistake in one sentence."""

from __future__ import annotations

import difflib
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from src.config import hydra_internals, omegaconf_internals
from src.config.schema import CONF, Config, EvalConfig, SampleConfig, schema_leaves
from src.config.words import allowed_words, as_meant, check_hydra_keys, groups, leaves, parted
from src.errors import UserError, of_the_machine
from src.system.output import print_anything, understand_utf8
from src.system.signals import STOPPED, raise_again

SCHEMAS = {"schema": Config, "eval_schema": EvalConfig, "sample_schema": SampleConfig}  # as conf/*.yaml name them
for _name, _schema in SCHEMAS.items():
    ConfigStore.instance().store(name=_name, node=_schema)
OmegaConf.register_new_resolver("class_name", lambda path: path.rpartition(":")[2], replace=True)  # of a run's name


def command(config_name: str, task: Callable[[DictConfig], None]) -> None:
    """Compose the command line's configuration and hand it to ``task``, once for each job of a sweep.

    Args:
        config_name: file of conf/ that the composition starts from.
        task: what to do with a composed configuration. A ``UserError`` in one job leaves the others alone.

    Exits with code 2 after the sentences of all user errors.
    """
    mistakes: list[UserError] = []
    composing = True

    def guarded(cfg: DictConfig) -> None:
        nonlocal composing
        composing = False
        try:
            task(cfg)
        except Exception as error:
            told = error if isinstance(error, UserError) else of_the_machine(error)
            if told is None:
                raise
            mistakes.append(told)
            say_error(told)

    understand_utf8()
    print_anything()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here, instead of Hydra's own printing
    try:
        raise_again()
        sys.argv[1:] = _checked_words()
        hydra_internals.compose_once()
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()
    except (HydraException, OmegaConfBaseException, ArgumentError) as error:
        ours = error.__cause__  # of a launcher or sweeper of ours, which Hydra builds
        say_error(ours if isinstance(ours, UserError) else UserError(composition_sentence(error)))
        sys.exit(2)
    except UserError as error:  # of a sweep as a whole
        say_error(error)
        sys.exit(2)
    except ValueError as error:
        if not composing:
            raise  # a fault of ours in a task, not a mistake of the user: it keeps its traceback
        say_error(UserError(composition_sentence(error)))
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(STOPPED)
    if mistakes:
        sys.exit(2)


def say_error(error: UserError) -> None:
    """Print a user's mistake on stderr."""
    print(f"error: {error}", file=sys.stderr, flush=True)


def typed(cfg: DictConfig, kind: type[Config] = Config) -> Config:
    """Turn a composed configuration into its dataclass.

    Args:
        cfg: as Hydra composed it.
        kind: ``Config``, or ``EvalConfig`` with the keys of ``src.eval``.

    Raises:
        UserError: a key that the schema does not have (``+key=value``), or one without a value.
    """
    known = schema_leaves(kind)
    for key in _leaves(cfg, known):
        if key not in known:
            raise UserError(_unknown(key))
    try:
        return OmegaConf.to_object(cfg)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(composition_sentence(error)) from error


def overridden_keys() -> list[str]:
    """Keys and groups that the command line of this job names, in its order."""
    overrides = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    return [override.key_or_group for override in overrides]


def composition_sentence(error: BaseException) -> str:
    """Say in one sentence what Hydra or OmegaConf found wrong: the key, the value and what is allowed."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None)
    other = str(cause).partition("\n")[0].partition("Missing mandatory value: ")[2]  # that this one refers to
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read as KEY=VALUE: quote values that hold blanks, commas or brackets"
    if isinstance(cause, ValidationError) and key:
        allowed = allowed_words(leaves().get(key, "a value of another type"))
        return f"{key} must be {allowed}, found {getattr(cause, 'value', None) or _value_given(key)!r}"
    if missing := key if isinstance(cause, MissingMandatoryValue) else other:
        return f"{missing} has no value: give it as {missing}=VALUE"
    if isinstance(cause, InterpolationResolutionError | GrammarParseError) and key:
        return f"{key} cannot be resolved: {str(cause).splitlines()[0]}"
    if key:
        return _unknown(_key_given(key))
    first, *rest = str(error).strip().splitlines()
    if first.startswith("Could not override '"):
        return _unknown(_key_given(first.split("'")[1]))
    return f"{first} {rest[0].strip()}" if rest and first.endswith(":") else first


def _missing_file(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    if group:
        return f"{group}={choice} is no choice of conf/{group}/: allowed are {', '.join(error.options or ())}"
    return f"--config-name={choice} is no file of conf/: leave it out, each command has its own"


def _checked_words() -> list[str]:
    """Give the command line as Hydra is to read it; refuse words that it would answer with its usage.

    Raises:
        ArgumentError: an option that there is not, or a key taken away that every run needs.
        UserError: a word that cannot be read, or does nothing.
    """
    parser = hydra_internals.get_args_parser()
    parser.exit_on_error = False
    keys, options = parted(sys.argv[1:], parser)
    known, unknown = parser.parse_known_args([*keys, *options])
    if unknown:
        raise ArgumentError(None, f"{unknown[0]} is no option: keys are given as KEY=VALUE, --help lists them all")
    for word in keys:
        key = word.partition("=")[0].removeprefix("~")
        if word.startswith("~") and any(f"{leaf}.".startswith(f"{key}.") for leaf in leaves()):
            raise ArgumentError(None, f"{word} takes away what every run needs: give {key} a value instead")
    check_hydra_keys(keys)
    return [*as_meant(keys, sweep=known.multirun), *options]


def _value_given(key: str) -> str:
    given = [a.partition("=")[2] for a in sys.argv[1:] if a.partition("=")[0].lstrip("+") == key]
    return given[-1] if given else ""


def _key_given(beginning: str) -> str:
    keys = [a.partition("=")[0] for a in sys.argv[1:]]
    return next((key for key in keys if key.startswith(beginning)), beginning)


def _unknown(key: str) -> str:
    near = [k for k in difflib.get_close_matches(key, [*leaves(), *groups()], n=2) if k != key]
    hint = f": did you mean {near[0]}?" if near else ": --help lists them all"
    return f"{key} is not a key of the configuration{hint}"


def _leaves(cfg: Any, known: dict[str, str], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name in cfg:
        key, node = f"{prefix}{name}", omegaconf_internals.node(cfg, name)
        if isinstance(node, DictConfig) and key not in known:
            keys += _leaves(node, known, f"{key}.")
        else:
            keys.append(key)
    return keys
