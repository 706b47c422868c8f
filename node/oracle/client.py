"""The oracle over HTTP: announcements ahead of time, attestations when they are due.

What an oracle once announced is kept for ever and never replaced: a second announcement of an event, different from
the first, is refused. What it attested is verified before anybody sees it; the first verified one is kept for ever
too, and stands: every part of the node acts on it, in this life and the next ones. A second one that differs is a
contradiction: its proof is on disk before it is told, and nothing new is trusted to this oracle ever again.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import NoReturn, Protocol, TypeVar

import httpx2
import structlog
import trio
from attrs import frozen

from node.clock import Clock
from node.clock_check import date_of
from node.errors import Conflict, Disconnected, NotFound
from node.health import UNREPORTED, Report
from node.oracle.records import Kind
from node.supervision import Service
from protocols.contract.contradictions import Attested, Contradiction, contradiction, read_proof, write_proof
from protocols.contract.oracle import (
    Announcement,
    Attestation,
    Scheme,
    parse_announcement,
    parse_attestation,
    scheme_named,
)
from protocols.contract.terms import SYMBOL
from protocols.errors import LocalError, WorldError

MAX_BODY = 64 * 1024
TIMEOUT = 10.0
HOUR = 3600
AHEAD = 24
"""Hours ahead whose announcement `run_oracle` looks for: the next contract will settle there."""
ASK_AGAIN = 5.0
"""Seconds after which an oracle that did not answer is asked again."""
PATIENCE = 300.0
"""Seconds in which it has looked ahead once more."""
UNREACHED = (
    "check the network, and the oracle's address and keys in the configuration; the node asks again by itself, running"
    " contracts can be closed by both sides or by force, and settle once the oracle speaks, or by their refund"
)
REMEDY = (
    "no contract is set up or rolled over with this oracle any more; close the positions that name it, show the proof "
    "to the peers, and name another oracle in the configuration"
)

Subject = TypeVar("Subject")
Answer = TypeVar("Answer")

log = structlog.get_logger("oracle")


class OracleRecords(Protocol):
    """Where the oracle's answers are kept for ever, byte for byte, by event id; the first of a kind stands."""

    async def get(self, kind: Kind, event: str) -> bytes | None: ...

    async def put(self, kind: Kind, event: str, raw: bytes) -> None: ...

    async def events(self, kind: Kind) -> list[str]: ...


OVERDUE = 600
"""Seconds of the calendar after an event's time, from when on it is told that somebody waits for its attestation."""


@frozen
class OracleConfig:
    """Which oracle: `url` without the event's path, both keys x-only, `scheme` one of `oracle.SCHEMES`."""

    url: str
    announcement_key: bytes
    attestation_key: bytes
    scheme: str
    symbols: tuple[str, ...] = (SYMBOL,)
    """Those whose events are looked for ahead of time."""


