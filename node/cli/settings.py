"""Configuration files: one written with every setting, its default and what it is; the effective one shown.

Both are made of `node.config` itself: a setting's docstring there is its comment here.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from attrs import frozen

from node.cli import output
from node.cli.flags import Data, Files, Json, Network
from protocols.errors import LocalError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from node.config import NodeConfig, WorldConfig

WIDTH = 116
UNSET = "(not set)"


class Kind(StrEnum):
    """Whose configuration."""

    MAKER = "maker"
    TAKER = "taker"
    REGTEST = "regtest"


KindArgument = Annotated[Kind, typer.Argument(help="Whose configuration.", show_default=False)]

HEAD = """\
Configuration of `cfdnode {kind}`: --config names this file. Every setting stands here with its default behind "# ".
To change one, remove the "# " of its line and write another value. Flags win over the environment, that over this file.
"""


@frozen
class Setting:
    """One line of a configuration file: ``fee_rate.default``."""

    name: str
    comment: str
    default: object
    needed: bool
    optional: bool
    """Of a table that is left out as a whole unless something in it is set."""


@frozen
class Heading:
    """What the settings behind it have in common."""

    name: str
    comment: str


def init(
    kind: KindArgument,
    file: Annotated[Path, typer.Argument(help="File to write; there must be none yet.")],
    *,
    network: Network = None,
    as_json: Json = False,
) -> None:
    """Write a commented file of all settings with their defaults."""
    lines = commented(kind, network or "mainnet")
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(lines)
    except FileExistsError:
        raise LocalError("file_exists", f"{file}: there is such a file already; nothing was written") from None
    except OSError as error:
        raise LocalError("bad_file", f"{file}: {error.strerror}") from None
    needed = [
        line.name
        for line in settings_of(kind, network or "mainnet")
        if isinstance(line, Setting) and line.needed and line.name != "network"
    ]
    if as_json:
        output.as_json({"file": str(file), "needed": needed})
    else:
        typer.echo(f"{file} is written; it needs values for {', '.join(needed)}" if needed else f"{file} is written")


def show(
    kind: KindArgument, *, config: Files = None, data: Data = None, network: Network = None, as_json: Json = False
) -> None:
    """Show the effective configuration: files, environment and flags together. Secrets are left out."""
    from node.config import load

    effective = load(_model(kind), paths=config or (), flags={"data": data, "network": network})
    values = dict(_leaves(effective))
    if as_json:
        output.as_json({name: _plain(value) for name, value in values.items()})
        return
    for name, value in values.items():
        typer.echo(f"# {name} = {UNSET}" if value is None else f"{name} = {toml(_plain(value))}")


def commented(kind: Kind, network: str) -> str:
    """The text of such a file."""
    parts = ["".join(f"# {line}\n" for line in HEAD.format(kind=kind.value).splitlines())]
    for line in settings_of(kind, network):
        if isinstance(line, Heading):
            parts.append(f"# --- {line.name} ---\n{_wrapped(line.comment)}")
        elif line.name == "network":
            parts.append(f"{_wrapped(line.comment)}network = {toml(network)}\n")
        else:
            comment = f"{line.comment} Needed: there is no default.".strip() if line.needed else line.comment
            value = "" if line.default is None else f" {toml(_plain(line.default))}"
            parts.append(f"{_wrapped(comment)}# {line.name} ={value}\n")
    return "\n".join(parts)


def settings_of(kind: Kind, network: str) -> Iterator[Setting | Heading]:
    """Every setting there is, in the order of `node.config`, those of tables last."""
    from node.config import NodeConfig
    from node.networks import NAMES, NETWORKS

    if network not in NETWORKS:
        raise LocalError("bad_network", f"--network: {network!r} is no network that this version knows: {NAMES}")
    model = _model(kind)
    derived = model.defaults(network) if issubclass(model, NodeConfig) else {}
    yield from _settings(model, derived, "", optional=False)


def _model(kind: Kind) -> type[NodeConfig | WorldConfig]:
    from node.config import MakerConfig, TakerConfig, WorldConfig

    models: dict[Kind, type[NodeConfig | WorldConfig]] = {
        Kind.MAKER: MakerConfig,
        Kind.TAKER: TakerConfig,
        Kind.REGTEST: WorldConfig,
    }
    return models[kind]


def _settings(
    model: type[BaseModel], derived: Mapping[str, Any], prefix: str, *, optional: bool
) -> Iterator[Setting | Heading]:
    comments = _docstrings(model)
    tables = []
    for name, field in model.model_fields.items():
        comment = " ".join(filter(None, (comments.get(name) or field.description, _choices(field.annotation))))
        default = derived[name] if name in derived else None if field.is_required() else field.get_default()
        inner = _table(field.annotation)
        if inner is not None:
            tables.append((name, inner, comment, default, optional or not (field.is_required() or default is not None)))
        else:
            needed = field.is_required() and name not in derived and not optional
            yield Setting(f"{prefix}{name}", comment, default, needed, optional)
    for name, inner, comment, default, left_out in tables:
        whole = "Left out as a whole unless something is set." if left_out and not optional else ""
        about = (comment or " ".join(inspect.cleandoc(inner.__doc__ or "").split()), whole)
        yield Heading(f"{prefix}{name}", " ".join(filter(None, about)))
        known = {each: getattr(default, each) for each in inner.model_fields} if default is not None else {}
        yield from _settings(inner, known, f"{prefix}{name}.", optional=left_out)


def _table(annotation: object) -> type[BaseModel] | None:
    """The model of a table of settings, also of one that may be left out."""
    from pydantic import BaseModel

    for option in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _choices(annotation: object) -> str:
    """The words that are allowed, where there are only so many."""
    options = get_args(annotation) if get_origin(annotation) is Literal else ()
    return f"One of {', '.join(map(str, options))}." if options else ""


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """What the source says below each setting."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if owner.__module__.startswith("node."):
            found |= _module_docstrings(owner.__module__).get(owner.__name__, {})
    return found


@cache
def _module_docstrings(module: str) -> dict[str, dict[str, str]]:
    """By class and name."""
    found: dict[str, dict[str, str]] = {}
    for statement in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(statement, ast.ClassDef):
            texts = found[statement.name] = {}
            for each, below in pairwise(statement.body):
                match each, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        texts[name] = " ".join(text.split()).replace("``", "`")
    return found


def _leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Each setting that is no table, or the table that is left out."""
    from pydantic import BaseModel

    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: object) -> Any:
    """Texts, numbers and lists of them; nothing secret."""
    match value:
        case None | bool() | int() | float():
            return value
        case dict():
            return {str(key): _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case _:
            from node.values import without_secrets

            return without_secrets(str(value))  # a SecretStr shows nothing of itself


def toml(value: object) -> str:
    """A value as TOML writes it, tables inline."""
    match value:
        case dict():
            return "{" + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + "}"
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def _wrapped(text: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, WIDTH))
