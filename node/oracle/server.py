"""A regtest world's oracle, which announces and attests each symbol's price every hour, in two schemes.

``GET /dlc/btcusd1633384800`` answers in the DLC specification's records, an announcement and, later, an attestation;
``GET /x/BitMEX/BXBT/2021-10-04T22:00:00.price?n=20`` as Olivia does, ``{"announcement": …, "attestation": … or null}``.
Keys and nonces follow from one secret, so nothing but the attested prices has to be kept: those are, because a second
price for an event would give the key away. For the same reason the schemes share no key and no nonce.
"""

import os
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import trio
from attrs import field, frozen
from btclib_secp256k1 import xonly
from fastapi import FastAPI, Request, Response

from node.clock import Clock
from node.errors import NotFound
from node.web.problems import add_problem_handlers
from protocols.contract.numbers import DIGITS, ORDER, parse_price, tagged_hash
from protocols.contract.oracle import DLC, OLIVIA, Scheme
from protocols.contract.symbols import SYMBOLS
from protocols.errors import WorldError

HOUR = 3600
AHEAD = 48 * HOUR
"""Seconds of the calendar that events are announced before their time."""


@frozen
class OracleKeys:
    """The oracle's secret, and what follows from it."""

    secret: bytes = field(repr=False)

    @classmethod
    def load(cls, path: Path, entropy: Callable[[int], bytes] = os.urandom) -> "OracleKeys":
        """From a file of 32 bytes, which is made if it is missing; raises `WorldError` if it is damaged."""
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(entropy(32))
        except FileExistsError:
            pass
        secret = path.read_bytes()
        if len(secret) != 32:
            raise WorldError("oracle_secret", f"the oracle's secret in {path} has {len(secret)} bytes, not 32")
        return cls(secret)

    def scalar(self, *purpose: bytes) -> bytes:
        """A secret scalar; no two purposes share one."""
        number = int.from_bytes(tagged_hash("cfd/regtest-oracle", self.secret + b"/".join(purpose)), "big")
        return (number % ORDER).to_bytes(32, "big")

    def announcement_secret(self, scheme: Scheme) -> bytes:
        """The DLC specification knows one key for announcements and attestations, Olivia two."""
        if scheme == OLIVIA:
            return self.scalar(b"announcement", scheme.name.encode())
        return self.attestation_secret(scheme)

    def attestation_secret(self, scheme: Scheme) -> bytes:
        return self.scalar(b"attestation", scheme.name.encode())

    def public(self, scheme: Scheme) -> tuple[bytes, bytes]:
        """The announcement key and the attestation key, x-only."""
        announcement, attestation = self.announcement_secret(scheme), self.attestation_secret(scheme)
        return xonly.from_prvkey(announcement)[0], xonly.from_prvkey(attestation)[0]

    def nonces(self, scheme: Scheme, event_id: str) -> list[bytes]:
        symbol, time = scheme.parse_event(event_id)
        of = scheme.name.encode(), symbol.encode(), time.to_bytes(8, "big")
        return [self.scalar(b"nonce", *of, bytes([index])) for index in range(DIGITS)]


class AttestedPrices:
    """Each symbol's price at each event's time, decided once for ever: lines ``symbol time price``, appended to."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one; a last line without an end was not yet told to anybody and is dropped."""
        self._path = path
        whole, _, rest = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
        if rest:
            os.truncate(path, len(whole) + (1 if whole else 0))
        rows = (line.split() for line in whole.splitlines())
        self._prices = {(symbol.decode(), int(time)): int(price) for symbol, time, price in rows}

    def decide(self, symbol: str, time: int, price: int) -> int:
        """The symbol's price at this time: `price`, unless another was decided before."""
        if (symbol, time) not in self._prices:
            with self._path.open("a", encoding="ascii") as file:
                file.write(f"{symbol} {time} {price}\n")
            self._prices[symbol, time] = price
        return self._prices[symbol, time]


