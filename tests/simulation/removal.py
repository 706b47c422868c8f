"""Take one thing out of the code for a while, to see that its loss is seen.

What is taken out is named by its own text, so that a proof whose object was changed fails instead of proving nothing.
A function's code is replaced in place: whoever imported it, by whatever name, runs without what was taken out.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from types import CodeType, FunctionType
from typing import Any

Removal = Callable[[], AbstractContextManager[None]]


class NothingToRemove(Exception):
    """The code does not say any more what a removal is about."""


def cut(of: Any, *statements: str) -> Removal:
    """Without those statements of a function that begin with these words, with all that is in them."""
    return _changed(of, lambda source: _without(source, statements))


def swap(of: Any, what: str, instead: str) -> Removal:
    """With other words in the place of those, which the function says once."""

    def change(source: str) -> str:
        if source.count(what) != 1:
            raise NothingToRemove(f"{what!r} stands {source.count(what)} times, not once, in\n{source}")
        return source.replace(what, instead)

    return _changed(of, change)


def late(of: Any, what: str, until: str) -> Removal:
    """With the statement that begins with `what` after the one that begins with `until`, in the same block."""

    def change(source: str) -> str:
        lines = source.splitlines()
        first, last = _lines(source, what)
        _, then = _lines(source, until)
        moved = lines[first:last]
        return "\n".join([*lines[:first], *lines[last:then], *moved, *lines[then:]])

    return _changed(of, change)


def put(where: Any, name: str, value: Any) -> Removal:
    """With another value of a module's or a class's name."""

    @contextmanager
    def removed() -> Iterator[None]:
        before = getattr(where, name)
        setattr(where, name, value)
        try:
            yield
        finally:
            setattr(where, name, before)

    return removed


def together(*removals: Removal) -> Removal:
    """All of them: rules that say the same twice, for two lines of defence."""

    @contextmanager
    def removed() -> Iterator[None]:
        if not removals:
            yield
            return
        with removals[0](), together(*removals[1:])():
            yield

    return removed


_EDITED: dict[FunctionType, str] = {}
"""The source of what is changed at present: a second change builds on the first."""


def _changed(of: Any, change: Callable[[str], str]) -> Removal:
    @contextmanager
    def removed() -> Iterator[None]:
        function = _function(of)
        code, source = function.__code__, _EDITED.get(function)
        edited = change(source or textwrap.dedent(inspect.getsource(function)))
        function.__code__ = _compiled(function, edited)
        _EDITED[function] = edited
        try:
            yield
        finally:
            function.__code__ = code
            _EDITED.pop(function)
            if source is not None:
                _EDITED[function] = source

    return removed


def _function(of: Any) -> FunctionType:
    if isinstance(of, property):
        of = of.fget
    if isinstance(of, cached_property):
        of = of.func
    function = inspect.unwrap(getattr(of, "__func__", of))
    assert isinstance(function, FunctionType)
    return function


def _without(source: str, statements: tuple[str, ...]) -> str:
    for words in statements:
        first, last = _lines(source, words)
        lines = source.splitlines()
        indent = len(lines[first]) - len(lines[first].lstrip())
        lines[first:last] = [" " * indent + "pass"]
        source = "\n".join(lines)
    return source


def _lines(source: str, words: str) -> tuple[int, int]:
    """From where to where the one statement stands that begins with these words."""
    found = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and (ast.get_source_segment(source, node) or "").startswith(words)
    ]
    if len(found) != 1 or found[0].end_lineno is None:
        raise NothingToRemove(f"{len(found)} statements, not one, begin with {words!r} in\n{source}")
    return found[0].lineno - 1, found[0].end_lineno


def _compiled(function: FunctionType, source: str) -> CodeType:
    """The code of a function whose source is this. What it has from around it are the parameters of one around it."""
    free = function.__code__.co_freevars
    if free:
        source = f"def around({', '.join(free)}):\n{textwrap.indent(source, '    ')}"
    futures = sys.modules[function.__module__].__dict__.get("annotations")
    flags = futures.compiler_flag if isinstance(futures, __future__._Feature) else 0
    code = compile(source, function.__code__.co_filename, "exec", flags=flags, dont_inherit=True)
    for _ in range(2 if free else 1):
        name = "around" if free and code.co_name == "<module>" else function.__name__
        code = next(each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == name)
    if code.co_freevars != free:
        raise NothingToRemove(f"{function.__qualname__} would need {code.co_freevars} from around it, not {free}")
    assert isinstance(code, CodeType)
    return code
