"""From the groups of a configuration to objects: every key is checked against the annotations of what it is for."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from bitsplit.errors import InputError, one_line
from bitsplit.files import user_path

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
_LONGEST_TEXT = 4096  # of a path; a file's name is shorter still
_SHOWN = 200  # characters of a wrong value that a message repeats


def plain_values(config: DictConfig, group: str) -> dict:
    """The values of a group, resolved, with `~` at the start of a path expanded; InputError where it is no group."""
    values = config[group]
    if not OmegaConf.is_dict(values):
        raise InputError(f"{group}={_shown(values)} is not one of its choices; --help lists them")
    plain = OmegaConf.to_container(values, resolve=True)
    return {key: str(user_path(value)) if str(value).startswith("~") else value for key, value in plain.items()}


def object_values(config: DictConfig, group: str, package: str) -> dict:
    """The values of a group whose `_target_` lies in `package`, checked against what that takes."""
    values = plain_values(config, group)
    target = values.get("_target_")
    if not isinstance(target, str) or not target.startswith(f"{package}."):
        raise InputError(f"{group}._target_ must name something in {package}; got {_shown(target)}")
    try:
        make = get_object(target)
    except Exception as error:  # whatever an import may raise
        raise InputError(f"{group}._target_={_shown(target)} cannot be loaded: {one_line(error)}") from error
    if not inspect.isroutine(make) and not inspect.isclass(make):
        raise InputError(f"{group}._target_={_shown(target)} is nothing that can be called")
    check_values(make, group, {key: value for key, value in values.items() if key != "_target_"})
    return values


def build_object(group: str, values: dict):
    """The object of `object_values`; InputError for what it refuses."""
    try:
        return instantiate(values)
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise cause if isinstance(cause, InputError) else InputError(f"{group}: {one_line(cause)}") from error


def check_values(make: Callable, group: str, values: Mapping) -> None:
    """InputError, which names the key, where `make(**values)` has a key too many or a value of another type."""
    parameters, hints = inspect.signature(make).parameters, typing.get_type_hints(make)
    for key, value in values.items():
        if key not in parameters:
            raise InputError(f"there is no {group}.{key}; the keys are {', '.join(parameters)}")
        hint = hints.get(key)
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if set(kinds) <= _WORDS.keys() and not any(_is_a(value, kind) for kind in kinds):
            words = " or ".join(_WORDS[kind] for kind in kinds)
            raise InputError(f"{group}.{key} must be {words}; got {_shown(value)}")
        if int in kinds and isinstance(value, int) and not isinstance(value, bool) and not 1 <= value < 2**31:
            raise InputError(f"{group}.{key} must be at least 1 and below 2^31; got {_shown(value)}")
        if value == "":  # of a variable that is not set, say
            raise InputError(f"{group}.{key} is empty; leave it out, or give it a value")
        if isinstance(value, str) and len(value) > _LONGEST_TEXT:
            raise InputError(f"{group}.{key} is longer than {_LONGEST_TEXT} characters")


def _is_a(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _shown(value: object) -> str:
    return one_line(repr(value))[:_SHOWN]
