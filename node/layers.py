"""The layers that a configuration is merged from, and of which of them each value came: files, environment, flags."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from node.errors import ConfigError
from node.values import Sentence

PREFIX = "CFDNODE_"
"""Of the environment's variables: ``CFDNODE_DATA``, ``CFDNODE_ORACLE__URL``; lists are separated by commas."""

Tree = dict[str, Any]


def read(path: Path) -> Tree:
    """A TOML file. Raises `ConfigError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def in_file(path: Path, keys: tuple[str, ...]) -> str:
    """What to call a value of a file."""
    return f"{path}: {'.'.join(keys)}"


def by_name(name: str, _keys: tuple[str, ...]) -> str:
    """What to call one of a flag or a variable."""
    return name


def merge(
    into: Tree,
    layer: Tree,
    origin: dict[tuple[str, ...], str],
    name: Callable[[tuple[str, ...]], str],
    at: tuple[str, ...] = (),
) -> None:
    """Put a layer on top; `origin` learns by keys what to call where each value is from."""
    for key, value in layer.items():
        keys = (*at, key)
        origin[keys] = name(keys)
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value, origin, name, keys)
        elif isinstance(value, dict):
            into[key] = {}
            merge(into[key], value, origin, name, keys)
        else:
            into[key] = value


def nest(keys: tuple[str, ...], value: object) -> Tree:
    """A layer of one value."""
    for key in reversed(keys):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def is_field(kind: type[BaseModel], keys: tuple[str, ...]) -> bool:
    """Whether a configuration of that kind has such a setting."""
    field = kind.model_fields.get(keys[0])
    if field is None:
        return False
    table = field.annotation
    for option in (table, *getattr(table, "__args__", ())):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return len(keys) > 1 and is_field(option, keys[1:])
    return len(keys) == 1


def one_line(error: ValidationError, origin: Mapping[tuple[str, ...], str]) -> str:
    """The first problem: where it stands, the value, what is wrong; and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    keys = tuple(str(key) for key in first["loc"])
    known = next((keys[:n] for n in range(len(keys), 0, -1) if keys[:n] in origin), ())
    where = origin.get(known) or ".".join(keys)
    match first["type"]:
        case "missing":
            where = ".".join(keys)
            what = f"is needed and not set (set {variable(keys)}, or {where} in a --config file)"
            return f"{where} {what}{more}"
        case "extra_forbidden":
            what = "there is no such setting"
        case "value_error":
            text = str(first["ctx"]["error"])
            what = text if isinstance(first["ctx"]["error"], Sentence) else f"{first['input']!r} {text}"
        case _:
            what = f"{first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return " ".join(f"{where}: {what}{more}".removeprefix(": ").split())


def variable(keys: Sequence[str]) -> str:
    return PREFIX + "__".join(keys).upper()