class Mode(StrEnum):
    """How the oracle behaves from now on, until it is told otherwise; it announces and decides in any case."""

    NORMAL = "normal"
    LATE = "late"
    """It attests some time after the event."""
    SILENT = "silent"
    """It attests nothing; what it attested before is gone from its answers too."""
    CONTRADICT = "contradict"
    """It attests another price than it decided, with the same nonces: whoever was told the first now has both."""


@frozen
class Behaviour:
    mode: Mode = Mode.NORMAL
    late: int = 0
    """Seconds of the calendar between an event and its attestation."""
    price: int | None = None
    """What is attested of every event instead of what was decided; half of that if it is not given."""

    def attests(self, event: int, price: int, now: int) -> int | None:
        """What it says of a past event whose price was decided; None while it says nothing."""
        match self.mode:
            case Mode.SILENT:
                return None
            case Mode.LATE if now < event + self.late:
                return None
            case Mode.CONTRADICT:
                other = price // 2 if self.price is None else self.price
                return other if other != price else price ^ 1
        return price


class Oracle:
    """What it says about an event, at any time of the calendar."""

    def __init__(
        self, keys: OracleKeys, prices: AttestedPrices, clock: Clock, *, since: int, market: Callable[[str, int], str]
    ) -> None:
        """`market` gives a symbol's price at a time of the calendar; events before `since` were never announced."""
        self.keys = keys
        self._prices = prices
        self._clock = clock
        self._since = since
        self._market = market
        self.behaviour = Behaviour()
        self._announced = lru_cache(256)(self._announce)

    def answer(self, scheme: Scheme, event_id: str) -> bytes:
        """What there is to say about the event of this id; raises `NotFound` for one that is not announced."""
        try:
            symbol, time = scheme.parse_event(event_id)
        except ValueError as error:
            raise NotFound("no_such_event", str(error)) from error
        now = self._clock.calendar()
        first, last = self._since + 1, now + AHEAD
        if time % HOUR or not first <= time <= last:
            earliest, latest = -(-first // HOUR) * HOUR, last // HOUR * HOUR
            allowed = f"{scheme.event_id(symbol, earliest)} to {scheme.event_id(symbol, latest)}, hourly"
            raise NotFound("no_such_event", f"event {event_id} is not announced; those from {allowed}, are")
        price = self.behaviour.attests(time, self._decide(symbol, time), now) if time <= now else None
        if price is None:
            return self._announced(scheme, event_id)
        return scheme.attest(event_id, *self._secrets(scheme, event_id), price)

    async def run(self) -> None:
        """Decide each hour's prices when it comes, whether or not anybody asks."""
        while True:
            now = self._clock.calendar()
            time = now // HOUR * HOUR
            if time > self._since:
                for symbol in SYMBOLS:
                    self._decide(symbol, time)
            await trio.sleep(max(0.001, self._clock.wall_seconds(time + HOUR - now)))

    def _decide(self, symbol: str, time: int) -> int:
        return self._prices.decide(symbol, time, _attested(self._market(symbol, time)))

    def _announce(self, scheme: Scheme, event_id: str) -> bytes:
        return scheme.announce(event_id, *self._secrets(scheme, event_id))

    def _secrets(self, scheme: Scheme, event_id: str) -> tuple[list[bytes], bytes, bytes]:
        keys = self.keys
        return keys.nonces(scheme, event_id), keys.attestation_secret(scheme), keys.announcement_secret(scheme)


def oracle_app(oracle: Oracle) -> FastAPI:
    """The oracle's HTTP face."""
    app = FastAPI(title="regtest oracle", docs_url=None, redoc_url=None, openapi_url=None)
    add_problem_handlers(app)

    def answered(scheme: Scheme, event_id: str) -> Response:
        return Response(oracle.answer(scheme, event_id), media_type=scheme.media_type)

    @app.get("/dlc/{event_id}")
    async def dlc(event_id: str) -> Response:
        return answered(DLC, event_id)

    @app.get("/x/{path:path}")
    async def olivia(path: str, request: Request) -> Response:
        return answered(OLIVIA, f"/x/{path}?{request.url.query}")

    return app


def _attested(price: str) -> int:
    """What is attested of a price: whole dollars, the rest cut off."""
    return int(parse_price(price))
