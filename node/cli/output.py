"""What commands print: one JSON value for programs, aligned text for people; what takes long says so on a terminal."""

from __future__ import annotations

import csv
import json
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import typer

NOT_WELL, BAD_INPUT, UNKNOWN = 1, 2, 3
"""Exit statuses beside 0; `cfdnode --help` tells what they mean."""

QUICK = 1.0
"""Seconds for which nothing need be said."""
NOTHING = "–"


def as_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))


def cell(value: object) -> str:
    """Whole numbers in groups of three digits, a dash for what there is not."""
    match value:
        case None | "":
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}".replace(",", " ")
        case list() | tuple():
            return ", ".join(map(cell, value)) or NOTHING
        case _:
            return _printable(str(value))


def _printable(text: str) -> str:
    """Without what could move a terminal's cursor: some sentences are a peer's."""
    return "".join(each if each.isprintable() else "?" for each in text)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Columns as wide as they need to be, numbers to the right; `empty` is said where there are no rows."""
    found = [list(row) for row in rows]
    if not found:
        typer.echo(empty)
        return
    right = [all(_is_number(row[n]) for row in found) for n in range(len(heads))]
    lines = [list(heads), *([cell(value) for value in row] for row in found)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(heads))]
    for number, line in enumerate(lines):
        parts = [
            f"{text:>{width}}" if to else f"{text:<{width}}"
            for text, width, to in zip(line, widths, right, strict=True)
        ]
        text = "  ".join(parts).rstrip()
        typer.echo(typer.style(text, bold=True) if number == 0 and sys.stdout.isatty() else text)


def facts(pairs: Iterable[tuple[str, object]], *, err: bool = False) -> None:
    """A line for each: its name, its value; on stderr where stdout is a program's."""
    found = list(pairs)
    width = max(len(name) for name, _ in found)
    for name, value in found:
        typer.echo(f"{name:<{width}}  {cell(value)}", err=err)


def as_csv(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """For spreadsheets; a text that begins as one of their formulas does, with one of ``= + - @``, gets a quote."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(heads)
    for row in rows:
        writer.writerow(["" if value is None else _harmless(value) for value in row])


def _harmless(value: object) -> object:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(value: object) -> bool:
    """Also one that is a decimal string, or is not there."""
    return isinstance(value, int | None) or (
        isinstance(value, str) and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value) is not None
    )


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Tell on the terminal, once a second has passed, that `what` goes on, and for how long."""
    if not sys.stderr.isatty():
        yield
        return
    done, began = threading.Event(), time.monotonic()

    def tell() -> None:
        told = False
        while not done.wait(QUICK):
            told = True
            sys.stderr.write(f"\r{what} … {time.monotonic() - began:.0f} s\x1b[K")
            sys.stderr.flush()
        if told:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def agree(question: str, *, yes: bool) -> None:
    """Go on only with the user's word: `yes`, or asked for on a terminal. Raises LocalError where nobody can be asked,
    `typer.Abort` when they say no."""
    if yes:
        return
    if not sys.stdin.isatty():
        from protocols.errors import LocalError

        raise LocalError("not_confirmed", f"{question} Nobody can be asked here; give --yes to agree")
    typer.confirm(question, abort=True, err=True)


def since(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment(at: float | None) -> str | None:
    """Seconds since 1970 as a date, UTC."""
    return None if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
