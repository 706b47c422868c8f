"""Price paths: a market's price as a function of the calendar, decimal strings in USD."""

import csv
import random
from bisect import bisect_right
from pathlib import Path
from typing import Protocol

from node.clock import Clock
from protocols.contract.numbers import BadNumber, parse_price
from protocols.errors import LocalError

STEP = 300
"""Seconds of the calendar between two prices of a random walk."""
START = {"BTCUSD": 5_000_000, "ETHUSD": 300_000}
"""Cents that the random walk of a symbol starts at."""
LOWEST, HIGHEST = 100_000, 100_000_000
"""Cents that a random walk stays within."""
SPREAD = 900
"""A step adds up four draws of at most this many millionths of the price: 0.6 % an hour, as bitcoin moves."""


class PricePath(Protocol):
    """What the market does."""

    def price(self, seconds: int) -> str:
        """The price that many seconds of the calendar after its start (before it: as at its start)."""
        ...


class RecordedPath:
    """A path from a file: rows ``seconds,price``, each price holding until the next row."""

    def __init__(self, rows: list[tuple[int, str]]) -> None:
        self._seconds = [seconds for seconds, _ in rows]
        self._prices = [price for _, price in rows]

    @classmethod
    def read(cls, path: Path) -> "RecordedPath":
        """Read a CSV file, seconds whole and increasing; raises `LocalError` (``bad_prices``) naming file and
        line.

        A first line ``seconds,price``, empty lines and lines that begin with ``#`` are skipped.
        """
        rows: list[tuple[int, str]] = []
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LocalError("bad_prices", f"prices: cannot read {path}: {error}") from error
        for number, row in enumerate(csv.reader(text.splitlines()), 1):
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells[0].startswith("#") or cells == ["seconds", "price"]:
                continue
            if len(cells) != 2:
                raise _bad(path, number, f"{','.join(row)!r} is not seconds,price")
            seconds, price = cells
            if not (seconds.isascii() and seconds.isdigit() and len(seconds) < 12):
                raise _bad(path, number, f"seconds {seconds!r} is not a whole number")
            if rows and int(seconds) <= rows[-1][0]:
                raise _bad(path, number, f"seconds {seconds} is not later than {rows[-1][0]} in the row before")
            try:
                parse_price(price)
            except BadNumber as error:
                raise _bad(path, number, str(error)) from None
            rows.append((int(seconds), price))
        if not rows:
            raise LocalError("bad_prices", f"prices: {path} has no rows seconds,price")
        return cls(rows)

    def price(self, seconds: int) -> str:
        return self._prices[max(0, bisect_right(self._seconds, seconds) - 1)]


class RandomWalk:
    """The same walk for the same seed, in whole cents; computed from its start, and kept."""

    def __init__(self, seed: int, *, start: int = START["BTCUSD"]) -> None:
        self._random = random.Random(seed)
        self._cents = [start]

    def price(self, seconds: int) -> str:
        steps = max(0, seconds) // STEP
        while len(self._cents) <= steps:
            last = self._cents[-1]
            draw = sum(self._random.randint(-SPREAD, SPREAD) for _ in range(4))
            self._cents.append(min(HIGHEST, max(LOWEST, last + last * draw // 10**6)))
        return decimal(self._cents[steps])


class Market:
    """A path along a calendar, unless someone said what the price is."""

    def __init__(self, path: PricePath, clock: Clock, *, since: int) -> None:
        self._path = path
        self._clock = clock
        self._since = since
        self.override: str | None = None
        """The price from now on; None gives the path back."""

    def at(self, calendar: int) -> str:
        """The price at a time of the calendar."""
        return self._path.price(calendar - self._since) if self.override is None else self.override

    def now(self) -> str:
        return self.at(self._clock.calendar())


def decimal(cents: int) -> str:
    """Cents as the canonical decimal string of a price."""
    whole, rest = divmod(cents, 100)
    return f"{whole}.{rest:02}".rstrip("0").rstrip(".") if rest else str(whole)


def _bad(path: Path, line: int, what: str) -> LocalError:
    return LocalError("bad_prices", f"prices: {path}, line {line}: {what}")
