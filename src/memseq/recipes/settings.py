"""Values given as text, put into a frozen config: `slots.n_slots=32`, `layers.*.window=64`, `layers.0.n_heads=2`.

A path names fields, and in a tuple a number or `*` for all. The text becomes what the field is declared to be, and the
config checks itself when it is made anew; all changes of one config are made at once, so that two that need each other
(`d_model=64 layers.*.d_model=64`) are never half done.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from memseq.errors import ConfigError, nearest

__all__ = ["assignments", "split", "typed", "with_values"]

C = TypeVar("C")


def assignments(words: Sequence[str]) -> dict[str, str]:
    """`["dropout=0.1"]` as `{"dropout": "0.1"}`; raises `ConfigError` for a word without `=` and for a path given twice."""
    found: dict[str, str] = {}
    for word in words:
        path, equals, value = word.partition("=")
        if not equals or not path:
            raise ConfigError(f"{word!r} sets nothing; write path=value, such as dropout=0.1")
        if path in found and found[path] != value:
            raise ConfigError(f"{path} is set twice, to {found[path]} and to {value}; set it once")
        found[path] = value
    return found


def split(values: Mapping[str, str], prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    """(those whose path begins with `prefix.`, without it; the others)."""
    mine = {path.removeprefix(f"{prefix}."): value for path, value in values.items() if path.startswith(f"{prefix}.")}
    return mine, {path: value for path, value in values.items() if not path.startswith(f"{prefix}.")}


def with_values(config: C, values: Mapping[str, str]) -> C:
    """`config` with the fields at the paths of `values` replaced. Raises `ConfigError` naming the path and what fits there."""
    return _changed(config, {tuple(path.split(".")): value for path, value in values.items()}, ()) if values else config


def _changed(config: Any, values: Mapping[tuple[str, ...], str], place: tuple[str, ...]) -> Any:
    if isinstance(config, tuple | list):
        return type(config)(_changed(item, _below(values, i, len(config), place), (*place, str(i))) for i, item in enumerate(config))
    if not values:
        return config
    if not is_dataclass(config) or isinstance(config, type):
        path = ".".join([*place, *next(iter(values))])
        raise ConfigError(f"{path} leads into {'.'.join(place)}, which is {config!r} and has no fields; set {'.'.join(place)} itself")
    names = [f.name for f in fields(config) if f.init]
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for name in dict.fromkeys(path[0] for path in values):
        here = ".".join([*place, name])
        if name not in names:
            raise ConfigError(f"{type(config).__name__} has no field {here!r}; {nearest(name, names)}")
        inner = {path[1:]: value for path, value in values.items() if path[0] == name}
        if () in inner and len(inner) > 1:
            raise ConfigError(f"{here} is set whole and in parts; set one or the other")
        old = getattr(config, name)
        if () not in inner:
            changes[name] = _changed(old, inner, (*place, name))
        elif is_dataclass(old) or (isinstance(old, tuple) and any(is_dataclass(item) for item in old)):
            example = f"{here}.*.FIELD" if isinstance(old, tuple) else f"{here}.{fields(old)[0].name}"
            raise ConfigError(f"{here} is a config of its own; set a field of it, such as {example}=VALUE")
        else:
            changes[name] = typed(inner[()], hints[name], here)
    try:
        return replace(config, **changes)
    except ConfigError as error:
        raise ConfigError(f"{'.'.join(place) + ': ' if place else ''}{error}") from None


def _below(values: Mapping[tuple[str, ...], str], i: int, length: int, place: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    """The changes that concern item `i` of a tuple, a number going before `*`."""
    for path in values:
        known = path and (path[0] == "*" or (path[0].isdecimal() and int(path[0]) < length))
        if not known:
            raise ConfigError(f"{'.'.join([*place, *path[:1]])} names no item; there are 0 to {length - 1}, and * for all")
    all_items = {path[1:]: value for path, value in values.items() if path[0] == "*"}
    return all_items | {path[1:]: value for path, value in values.items() if path[0] == str(i)}


def typed(text: str, hint: Any, place: str) -> Any:
    """`text` as a value of the type `hint`; raises `ConfigError` where it is none.

    >>> typed("0.9,0.95", tuple[float, float], "betas")
    (0.9, 0.95)
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if NoneType in args and text.lower() == "none":
            return None
        for choice in args:
            if choice is not NoneType:
                try:
                    return typed(text, choice, place)
                except ConfigError:
                    continue
        raise ConfigError(f"{place} must be one of {', '.join(_name(choice) for choice in args)}; got {text!r}")
    if origin is Literal:
        if text not in [str(choice) for choice in args]:
            raise ConfigError(f"{place} has no choice {text!r}; {nearest(text, [str(choice) for choice in args])}")
        return next(choice for choice in args if str(choice) == text)
    if origin is tuple:
        items = [item.strip() for item in text.strip("()[]").split(",") if item.strip()]
        kinds = [args[0]] * len(items) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(items) != len(kinds):
            raise ConfigError(f"{place} takes {len(kinds)} values with commas between, got {text!r}")
        return tuple(typed(item, kind, place) for item, kind in zip(items, kinds, strict=True))
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{place} must be true or false, got {text!r}")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text.replace("_", ""))
        except ValueError:
            raise ConfigError(f"{place} must be {'a whole number' if hint is int else 'a number'}, got {text!r}") from None
    if hint is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _name(hint: Any) -> str:
    return "none" if hint is NoneType else getattr(hint, "__name__", str(hint))
