"""A config as typed JSON: a dictionary whose `type` is the stem of its class, nested as the config is nested.

    {"type": "stack", "vocab_size": 256, "d_model": 64, "layers": [{"type": "sliding_window", "d_model": 64, ...}, ...]}

Which class a stem names is said by `memseq.systems`. Dataclasses that are no systems, such as the cells of an LSTM, are written
under the name of their class where a field's annotation allows them.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from memseq.errors import ConfigError, nearest
from memseq.systems import config_class, stem_of

__all__ = ["from_dict", "to_dict"]


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON values, with the stems of its classes under `type`; every field is written, defaults too.

    >>> from memseq.memories.sliding_window import SlidingWindowConfig
    >>> to_dict(SlidingWindowConfig(d_model=8))["type"]
    'sliding_window'
    """
    stem = stem_of(type(config))
    if stem is None:
        raise ConfigError(
            f"{type(config).__qualname__} has no stem, so it cannot be written to a file; call"
            f" memseq.systems.register('my_stem', {type(config).__qualname__}) first"
        )
    return {"type": stem, **_fields_to_json(config, {})}


def from_dict(values: Any) -> Any:
    """The config that `to_dict` wrote. Raises `ConfigError` naming the unknown type or key and the nearest known one."""
    if not isinstance(values, Mapping) or not isinstance(values.get("type"), str):
        raise ConfigError(f"a config is a dictionary whose 'type' names a system, got {_shown(values)}")
    config = config_class(values["type"])
    return _build(config, {key: value for key, value in values.items() if key != "type"}, {}, values["type"])


Parts = Mapping[str, Any]  # dataclasses that are no systems, by the name of their class: what a field's annotation allows


def _parts(hint: Any, around: Parts) -> Parts:
    """The parts an annotation names; where it names none (`Any`), those of the field around it."""
    if is_dataclass(hint):
        return {hint.__name__: hint}
    return {name: part for inner in get_args(hint) for name, part in _parts(inner, {}).items()} or around


def _fields_to_json(config: Any, around: Parts) -> dict[str, Any]:
    hints = get_type_hints(type(config))
    return {
        f.name: _to_json(getattr(config, f.name), hints[f.name], around, f"{type(config).__qualname__}.{f.name}") for f in fields(config)
    }


def _to_json(value: Any, hint: Any, around: Parts, place: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_to_json(item, hint, around, f"{place}[{i}]") for i, item in enumerate(value)]
    if not is_dataclass(value) or isinstance(value, type):
        raise ConfigError(f"{place} holds {_shown(value)}, which cannot be written to a file; use numbers, text, tuples and configs")
    parts, name = _parts(hint, around), type(value).__name__
    if type(value) is hint:  # the field says which class it is
        return _fields_to_json(value, parts)
    if stem_of(type(value)) is None and parts.get(name) is type(value):
        return {"type": name, **_fields_to_json(value, parts)}
    return to_dict(value)


def _from_json(value: Any, hint: Any, around: Parts, place: str) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(item, hint, around, f"{place}[{i}]") for i, item in enumerate(value))
    if not isinstance(value, Mapping):
        return value
    parts = _parts(hint, around)
    if "type" not in value and is_dataclass(hint):
        return _build(hint, value, parts, place)
    part = parts.get(value.get("type", ""))
    return from_dict(value) if part is None else _build(part, {k: v for k, v in value.items() if k != "type"}, parts, place)


def _build(config: Any, values: Mapping[str, Any], around: Parts, place: str) -> Any:
    known = {f.name: f for f in fields(config)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{place} has no key {key!r}; {nearest(key, list(known))}")
    missing = [name for name, f in known.items() if name not in values and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise ConfigError(f"{place} lacks the key {missing[0]!r}; it needs {', '.join(missing)}")
    hints = get_type_hints(config)
    for key, value in values.items():
        _check_plain(value, hints[key], f"{place}.{key}")
    return config(**{key: _from_json(value, hints[key], around, f"{place}.{key}") for key, value in values.items()})


def _check_plain(value: Any, hint: Any, place: str) -> None:
    """Raise `ConfigError` where a field of plain values holds something else; a whole number serves as any number."""
    if get_origin(hint) is tuple and isinstance(value, list):
        parts = get_args(hint)
        for i, item in enumerate(value):
            _check_plain(item, parts[0] if parts[1:] in ((), (...,)) else parts[min(i, len(parts) - 1)], f"{place}[{i}]")
        return
    kinds = get_args(hint) or (hint,)
    plain = all(kind in (bool, int, float, str, type(None)) for kind in kinds)
    if plain and type(value) not in kinds and not (type(value) is int and float in kinds):
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ConfigError(f"{place} must be {wanted}, got {value!r}")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"
