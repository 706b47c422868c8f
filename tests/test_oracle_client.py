"""The oracle client: what it believes, keeps and reports, and when it asks."""

import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio
import trio.testing

from node.clock import Clock
from node.oracle.client import MAX_BODY, OVERDUE, OracleClient, OracleConfig, run_oracle
from node.oracle.records import Kind
from node.oracle.server import AttestedPrices, Oracle, OracleKeys, oracle_app
from node.web.server import serve
from protocols.contract.oracle import DLC, OLIVIA, Announcement, Attestation, Scheme
from protocols.errors import WorldError
from tests.deals import ANNOUNCEMENT_SECRET, ATTESTATION_SECRET, FIRST_EVENT, digest, x_only

HOUR = 3600
EVENT = OLIVIA.event_id("BTCUSD", FIRST_EVENT)
CONFIG = OracleConfig("http://oracle.test/base", x_only(ANNOUNCEMENT_SECRET), x_only(ATTESTATION_SECRET), OLIVIA.name)
Jumping = trio.testing.MockClock
Answer = httpx2.Response | Exception | None


def said(body: bytes) -> httpx2.Response:
    return httpx2.Response(200, stream=httpx2.ByteStream(body))


class MemoryStore:
    """Keeps what the oracle says as `node.oracle.records` does."""

    def __init__(self) -> None:
        self.all: dict[tuple[Kind, str], bytes] = {}

    @property
    def kept(self) -> dict[str, bytes]:
        """Announcements."""
        return {event: raw for (kind, event), raw in self.all.items() if kind is Kind.ANNOUNCEMENT}

    async def get(self, kind: Kind, event: str) -> bytes | None:
        return self.all.get((kind, event))

    async def put(self, kind: Kind, event: str, raw: bytes) -> None:
        self.all.setdefault((kind, event), raw)

    async def events(self, kind: Kind) -> list[str]:
        return [event for each, event in self.all if each is kind]


class Reports(list[str | None]):
    """What was reported: a reason, or None when all was well again."""

    beat_every = math.inf

    def beat(self) -> None: ...

    def degraded(self, reason: str, remedy: str = "", repairs: Sequence[str] = ()) -> None:
        self.append(reason)

    def recovered(self) -> None:
        self.append(None)

    def fresh(self) -> None: ...