class OracleClient:
    """One oracle. Every call raises `WorldError`: the oracle cannot be reached, or its answer does not hold."""

    def __init__(
        self,
        config: OracleConfig,
        http: httpx2.AsyncClient,
        *,
        clock: Clock,
        store: OracleRecords,
        report: Report = UNREPORTED,
        heard: Callable[[float], object] = lambda _: None,
    ) -> None:
        """`heard` is told what time it is at the oracle, seconds since 1970, as its answers say."""
        self._heard = heard
        self._config = config
        self._scheme: Scheme = scheme_named(config.scheme)
        self._http = http
        self._clock = clock
        self._store = store
        self._report = report
        self._reported: str | None = None
        self._silent = ""
        """Why nothing new is begun with this oracle: it did not answer when it was asked last."""
        self._failed = trio.Event()
        self._announcements: dict[str, Announcement] = {}
        self._attestations: dict[str, Attestation] = {}
        self._contradictions: dict[str, Contradiction] = {}
        self._overdue: dict[str, None] = {}
        """Events that should be attested by now, the first one first."""
        self._distrusted = trio.Event()
        self._turns: dict[str, trio.Lock] = {}

    async def announcement(self, event: str) -> Announcement:
        """The announcement of the event with this id, verified, and on disk before it is returned."""
        async with self._turn(event):
            known = self._announcements.get(event)
            if known is not None:
                return known
            kept = await self._store.get(Kind.ANNOUNCEMENT, event)
            if kept is not None:
                announcement = self._parse(event, kept)
            else:
                with self._judged():
                    raw = await self._fetch(event)
                    announcement = self._parse(event, raw)
                await self._store.put(Kind.ANNOUNCEMENT, event, raw)
            self._announcements[event] = announcement
            return announcement

    async def attestation(self, announcement: Announcement) -> Attestation | None:
        """What the oracle attested first, every scalar verified, on disk before it is returned; None if nothing yet."""
        async with self._turn(announcement.id):
            known = self._attestations.get(announcement.id)
            if known is not None:
                return known
            kept = await self._store.get(Kind.ATTESTATION, announcement.id)
            attestation = await self._ask(announcement) if kept is None else parse_attestation(kept, announcement)
            if attestation is not None:
                if kept is None:
                    await self._store.put(Kind.ATTESTATION, announcement.id, attestation.raw)
                self._attestations[announcement.id] = attestation
            return attestation

    async def ask_again(self, announcement: Announcement) -> None:
        """Compare what the oracle says now of an attested event with what it said first."""
        first = await self.attestation(announcement)
        again = None if first is None else await self._ask(announcement)
        if first is not None and again is not None:
            await self._weigh(announcement, first, again)

    async def compare(self, announcement: Announcement, attested: Attested) -> None:
        """Compare what the oracle attested, verified, whoever told it, with what it says first: waits for that."""
        await self._weigh(announcement, await self.wait_attestation(announcement), attested)

    async def import_proof(self, raw: bytes) -> Contradiction:
        """A proof that somebody else exported. Raises `LocalError` (bad_proof) unless it holds against this oracle."""
        try:
            found = read_proof(raw)
        except WorldError as error:
            raise LocalError(error.code, error.sentence) from None
        if not self._concerns(found):
            raise LocalError("bad_proof", "the proof is against another oracle than this node's configuration names")
        await self._alarm(found)
        return found

    async def load(self) -> None:
        """Recall the contradictions of earlier lives."""
        for event in await self._store.events(Kind.CONTRADICTION):
            raw = await self._store.get(Kind.CONTRADICTION, event)
            assert raw is not None, "what is kept stays"
            try:
                self._contradictions[event] = read_proof(raw)
            except WorldError:  # a damaged record must not keep contracts from being settled
                log.exception("a proof against the oracle cannot be read", oracle_event=event)
        self._tell(None)

    @property
    def contradictions(self) -> tuple[Contradiction, ...]:
        """Events that were attested twice, and differently; never forgotten. Of oracles configured earlier, too."""
        return tuple(self._contradictions.values())

    def check_trusted(self) -> None:
        """Raises Conflict (oracle_contradicted) once this oracle has contradicted itself."""
        if (found := self._found()) is not None:
            raise Conflict("oracle_contradicted", found.sentence)

    def check_answering(self) -> None:
        """Raises WorldError (oracle_silent) while this oracle does not answer: nothing new is begun with it then."""
        if self._silent:
            raise WorldError(
                "oracle_silent", f"trading from this oracle is paused until it answers again: {self._silent}"
            )

    async def wait_distrusted(self) -> None:
        """Wait until this oracle has contradicted itself, which it may have done long ago."""
        await self._distrusted.wait()

    def contradicted(self, attestation_key: bytes) -> bool:
        """Whether the oracle of this key, x-only, has contradicted itself."""
        return any(found.announcement.key == attestation_key for found in self.contradictions)

    def proof(self, event: str) -> bytes:
        """For export. Raises NotFound."""
        if (found := self._contradictions.get(event)) is None:
            raise NotFound("no_such_proof", f"there is no proof of two attestations of event {event[:80]}")
        return write_proof(found)

    async def wait_attestation(self, announcement: Announcement) -> Attestation:
        """The attestation, as soon as the oracle has it. Failures are reported and asking goes on: after ten seconds,
        after a sixtieth of how late it is, after five minutes at the longest."""
        async with self._turn("attestation " + announcement.id):  # the others wait for what the first one gets
            while (ahead := announcement.time - self._clock.calendar()) > 0:
                # in steps, the last ones short: the wall clock may be set, or the machine sleep
                left = self._clock.wall_seconds(ahead)
                await trio.sleep(min(max(left, 0.01), max(30.0, left // 20), 300.0))
            try:
                while True:
                    try:
                        attestation = await self.attestation(announcement)
                    except WorldError as error:
                        self._tell(error.sentence)
                        attestation = None
                    if attestation is not None:
                        return attestation
                    late = self._clock.calendar() - announcement.time
                    if late > OVERDUE:
                        self._overdue.setdefault(announcement.id, None)
                        self._tell(None)
                    shortest = max(0.2, min(10.0, self._clock.hour / 20))
                    await trio.sleep(min(max(shortest, self._clock.wall_seconds(late) / 60), 30 * shortest))
            finally:  # attested, or nobody waits for it any more: a position may end by other means
                if announcement.id in self._overdue:
                    del self._overdue[announcement.id]
                    self._tell(None)

    async def look_ahead(self) -> NoReturn:
        """Ask for what the next contracts settle with, so that a failing oracle shows before an order needs it."""
        while True:
            time = -(-self._clock.calendar() // HOUR) * HOUR + AHEAD * HOUR
            self._failed = trio.Event()
            silent, trouble = "", None
            for symbol in self._config.symbols:
                event = self._scheme.event_id(symbol, time)
                try:
                    if (known := self._announcements.get(event)) is None:
                        await self.announcement(event)
                    else:
                        await self._ask(known)  # only to see that it answers
                except WorldError as error:
                    trouble = error.sentence
                    if error.code != "unknown_event" and not isinstance(error, Disconnected):
                        silent = error.sentence
                self._report.beat()
            self._silent = silent or self._silent
            self._tell(trouble or self._silent or None)
            pause = max(0.2, min(60.0, self._clock.hour / 2))
            if self._silent:
                await trio.sleep(min(pause, ASK_AGAIN))
            else:
                with trio.move_on_after(pause):
                    await self._failed.wait()  # somebody else was not answered

    async def _ask(self, announcement: Announcement) -> Attestation | None:
        """What the oracle's answer attests now, verified; None if nothing."""
        with self._judged():
            raw = await self._fetch(announcement.id)
            differs = self._differs(raw, announcement)
            try:
                attestation = parse_attestation(raw, announcement)
            except WorldError as error:
                raise differs or error from None
            if attestation is None and differs is not None:
                raise differs
        if differs is not None:
            # what opens our contracts is acted on, whatever else the oracle says: the peer can open them too
            self._tell(differs.sentence)
        return attestation

    async def _alarm(self, found: Contradiction) -> None:
        event = found.announcement.id
        if event in self._contradictions:
            return
        await self._store.put(Kind.CONTRADICTION, event, write_proof(found))
        self._contradictions[event] = found
        log.error("the oracle contradicted itself", oracle_event=event, sentence=found.sentence, remedy=REMEDY)
        self._tell(None)

    async def _weigh(self, announcement: Announcement, first: Attestation, second: Attested) -> None:
        found = contradiction(announcement, self._config.announcement_key, first, second)
        if found is not None:
            await self._alarm(found)

    def _found(self) -> Contradiction | None:
        """The first contradiction of this oracle."""
        return next(filter(self._concerns, self.contradictions), None)

    def _concerns(self, found: Contradiction) -> bool:
        config, announcement = self._config, found.announcement
        return (announcement.scheme, found.announcement_key, announcement.key) == (
            config.scheme,
            config.announcement_key,
            config.attestation_key,
        )

    def _parse(self, event: str, raw: bytes) -> Announcement:
        config = self._config
        announcement = parse_announcement(
            raw,
            announcement_key=config.announcement_key,
            attestation_key=config.attestation_key,
            scheme=config.scheme,
        )
        if announcement.id != event:
            raise WorldError("bad_announcement", f"asked for {event}, the oracle announces {announcement.id}")
        return announcement

    def _differs(self, raw: bytes, announcement: Announcement) -> WorldError | None:
        try:
            data = self._parse(announcement.id, raw).data
        except WorldError as error:
            return error
        if data == announcement.data:
            return None
        return WorldError(
            "second_announcement", f"the oracle announces {announcement.id} a second time, and differently: refused"
        )

    async def _fetch(self, event: str) -> bytes:
        if self._http.is_closed:  # this life is over, and a task that was to run in it has not heard of that
            raise trio.ClosedResourceError("the oracle's client is closed")
        try:
            with trio.fail_after(TIMEOUT):
                async with self._http.stream("GET", self._config.url + self._scheme.path(event)) as response:
                    if (moment := date_of(response.headers)) is not None:
                        self._heard(moment)
                    if response.status_code == 404:
                        raise WorldError("unknown_event", f"{self._where()} has not announced {event}")
                    if response.status_code != 200:
                        raise WorldError("oracle_failed", f"{self._where()} answered {response.status_code} to {event}")
                    body = b""
                    async with aclosing(response.aiter_raw()) as chunks:
                        async for data in chunks:
                            body += data
                            if len(body) > MAX_BODY:
                                raise WorldError("oracle_failed", f"{self._where()} sent more than {MAX_BODY} bytes")
                    return body
        except trio.TooSlowError:
            reason = f"no answer within {TIMEOUT:g} seconds"
        except httpx2.HTTPError as error:
            reason = str(error) or repr(error)
        raise WorldError("oracle_unreachable", f"{self._where()} cannot be reached: {reason}")

    def _where(self) -> str:
        return f"the oracle at {self._config.url}"

    def _turn(self, name: str) -> trio.Lock:
        return self._turns.setdefault(name, trio.Lock())

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Report what came of asking; an event that does not exist says nothing about the oracle."""
        try:
            yield
        except WorldError as error:
            if error.code in ("oracle_unreachable", "oracle_failed"):
                self._silent = error.sentence
                self._failed.set()
            if error.code != "unknown_event":
                self._tell(error.sentence)
            else:
                self._silent = ""
            raise
        self._silent = ""
        self._tell(None)

    def _tell(self, reason: str | None) -> None:
        """What is wrong with the oracle, or None when it answers as it should; told only when that changes.

        A contradiction outweighs all else, and nothing mends it.
        """
        if (found := self._found()) is not None:
            self._distrusted.set()
            reason = f"{found.sentence}: {REMEDY}"
        elif reason is None and self._overdue:
            reason = f"{self._where()} has not attested {', '.join(self._overdue)}: what rests on that waits for it"
        if reason == self._reported:
            return
        self._reported = reason
        if reason is None:
            self._report.recovered()
        else:
            self._report.degraded(reason, UNREACHED if found is None else REMEDY)


async def ask_of_each(
    oracle: Service[OracleClient],
    ask: Callable[[OracleClient, Subject], Awaitable[Answer]],
    subjects: Sequence[Subject],
) -> tuple[Answer, ...]:
    """The client's answers about all of them, asked at once. Raises the first `WorldError` when all have ended."""
    answers: dict[int, Answer] = {}
    failures: list[WorldError] = []

    async def one(index: int, subject: Subject) -> None:
        try:
            answers[index] = await oracle.call(ask, subject)
        except WorldError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for index, subject in enumerate(subjects):
            nursery.start_soon(one, index, subject)
    if failures:
        raise failures[0]
    return tuple(answers[index] for index in range(len(subjects)))


async def run_oracle(
    config: OracleConfig,
    *,
    clock: Clock,
    store: OracleRecords,
    report: Report = UNREPORTED,
    heard: Callable[[float], object] = lambda _: None,
    transport: httpx2.AsyncBaseTransport | None = None,
    task_status: trio.TaskStatus[OracleClient] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Start with the client of an oracle and look ahead for ever. An oracle that fails is reported and asked again;
    it never ends this. `transport` takes the place of TCP."""
    # no compression: 64 kB are to be 64 kB; and a proxy is named in the configuration or there is none
    headers = {"accept-encoding": "identity", "user-agent": "cfdnode"}
    async with httpx2.AsyncClient(headers=headers, timeout=TIMEOUT, trust_env=False, transport=transport) as http:
        oracle = OracleClient(config, http, clock=clock, store=store, report=report, heard=heard)
        await oracle.load()
        task_status.started(oracle)
        await oracle.look_ahead()
