"""Endpoints: dialling, listening, handlers, refusals, liveness, drain, and peers that do not behave."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import structlog.testing
import trio
import trio.testing

from node.network.address import Identity, PeerAddress, PeerId
from node.network.connection import Connection, Liveness
from node.network.endpoint import ConnectionDown, ConnectionUp, Endpoint, Limits
from node.network.errors import (
    Busy,
    CannotListen,
    Closed,
    ConnectionLost,
    DialFailed,
    Forbidden,
    HandlerFailed,
    HandshakeFailed,
    Refuse,
    StreamReset,
    UnknownProtocol,
)
from node.network.substream import Substream
from protocols.errors import LocalError, Refused, RemoteProtocolError
from protocols.transport.events import Farewell
from protocols.transport.handshake import public_key
from protocols.transport.http2 import SessionLimits
from protocols.transport.session import Session
from tests.endpoints import ECHO, address_of, echo, joined, running
from tests.sessions import DIALLER

HELLO = "/cfd/hello/1"
KEY = "ab" * 32


async def say_hello(stream: Substream) -> None:
    await stream.send_all(b"hello")


async def ask(connection: Connection, path: str = ECHO, question: bytes = b"question") -> bytes:
    async with await connection.open(path) as stream:
        await stream.send_all(question)
        return bytes(await stream.receive_some())


# -- addresses and identities


@pytest.mark.parametrize(
    "text",
    [
        f"{KEY}@127.0.0.1:9735",
        f"{KEY}@[::1]:1",
        f"{KEY}@maker.example:65535",
        f"{KEY}@localhost:80",
        f"{KEY}@{'a2' * 28}.onion:80",
    ],
)
def test_addresses_are_read_and_written(text: str) -> None:
    address = PeerAddress.parse(text)
    assert str(address) == text
    assert str(address.peer) == KEY
    assert address.peer.short == KEY[:16]
    assert address.onion == ("onion" in text)


def test_addresses_are_normalised() -> None:
    assert str(PeerAddress.parse(f" {KEY.upper()}@Maker.Example:80\n")) == f"{KEY}@maker.example:80"
    assert PeerAddress.parse(f"{KEY}@[0:0::1]:80").host == "::1"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no @"),
        ("127.0.0.1:80", "no @"),
        (f"{KEY[:-1]}@127.0.0.1:80", "must be 64 hex digits, has 63"),
        (f"{'g' * 64}@127.0.0.1:80", "must be 64 hex digits"),
        (f"{KEY}@127.0.0.1", "no port"),
        (f"{KEY}@[::1]", "no port"),
        (f"{KEY}@127.0.0.1:0", "port '0' must be a number from 1 to 65535"),
        (f"{KEY}@127.0.0.1:65536", "port '65536'"),
        (f"{KEY}@127.0.0.1:١", "port"),
        (f"{KEY}@127.0.0.1:08", "port"),
        (f"{KEY}@127.0.0.256:80", "no IPv4 address"),
        (f"{KEY}@1.2.3:80", "no IPv4 address"),
        (f"{KEY}@::1:80", "must stand in brackets"),
        (f"{KEY}@[::g]:80", "no IPv6 address"),
        (f"{KEY}@:80", "neither an address nor a name"),
        (f"{KEY}@-a.example:80", "neither an address nor a name"),
        (f"{KEY}@a..example:80", "neither an address nor a name"),
        (f"{KEY}@a b:80", "neither an address nor a name"),
        (f"{KEY}@short.onion:80", "onion name has 56"),
    ],
)
def test_a_wrong_address_names_the_part(text: str, part: str) -> None:
    with pytest.raises(LocalError, match=r"^peer address") as wrong:
        PeerAddress.parse(text)
    assert part in wrong.value.sentence
    assert wrong.value.code == "bad_address"
    assert "\n" not in str(wrong.value)


def test_an_identity_shows_only_its_public_half() -> None:
    identity = Identity(DIALLER)
    assert identity.public == PeerId(public_key(DIALLER)) == PeerId.parse(str(identity.public))
    assert DIALLER.hex() not in repr(identity)
    assert repr(DIALLER)[2:-1] not in repr(identity)
    with pytest.raises(LocalError, match="has 32 bytes, not 3"):
        Identity(b"abc")


# -- dialling and listening


async def test_a_dialogue_over_loopback_and_one_in_the_other_direction() -> None:
    async with joined({ECHO: echo}, sockets=True) as both:
        assert await ask(both.at_taker) == b"question"
        both.taker.handle(HELLO, say_hello)
        assert await ask(both.at_maker, HELLO) == b"hello"
        assert both.at_taker.dialled
        assert not both.at_maker.dialled
        assert both.at_maker.peer == both.taker.identity.public
        assert both.maker.connections == (both.at_maker,)


async def test_nobody_there_is_a_dial_failure_with_its_reason() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with running() as taker:
            with pytest.raises(DialFailed, match=f"cannot reach 127.0.0.1:{port}: connection refused"):
                await taker.dial(PeerAddress(PeerId.parse(KEY), "127.0.0.1", port))
    async with running() as taker:
        with pytest.raises(DialFailed, match=r"cannot reach no-such-host\.invalid:80"):
            await taker.dial(PeerAddress.parse(f"{KEY}@no-such-host.invalid:80"))


async def test_the_wrong_key_is_a_failed_handshake_and_the_right_one_still_works() -> None:
    async with running({ECHO: echo}) as maker, running(secret=DIALLER) as taker:
        address = await address_of(maker)
        with pytest.raises(HandshakeFailed, match="is the key right"):
            await taker.dial(PeerAddress(PeerId.parse(KEY), address.host, address.port))
        assert await ask(await taker.dial(address)) == b"question"
        assert maker.offences == 0


async def test_a_server_of_something_else_is_a_failed_handshake() -> None:
    async def web_server(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery, running() as taker:
        listeners = await nursery.start(trio.serve_tcp, web_server, 0)
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(HandshakeFailed, match="record length"):
            await taker.dial(PeerAddress(PeerId.parse(KEY), "127.0.0.1", port))
        nursery.cancel_scope.cancel()


async def test_a_peer_that_says_nothing_is_given_up_in_time() -> None:
    async with running(limits=Limits(handshake_within=0.05)) as taker:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            with pytest.raises(DialFailed, match=r"no answer within 0\.05 s"):
                await taker.dial(PeerAddress(PeerId.parse(KEY), "127.0.0.1", silent.getsockname()[1]))


async def test_what_cannot_be_dialled_says_so() -> None:
    async with running() as taker:
        with pytest.raises(LocalError, match="SOCKS5"):
            await taker.dial(PeerAddress.parse(f"{KEY}@{'a' * 56}.onion:80"))
        taker.block = {PeerId.parse(KEY)}
        with pytest.raises(LocalError, match="block list"):
            await taker.dial(PeerAddress.parse(f"{KEY}@127.0.0.1:80"))
    with pytest.raises(LocalError, match="not running"):
        await taker.dial(PeerAddress.parse(f"{KEY}@127.0.0.1:80"))


async def test_a_taken_port_is_named() -> None:
    async with running() as one:
        address = await address_of(one)
        with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{address.port}: address already in use"):
            await one.listen("127.0.0.1", address.port)


async def test_silent_strangers_do_not_keep_an_honest_peer_out() -> None:
    limits = Limits(strangers=64)
    async with running({ECHO: echo}, limits=limits) as maker, running(secret=DIALLER) as taker:
        address = await address_of(maker)
        strangers = [await trio.open_tcp_stream(address.host, address.port) for _ in range(300)]
        assert await ask(await taker.dial(address)) == b"question"
        assert len(maker._strangers) <= 64
        with trio.fail_after(5):  # and not when the time of a handshake is over
            assert await strangers[0].receive_some() == b""
        for stranger in strangers:
            await stranger.aclose()


async def test_strangers_are_sent_away_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as maker:
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(maker.accept, theirs)
            assert await ours.receive_some() == b""
        assert trio.current_time() == pytest.approx(10, abs=0.1)


# -- handlers and refusals


async def test_a_protocol_registered_while_the_connection_is_open() -> None:
    async with joined() as both:
        with pytest.raises(UnknownProtocol) as unknown:
            await ask(both.at_taker, HELLO)
        assert unknown.value.path == HELLO
        assert unknown.value.spoken == ()
        both.maker.handle(ECHO, echo)
        both.maker.handle(HELLO, say_hello)
        with pytest.raises(UnknownProtocol, match="it speaks /cfd/echo/1, /cfd/hello/1"):
            await ask(both.at_taker, "/cfd/hello/2")
        assert await ask(both.at_taker, HELLO) == b"hello"
        assert both.maker.paths == (ECHO, HELLO)


@pytest.mark.parametrize("path", ["/cfd/hello", "cfd/hello/1", "/cfd/hello/01", "/cfd/Hello/1", "/cfd/a/b/1", ""])
async def test_paths_have_one_form(path: str) -> None:
    async with running() as maker:
        with pytest.raises(LocalError, match="must look like"):
            maker.handle(path, echo)


async def test_a_path_has_one_handler() -> None:
    endpoint = Endpoint(Identity(DIALLER), handlers={ECHO: echo})
    with pytest.raises(LocalError, match="has a handler already"):
        endpoint.handle(ECHO, echo)


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refuse(429, retry_after=7.5), Busy),
        (Refuse(403), Forbidden),
        (Refuse(503, "no oracle\x1b[2J"), Refused),
        (ExceptionGroup("from a nursery", [Refuse(403)]), Forbidden),
    ],
)
async def test_refusals_arrive_as_what_they_are(refusal: Exception, error: type[Exception]) -> None:
    async def refuse(stream: Substream) -> None:
        raise refusal

    async with joined({HELLO: refuse, ECHO: echo}) as both:
        with pytest.raises(error) as refused:
            await ask(both.at_taker, HELLO)
        if isinstance(refused.value, Busy):
            assert refused.value.retry_after == 7.5
        if refused.type is Refused:
            assert str(refused.value) == "the peer refused /cfd/hello/1 with status 503: no oracle?[2J [status_503]"
        assert not isinstance(refused.value, trio.BrokenResourceError)
        assert await ask(both.at_taker) == b"question"
        assert both.maker.crashes == 0


@pytest.mark.parametrize("answered", [False, True])
async def test_a_crash_of_a_handler_is_its_streams_end_and_no_more(answered: bool) -> None:
    async def crash(stream: Substream) -> None:
        if answered:
            await stream.send_all(b"so far so good")
        raise ZeroDivisionError("a bug")

    async with joined({HELLO: crash, ECHO: echo}) as both:
        other = await both.at_taker.open(ECHO)
        with structlog.testing.capture_logs() as logs:
            async with await both.at_taker.open(HELLO) as stream:
                if answered:
                    assert await stream.receive_some() == b"so far so good"
                    with pytest.raises(StreamReset, match="INTERNAL_ERROR"):
                        await stream.receive_some()
                else:
                    with pytest.raises(HandlerFailed, match="failed while it answered /cfd/hello/1"):
                        await stream.receive_some()
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["handler crashed"]
        assert both.maker.crashes == 1
        await other.send_all(b"still here")
        assert await other.receive_some() == b"still here"


async def test_a_peers_fault_is_no_crash_of_ours() -> None:
    async def judge(stream: Substream) -> None:
        await stream.receive_some()
        raise RemoteProtocolError("bad_message", "field price is no number")

    async def wait(stream: Substream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)

    async with joined({HELLO: judge, ECHO: wait}) as both:
        with pytest.raises(StreamReset, match="CANCEL"):
            await ask(both.at_taker, HELLO)
        stream = await both.at_taker.open(ECHO)
        await stream.send_all(b"")
        stream.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert both.maker.crashes == 0


async def test_a_handler_that_returns_closes_in_order() -> None:
    async with joined({HELLO: say_hello}) as both:
        stream = await both.at_taker.open(HELLO)
        assert await stream.receive_some() == b"hello"
        assert await stream.receive_some() == b""
        await stream.aclose()
        assert both.at_taker.substreams == both.at_maker.substreams == ()


async def test_one_stream_more_than_allowed_waits_for_its_turn() -> None:
    async with joined({ECHO: echo}, limits=Limits(session=SessionLimits(streams=3))) as both:
        streams = [await both.at_taker.open(ECHO) for _ in range(3)]
        answers = []

        async def one_more() -> None:
            answers.append(await ask(both.at_taker))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one_more)
            await trio.testing.wait_all_tasks_blocked()
            assert answers == []
            await streams.pop().aclose()
        assert answers == [b"question"] * 5
        assert not both.at_taker.closed


async def test_waiting_for_a_turn_ends_with_the_connection() -> None:
    async with joined({ECHO: echo}, limits=Limits(session=SessionLimits(streams=1))) as both:
        await both.at_taker.open(ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.at_maker.aclose)
            with pytest.raises(ConnectionLost):
                await both.at_taker.open(ECHO)


# -- the life of a connection


async def test_events_of_connections() -> None:
    async with joined() as both, both.maker.connection_events() as events:
        assert await events.receive() == ConnectionUp(both.at_maker)
        await both.at_taker.aclose()
        assert await events.receive() == ConnectionDown(both.at_maker, "the peer closed it")
        assert both.maker.connections == both.taker.connections == ()
    with pytest.raises(trio.ClosedResourceError):
        events.receive_nowait()


async def test_subscribers_learn_that_the_endpoint_ended() -> None:
    async with running() as maker:
        events = maker.connection_events()
    assert [event async for event in events] == []


async def test_a_closed_connection_says_so() -> None:
    async with joined({ECHO: echo}, sockets=True) as both:
        await both.at_taker.aclose()
        await both.at_taker.aclose()
        await both.at_maker.wait_closed()
        assert both.at_taker.closed
        assert both.at_taker.reason == "closed on this side"
        assert both.at_maker.reason == "the peer closed it"
        with pytest.raises(Closed):
            await both.at_taker.open(ECHO)
        with pytest.raises(ConnectionLost):
            await both.at_maker.open(ECHO)


async def test_what_was_sent_before_the_close_arrives() -> None:
    async with joined(sockets=True) as both:
        ours, theirs = await both.streams()
        await theirs.send_all(bytes(200_000))
        await theirs.aclose()
        await both.at_maker.aclose()
        got = 0
        while data := await ours.receive_some():
            got += len(data)
        assert got == 200_000


async def test_drain_lets_dialogues_end_and_takes_no_new_ones() -> None:
    async with joined({ECHO: echo}) as both:
        stream = await both.at_taker.open(ECHO)
        await stream.send_all(b"before")
        assert await stream.receive_some() == b"before"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.at_maker.drain)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ConnectionLost, match="takes no more streams"):
                await both.at_taker.open(ECHO)
            with pytest.raises(Closed):
                await both.at_maker.open(ECHO)
            await stream.send_all(b"after")
            assert await stream.receive_some() == b"after"
            assert both.maker.connections == (both.at_maker,)
            await stream.aclose()
        assert both.at_maker.closed
        await both.at_taker.wait_closed()
        assert both.at_taker.reason == "the peer closed it"


async def test_a_cancelled_drain_closes_all_the_same() -> None:
    async with joined({ECHO: echo}) as both:
        stream = await both.at_taker.open(ECHO)
        with trio.CancelScope() as impatient:
            impatient.cancel()
            await both.at_maker.drain()
        assert impatient.cancelled_caught
        assert both.at_maker.closed
        with pytest.raises(ConnectionLost):
            await stream.receive_some()


async def test_an_idle_connection_lives_by_pings(autojump_clock: trio.testing.MockClock) -> None:
    async with joined({ECHO: echo}) as both:
        await trio.sleep(10_000)
        assert await ask(both.at_taker) == b"question"


class Cable(trio.abc.Stream):
    """A carrier that can be cut without either side being told."""

    def __init__(self, carrier: trio.abc.Stream) -> None:
        self.carrier = carrier
        self.cut = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.carrier.receive_some(max_bytes)
        if self.cut:
            await trio.sleep_forever()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.cut:
            await trio.sleep_forever()
        await self.carrier.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.carrier.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.carrier.aclose()


@pytest.mark.parametrize("busy", [False, True])
async def test_a_stopped_peer_is_noticed_within_35_s(autojump_clock: trio.testing.MockClock, busy: bool) -> None:
    """`busy`: also while there is more to write than the carrier takes."""
    async with running({ECHO: echo}, secret=DIALLER) as maker, running() as taker, trio.open_nursery() as nursery:
        ours, theirs = trio.testing.memory_stream_pair()
        cable = Cable(ours)
        nursery.start_soon(maker.accept, theirs)
        connection = await taker.connect(cable, maker.identity.public)
        stream = await connection.open(ECHO)
        await stream.send_all(b"question")
        assert await stream.receive_some() == b"question"
        await trio.sleep(100)
        cable.cut = True
        stopped = trio.current_time()
        with pytest.raises(ConnectionLost, match="silent for 30 s"):
            if busy:
                await stream.send_all(bytes(10_000_000))
            await stream.receive_some()
        assert trio.current_time() - stopped <= 35
        await connection.wait_closed()
        nursery.cancel_scope.cancel()


async def test_liveness_is_a_parameter(autojump_clock: trio.testing.MockClock) -> None:
    limits = Limits(liveness=Liveness(ping_after=1, dead_after=2))
    async with running(secret=DIALLER) as maker, running(limits=limits) as taker, trio.open_nursery() as nursery:
        ours, theirs = trio.testing.memory_stream_pair()
        cable = Cable(ours)
        nursery.start_soon(maker.accept, theirs)
        connection = await taker.connect(cable, maker.identity.public)
        cable.cut = True
        started = trio.current_time()
        await connection.wait_closed()
        assert trio.current_time() - started == pytest.approx(2, abs=0.1)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def by_hand(address: PeerAddress, secret: bytes) -> AsyncIterator[tuple[trio.SocketStream, Session]]:
    """A peer that is no endpoint: a socket, and a session that has shaken hands on it."""
    session = Session(secret=secret, ephemeral=os.urandom(32), peer=address.peer.key)
    async with await trio.open_tcp_stream(address.host, address.port) as carrier:
        while not session.established:
            await carrier.send_all(session.data_to_send())
            session.receive(await carrier.receive_some(), 0)
        await carrier.send_all(session.data_to_send())
        yield carrier, session


async def test_a_peer_that_vanishes_is_a_lost_connection() -> None:
    broken: list[Exception] = []
    begun = trio.Event()

    async def wait(stream: Substream) -> None:
        begun.set()
        try:
            await stream.receive_some()
        except ConnectionLost as error:
            broken.append(error)

    async with running({HELLO: wait}) as maker, maker.connection_events() as events:
        async with by_hand(await address_of(maker), DIALLER) as (carrier, session):
            session.streams.open_stream(HELLO)
            await carrier.send_all(session.data_to_send())
            up = await events.receive()
            await begun.wait()
            carrier.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert await events.receive() == ConnectionDown(up.connection, "the peer is gone")
        await trio.testing.wait_all_tasks_blocked()
        assert [str(error) for error in broken] == ["the connection is lost: the peer is gone [connection_lost]"]
        assert maker.crashes == maker.offences == 0


async def test_when_the_endpoint_ends_its_peers_are_told() -> None:
    async with running(secret=DIALLER) as taker:
        async with running({ECHO: echo}) as maker:
            connection = await taker.dial(await address_of(maker))
            stream = await connection.open(ECHO)
            await stream.send_all(b"x")
            await stream.receive_some()
        with pytest.raises((StreamReset, ConnectionLost)):
            while True:
                await stream.receive_some()
        await connection.wait_closed()
        assert connection.reason == "the peer closed it"


# -- lists, limits, offenders


async def test_allow_and_block_lists() -> None:
    async with running({ECHO: echo}) as maker, running(secret=DIALLER) as taker:
        address = await address_of(maker)
        for maker.allow, maker.block in (((), ()), (None, (taker.identity.public,))):
            connection = await taker.dial(address)
            with pytest.raises(Forbidden):
                await ask(connection)
            with pytest.raises(Forbidden):
                await connection.open(ECHO)
        maker.allow, maker.block = (taker.identity.public,), ()
        assert await ask(await taker.dial(address)) == b"question"


async def test_a_full_maker_is_busy() -> None:
    async with (
        running({ECHO: echo}, limits=Limits(connections=1)) as maker,
        running(secret=DIALLER) as taker,
        running(secret=bytes([5]) * 32) as late,
    ):
        address = await address_of(maker)
        first = await taker.dial(address)
        assert await ask(first) == b"question"
        with pytest.raises(Busy):
            await ask(await late.dial(address))
        assert await ask(first) == b"question"


async def test_a_peer_that_dials_again_replaces_its_old_connection_also_when_all_places_are_taken() -> None:
    async with running({ECHO: echo}, limits=Limits(connections=1)) as maker:
        address = await address_of(maker)
        async with running(secret=DIALLER) as taker, running(secret=DIALLER) as restarted:
            old = await taker.dial(address)
            assert await ask(old) == b"question"
            new = await restarted.dial(address)
            assert await ask(new) == b"question"
            await old.wait_closed()
            assert old.reason == "the peer closed it (replaced)"
            assert await ask(new) == b"question"
            assert [connection.peer for connection in maker.connections] == [taker.identity.public]


async def test_a_peer_that_dials_and_dials_is_busy_until_its_old_connections_are_over() -> None:
    """They linger for a farewell that it does not answer: it must not have any number of them."""
    async with running({ECHO: echo}) as maker, AsyncExitStack() as peers:
        address = await address_of(maker)
        told = []
        for _ in range(7):
            carrier, session = await peers.enter_async_context(by_hand(address, DIALLER))
            said = await carrier.receive_some()
            told += [event.reason for event in session.receive(said, 0) if isinstance(event, Farewell)]
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert told == [b"busy"] * 3
        assert len(maker._connections) == 4
        assert [connection.closed for connection in maker._connections] == [True, True, True, False]


async def test_garbage_ends_one_connection_and_nothing_else() -> None:
    limits = Limits(backoff=60)
    async with running({ECHO: echo}, limits=limits) as maker, running(secret=DIALLER) as taker:
        address = await address_of(maker)
        honest = await taker.dial(address)
        assert await ask(honest) == b"question"

        async with await trio.open_tcp_stream(address.host, address.port) as stranger:
            await stranger.send_all(os.urandom(1000))
            with suppress(trio.BrokenResourceError):
                assert await stranger.receive_some() == b""

        for attempt, word in enumerate([b"bad_record", b"busy"]):
            async with by_hand(address, bytes([3]) * 32) as (offender, session):
                if attempt == 0:
                    await offender.send_all(b"\xff\xff" + bytes(65535))
                said = bytearray()
                while data := await offender.receive_some():
                    said += data
                # Told why, in the last frame; and at the second attempt kept out from the start.
                assert session.receive(said, 0)[-1] == Farewell(1 - attempt, word)
        assert maker.offences == 1
        assert await ask(honest) == b"question"


async def test_many_dialogues_at_once() -> None:
    async with joined({ECHO: echo}, sockets=True) as both:
        done = 0

        async def dialogues(number: int) -> None:
            nonlocal done
            for turn in range(10):
                question = f"{number} {turn}".encode() * 50
                assert await ask(both.at_taker, question=question) == question
                done += 1

        async with trio.open_nursery() as nursery:
            for number in range(150):  # more than may be open at once
                nursery.start_soon(dialogues, number)
        assert done == 1500
        assert both.at_taker.substreams == ()