class Oracles:
    """An oracle without a network, so that time may jump: what it says is changed at will."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, str]] = []
        self.nonce_salt = "nonce"
        self.price: int | None = None
        self.attested_at = FIRST_EVENT
        self.says: Callable[[bytes], Answer | Awaitable[Answer]] = said
        self.reports = Reports()
        self.store = MemoryStore()
        self.clock = Clock(wall=lambda: FIRST_EVENT - 100 + trio.current_time())
        self.http = httpx2.AsyncClient(transport=httpx2.MockTransport(self._handle))
        self.client = self.another()

    def another(self) -> OracleClient:
        return OracleClient(CONFIG, self.http, clock=self.clock, store=self.store, report=self.reports)

    def body(self, time: int, price: int | None = None) -> bytes:
        event = OLIVIA.event_id("BTCUSD", time)
        nonces = [digest(self.nonce_salt, time, index) for index in range(20)]
        secrets = ATTESTATION_SECRET, ANNOUNCEMENT_SECRET
        return (
            OLIVIA.announce(event, nonces, *secrets) if price is None else OLIVIA.attest(event, nonces, *secrets, price)
        )

    async def _handle(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.raw_path.decode()
        assert path.startswith("/base/x/BitMEX/BXBT/")
        self.asked.append((self.clock.now() - FIRST_EVENT, path.removeprefix("/base")))
        time = next(
            FIRST_EVENT + HOUR * n
            for n in range(50)
            if path == "/base" + OLIVIA.event_id("BTCUSD", FIRST_EVENT + HOUR * n)
        )
        answer = self.says(self.body(time, self.price if self.clock.now() >= self.attested_at else None))
        if isinstance(answer, Awaitable):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        return answer or httpx2.Response(404)


@pytest.fixture
async def oracle() -> Oracles:
    """Needs the jumping clock in the same test."""
    return Oracles()


async def failure(work: Awaitable[Announcement | Attestation | None]) -> WorldError:
    with pytest.raises(WorldError) as failed:
        await work
    return failed.value


async def test_an_announcement_is_fetched_once_and_kept_as_it_came(autojump_clock: Jumping, oracle: Oracles) -> None:
    announcement = await oracle.client.announcement(EVENT)
    assert (announcement.id, announcement.time) == (EVENT, FIRST_EVENT)
    assert oracle.store.kept == {EVENT: oracle.body(FIRST_EVENT)}
    assert await oracle.client.announcement(EVENT) is announcement
    assert len(oracle.asked) == 1
    again = oracle.another()
    oracle.nonce_salt = "another"
    assert await again.announcement(EVENT) == announcement
    assert len(oracle.asked) == 1
    assert oracle.reports == []


async def test_many_who_want_an_announcement_ask_once(autojump_clock: Jumping, oracle: Oracles) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(oracle.client.announcement, EVENT)
    assert len(oracle.asked) == 1


async def test_what_is_not_on_disk_is_not_used(autojump_clock: Jumping, oracle: Oracles) -> None:
    async def full(kind: Kind, event: str, raw: bytes) -> None:
        raise WorldError("disk", "the disk is full")

    oracle.store.put = full  # type: ignore[method-assign]
    assert (await failure(oracle.client.announcement(EVENT))).code == "disk"
    assert (await failure(oracle.client.announcement(EVENT))).code == "disk"
    assert len(oracle.asked) == 2


async def _slow(_: bytes) -> Answer:
    await trio.sleep(11)
    return None


@pytest.mark.parametrize(
    ("says", "code", "words"),
    [
        (lambda _: httpx2.ConnectError("refused"), "oracle_unreachable", "cannot be reached: refused"),
        (_slow, "oracle_unreachable", "cannot be reached: no answer within 10 seconds"),
        (lambda _: httpx2.Response(500), "oracle_failed", "answered 500 to /x/BitMEX"),
        (lambda _: httpx2.Response(302, headers={"location": "/other"}), "oracle_failed", "answered 302"),
        (lambda _: said(b"x" * (MAX_BODY + 1)), "oracle_failed", "sent more than 65536 bytes"),
        (lambda _: said(b"no json"), "bad_announcement", "refused"),
        (lambda body: said(body.replace(b"descriptor", b"Descriptor")), "bad_announcement", "refused"),
    ],
)
async def test_failures_are_reported_until_it_works_again(
    autojump_clock: Jumping, oracle: Oracles, says: Callable[[bytes], Answer], code: str, words: str
) -> None:
    oracle.says = says
    error = await failure(oracle.client.announcement(EVENT))
    assert error.code == code
    assert words in error.sentence
    assert (await failure(oracle.client.announcement(EVENT))).sentence == error.sentence
    assert oracle.reports == [error.sentence]
    assert oracle.store.kept == {}
    oracle.says = said
    await oracle.client.announcement(EVENT)
    assert oracle.reports == [error.sentence, None]


async def test_an_event_that_does_not_exist_says_nothing_about_the_oracle(
    autojump_clock: Jumping, oracle: Oracles
) -> None:
    oracle.says = lambda _: None
    assert (await failure(oracle.client.announcement(EVENT))).code == "unknown_event"
    assert oracle.reports == []


async def test_the_announcement_of_another_event_is_refused(autojump_clock: Jumping, oracle: Oracles) -> None:
    oracle.says = lambda _: said(oracle.body(FIRST_EVENT + HOUR))
    error = await failure(oracle.client.announcement(EVENT))
    assert error.sentence == f"asked for {EVENT}, the oracle announces {OLIVIA.event_id('BTCUSD', FIRST_EVENT + HOUR)}"


async def test_an_attestation_is_none_until_it_is_there_and_then_stands(
    autojump_clock: Jumping, oracle: Oracles
) -> None:
    announcement = await oracle.client.announcement(EVENT)
    assert await oracle.client.attestation(announcement) is None
    oracle.price = 49_262
    await trio.sleep(100)
    attestation = await oracle.client.attestation(announcement)
    assert attestation is not None
    assert attestation.price == 49_262
    oracle.price = 49_263
    assert await oracle.client.attestation(announcement) is attestation


async def test_a_second_announcement_is_refused(autojump_clock: Jumping, oracle: Oracles) -> None:
    announcement = await oracle.client.announcement(EVENT)
    oracle.nonce_salt = "another"
    error = await failure(oracle.client.attestation(announcement))
    assert error.code == "second_announcement"
    oracle.price = 49_262
    await trio.sleep(100)
    assert (await failure(oracle.client.attestation(announcement))).code == "second_announcement"
    assert oracle.reports == [error.sentence]
    assert oracle.store.kept == {EVENT: announcement.raw}


async def test_scalars_that_verify_are_used_although_the_announcement_beside_them_changed(
    autojump_clock: Jumping, oracle: Oracles
) -> None:
    announcement = await oracle.client.announcement(EVENT)
    oracle.price = 49_262
    await trio.sleep(100)

    def mixed(body: bytes) -> Answer:
        oracle.nonce_salt = "another"
        other = oracle.body(FIRST_EVENT)
        oracle.nonce_salt = "nonce"
        end = b'"attestation"'
        return said(other[: other.rindex(end)] + body[body.rindex(end) :])

    oracle.says = mixed
    attestation = await oracle.client.attestation(announcement)
    assert attestation is not None
    assert attestation.price == 49_262
    assert oracle.reports[-1] is not None
    assert "a second time" in oracle.reports[-1]


async def test_it_waits_for_the_event_and_then_asks_every_ten_seconds(autojump_clock: Jumping, oracle: Oracles) -> None:
    announcement = await oracle.client.announcement(EVENT)
    oracle.asked.clear()
    oracle.price, oracle.attested_at = 49_262, FIRST_EVENT + 35
    attestation = await oracle.client.wait_attestation(announcement)
    assert attestation.price == 49_262
    assert [round(at) for at, _ in oracle.asked] == [0, 10, 20, 30, 40]


async def test_where_hours_are_short_it_asks_more_often(autojump_clock: Jumping, oracle: Oracles) -> None:
    """Two seconds an hour: an event 100 s ahead is 56 ms ahead, and asking is every fifth of a second."""
    announcement = await oracle.client.announcement(EVENT)
    oracle.clock = Clock(hour=2.0, anchor=FIRST_EVENT - 100, wall=oracle.clock.wall)
    client = oracle.another()
    oracle.asked.clear()
    oracle.price, oracle.attested_at = 49_262, FIRST_EVENT - 99
    await client.wait_attestation(announcement)
    assert [round(at + 100, 1) for at, _ in oracle.asked] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9, 1.1], abs=0.051)


async def test_waiting_survives_every_failure_and_says_so(autojump_clock: Jumping, oracle: Oracles) -> None:
    announcement = await oracle.client.announcement(EVENT)
    oracle.price = 49_262
    answers: list[Answer] = [
        httpx2.ConnectError("refused"),
        None,
        said(oracle.body(FIRST_EVENT, 49_262).replace(b'"49262"', b'"49263"')),
    ]
    oracle.says = lambda body: answers.pop(0) if answers else said(body)
    assert (await oracle.client.wait_attestation(announcement)).price == 49_262
    assert [text and text[-40:] for text in oracle.reports] == [
        "oracle.test/base cannot be reached: refused"[-40:],
        f"has not announced {EVENT}"[-40:],
        f"{EVENT} is refused: scalar 19 is not that of price 49263"[-40:],
        None,
    ]


async def test_an_attestation_that_is_overdue_is_told_until_it_is_there(
    autojump_clock: Jumping, oracle: Oracles
) -> None:
    announcement = await oracle.client.announcement(EVENT)
    oracle.price, oracle.attested_at = 49_262, FIRST_EVENT + OVERDUE + 60
    assert (await oracle.client.wait_attestation(announcement)).price == 49_262
    *_, told, ended = oracle.reports
    assert told is not None
    assert f"has not attested {EVENT}" in told
    assert ended is None


async def test_an_attestation_that_nobody_waits_for_any_more_is_not_overdue(
    autojump_clock: Jumping, oracle: Oracles
) -> None:
    """A position may end by other means: what the oracle still owes it then concerns nobody."""
    announcement = await oracle.client.announcement(EVENT)
    with trio.move_on_after(FIRST_EVENT - oracle.clock.now() + OVERDUE + 60):
        await oracle.client.wait_attestation(announcement)
    *_, told, ended = oracle.reports
    assert told is not None
    assert f"has not attested {EVENT}" in told
    assert ended is None


async def test_many_who_wait_ask_once(autojump_clock: Jumping, oracle: Oracles) -> None:
    announcement = await oracle.client.announcement(EVENT)
    oracle.asked.clear()
    oracle.price, oracle.attested_at = 49_262, FIRST_EVENT + 15
    found: list[int] = []

    async def wait() -> None:
        found.append((await oracle.client.wait_attestation(announcement)).price)

    async def impatient() -> None:
        with trio.move_on_after(105):
            await oracle.client.wait_attestation(announcement)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(impatient)
        await trio.sleep(101)
        for _ in range(20):
            nursery.start_soon(wait)
    assert found == [49_262] * 20
    assert [round(at) for at, _ in oracle.asked] == [0, 5, 15]


async def test_a_client_of_a_life_that_is_over_says_so(autojump_clock: Jumping, oracle: Oracles) -> None:
    """As what a service lends does: its callers take it for a service that is not up."""
    announcement = await oracle.client.announcement(EVENT)
    await oracle.http.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await oracle.client.attestation(announcement)
    assert oracle.reports == []


async def test_it_looks_a_day_ahead_and_reports_what_is_missing(autojump_clock: Jumping, oracle: Oracles) -> None:
    oracle.says = lambda _: None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(oracle.client.look_ahead)
        await trio.sleep(150)
        expected = (
            OLIVIA.event_id("BTCUSD", FIRST_EVENT + 24 * HOUR),
            OLIVIA.event_id("BTCUSD", FIRST_EVENT + 25 * HOUR),
        )
        assert [event for _, event in oracle.asked] == [expected[0]] * 2 + [expected[1]]
        assert oracle.reports[0] is not None
        assert "has not announced" in oracle.reports[0]
        oracle.says = said
        await trio.sleep(HOUR)
        assert oracle.reports[-1] is None
        assert list(oracle.store.kept) == [expected[1], OLIVIA.event_id("BTCUSD", FIRST_EVENT + 26 * HOUR)]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("scheme", [DLC, OLIVIA], ids=lambda scheme: scheme.name)
async def test_against_the_regtest_oracle(tmp_path: Path, nursery: trio.Nursery, scheme: Scheme) -> None:
    """Over HTTP, from the announcement to the attestation; nothing listens at first, which stops no start."""
    now = [FIRST_EVENT - 1.0]
    clock = Clock(wall=lambda: now[0])
    keys = OracleKeys.load(tmp_path / "oracle.key")
    prices = AttestedPrices(tmp_path / "prices")
    oracle = Oracle(keys, prices, clock, since=FIRST_EVENT - HOUR, market=lambda *_: "49262.8")
    reports = Reports()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = OracleConfig(url, *keys.public(scheme), scheme.name)
        run = partial(run_oracle, config, clock=clock, store=MemoryStore(), report=reports)
        client: OracleClient = await nursery.start(run)
        error = await failure(client.announcement(scheme.event_id("BTCUSD", FIRST_EVENT)))
        assert error.code == "oracle_unreachable"
        assert config.url in error.sentence
        listener.listen()
        listener.setblocking(False)
        await nursery.start(partial(serve, oracle_app(oracle), [listener]))
        announcement = await client.announcement(scheme.event_id("BTCUSD", FIRST_EVENT))
        assert await client.attestation(announcement) is None
        now[0] += 1
        attestation = await client.wait_attestation(announcement)
        assert attestation.price == 49_262
        missing = await failure(client.announcement(scheme.event_id("BTCUSD", FIRST_EVENT + 100 * HOUR)))
        assert missing.code == "unknown_event"
        assert reports[0] is not None
        assert reports[-1] is None
        nursery.cancel_scope.cancel()
