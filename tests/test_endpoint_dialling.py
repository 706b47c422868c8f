"""One connection to each peer, whoever dials it, how often, where, and through what."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, evolve, field

from node.network.address import Identity, PeerAddress, PeerId
from node.network.carriers import TCP, Carriers, Socks5, origin
from node.network.connection import Connection, Liveness
from node.network.endpoint import Endpoint, Limits
from node.network.errors import Closed, ConnectionLost, DialFailed, Forbidden
from node.network.strangers import Stranger, Strangers
from protocols.errors import LocalError
from protocols.transport.http2 import SessionLimits
from protocols.transport.session import Session
from tests.endpoints import ECHO, address_of, echo, running
from tests.middleman import middleman
from tests.sessions import DIALLER, LISTENER

ONION = f"{'a' * 56}.onion"
IMPATIENT = Limits(answer_within=0.5, liveness=Liveness(farewell=0.05))


async def ask(connection: Connection) -> bytes:
    async with await connection.open(ECHO) as stream:
        await stream.send_all(b"question")
        return bytes(await stream.receive_some())


async def only_one_is_left(endpoint: Endpoint) -> None:
    with endpoint.connection_events() as events:
        while len(endpoint.connections) > 1:
            await events.receive()


def nobody_at(peer: PeerId) -> PeerAddress:
    """An address at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return PeerAddress(peer, "127.0.0.1", free.getsockname()[1])


# -- one connection to each peer


async def test_dialling_again_gives_the_connection_that_there_is() -> None:
    async with running({ECHO: echo}) as maker, running(secret=DIALLER) as taker:
        address = await address_of(maker)
        got: list[Connection] = []

        async def dial() -> None:
            got.append(await taker.dial(address))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(dial)
        await dial()
        assert len(got) == 21
        assert len(set(got)) == 1
        assert await ask(got[0]) == b"question"
        assert maker.counts.connections == taker.counts.connections == 1
        assert taker._turns == {}


async def test_a_connection_that_is_dead_does_not_keep_a_new_one_from_being_made() -> None:
    async with (
        running({ECHO: echo}) as maker,
        running(secret=DIALLER, limits=IMPATIENT) as taker,
        middleman(await address_of(maker)) as between,
    ):
        dead = await taker.dial(between.address)
        assert await ask(dead) == b"question"
        between.frozen = True
        new = await taker.dial(await address_of(maker))
        assert new is not dead
        assert dead.reason == "the peer does not answer"
        assert await ask(new) == b"question"
        assert [each.closed for each in (dead, new)] == [True, False]


async def test_two_that_dial_each_other_at_once_keep_one_connection_that_both_agree_on() -> None:
    """Twenty times, because who comes first is up to the scheduler."""
    for _ in range(20):
        async with running({ECHO: echo}) as one, running({ECHO: echo}, secret=DIALLER) as two:
            got: dict[Endpoint, Connection] = {}

            async def dial(endpoint: Endpoint, address: PeerAddress, got: dict[Endpoint, Connection] = got) -> None:
                got[endpoint] = await endpoint.dial(address)

            addresses = await address_of(one), await address_of(two)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial, one, addresses[1])
                nursery.start_soon(dial, two, addresses[0])
            for endpoint, other in ((one, two), (two, one)):
                stream = await endpoint.open(ECHO, PeerAddress(other.identity.public, "127.0.0.1", 1))
                await stream.send_all(b"question")
                assert await stream.receive_some() == b"question"
                await stream.aclose()
            await only_one_is_left(one)
            await only_one_is_left(two)
            # The smaller key dialled what is left.
            (left,), smaller = one.connections, one.identity.public < two.identity.public
            assert left.dialled == smaller
            assert await ask(left) == await ask(two.connections[0]) == b"question"


async def test_dialogues_on_the_connection_that_is_given_up_go_on_to_their_end() -> None:
    small, large = sorted((LISTENER, DIALLER), key=lambda secret: Identity(secret).public)
    async with running({ECHO: echo}, secret=small) as one, running({ECHO: echo}, secret=large) as two:
        given_up = await two.dial(await address_of(one))
        stream = await given_up.open(ECHO)
        # Dialled from the other side without looking at what there is, as if both had begun at once.
        place = await address_of(two)
        kept = await one.connect(await trio.open_tcp_stream(place.host, place.port), two.identity.public)
        while given_up.usable:
            await trio.lowlevel.checkpoint()
        await stream.send_all(b"still")
        assert await stream.receive_some() == b"still"
        assert two.connection_to(one.identity.public) is two.connections[1]
        await stream.aclose()
        await given_up.wait_closed()
        assert await ask(kept) == b"question"
        assert len(one.connections) == len(two.connections) == 1


async def test_a_peer_that_was_cut_off_and_dials_us_gets_through_at_once() -> None:
    """Our own connection to it looks alive to us, and would be the one to keep."""
    small, large = sorted((LISTENER, DIALLER), key=lambda secret: Identity(secret).public)
    async with (
        running({ECHO: echo}, secret=small, limits=IMPATIENT) as one,
        running({ECHO: echo}, secret=large, limits=IMPATIENT) as two,
        middleman(await address_of(two)) as between,
    ):
        dead = await one.dial(between.address)
        assert await ask(dead) == b"question"
        between.frozen = True
        new = await two.dial(await address_of(one))
        assert await ask(new) == b"question"
        await dead.wait_closed()
        assert new.usable
        assert (await one.dial(between.address)).dialled is False


@pytest.mark.parametrize("streams", [1, 3])
async def test_when_all_stream_ids_are_used_another_connection_goes_on_and_nobody_notices(streams: int) -> None:
    limits = Limits(session=SessionLimits(last_stream=9, streams=4))
    async with running({ECHO: echo}, limits=limits) as maker, running(secret=DIALLER, limits=limits) as taker:
        address = await address_of(maker)
        first = await taker.open(ECHO, address)
        done = 0

        async def dialogues() -> None:
            nonlocal done
            for number in range(20):
                async with await taker.open(ECHO, address) as stream:
                    await stream.send_all(b"%d" % number)
                    assert await stream.receive_some() == b"%d" % number
                    done += 1

        async with trio.open_nursery() as nursery:
            for _ in range(streams):
                nursery.start_soon(dialogues)
        assert done == 20 * streams
        assert taker.counts.connections == 1 + 20 * streams // 5
        # One that was begun on the first connection is still there.
        assert first.connection.exhausted
        await first.send_all(b"still here")
        assert await first.receive_some() == b"still here"
        await first.aclose()
        await first.connection.wait_closed()
        with pytest.raises((Closed, ConnectionLost)):
            await first.connection.open(ECHO)


async def test_who_holds_a_connection_whose_stream_ids_are_used_does_not_notice_either() -> None:
    limits = Limits(session=SessionLimits(last_stream=9))
    async with running({ECHO: echo}, limits=limits) as maker, running(secret=DIALLER, limits=limits) as taker:
        connection = await taker.dial(await address_of(maker))
        lasting = await connection.open(ECHO)
        for _ in range(20):
            assert await ask(connection) == b"question"
        assert taker.counts.connections > 4
        await lasting.send_all(b"still here")
        assert await lasting.receive_some() == b"still here"
        assert not connection.closed
        # The side that was dialled cannot dial, and says so.
        at_maker = maker.connections[-1]
        with pytest.raises(ConnectionLost, match="all its stream ids are used"):
            for _ in range(6):
                (await at_maker.open(ECHO)).reset()


# -- several addresses, names, proxies


async def test_the_first_address_that_answers_is_taken() -> None:
    async with running({ECHO: echo}) as maker, running(secret=DIALLER) as taker:
        address = await address_of(maker)
        onion = evolve(address, host=ONION)
        assert await ask(await taker.dial(nobody_at(address.peer), onion, address)) == b"question"
        assert taker.counts.dials_failed == {"dial_failed": 1, "onion_needs_proxy": 1}


async def test_when_no_address_answers_each_says_why() -> None:
    async with running(secret=DIALLER) as taker:
        nobody = nobody_at(Identity(LISTENER).public)
        onion = evolve(nobody, host=ONION, port=80)
        with pytest.raises(
            DialFailed, match=rf"cannot reach 127\.0\.0\.1:{nobody.port}: connection refused; a+\.onion: .*SOCKS5"
        ):
            await taker.dial(nobody, onion)
        with pytest.raises(LocalError, match="not all of one peer"):
            await taker.dial(nobody, evolve(nobody, peer=taker.identity.public))


class _Names(trio.abc.HostnameResolver):
    """Answers with one address after the other."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[object] = []

    async def getaddrinfo(self, host: bytes | None, port: bytes | str | int | None, *_: int) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (self.answers.pop(0), port))]

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def test_a_name_is_looked_up_anew_at_each_attempt() -> None:
    async with running({ECHO: echo}) as maker, running(secret=DIALLER) as taker:
        address = evolve(await address_of(maker), host="maker.example")
        names = _Names("127.0.0.2", "127.0.0.1")
        trio.socket.set_custom_hostname_resolver(names)
        with pytest.raises(DialFailed, match="connection refused"):
            await taker.dial(address)
        assert await ask(await taker.dial(address)) == b"question"
        assert names.asked == [b"maker.example", b"maker.example"]


@define
class _Proxy:
    """A SOCKS5 proxy that reaches one place under any name (RFC 1928), or nothing."""

    port: int
    target: int
    asked: list[str] = field(factory=list)
    status: int = 0


@asynccontextmanager
async def socks5(target: int) -> AsyncIterator[_Proxy]:
    async def serve(client: trio.SocketStream) -> None:
        pieces = bytearray()

        async def take(count: int) -> bytes:
            while len(pieces) < count:
                pieces.extend(await client.receive_some(1))
            taken = bytes(pieces[:count])
            del pieces[:count]
            return taken

        _, methods = await take(2)
        await take(methods)
        await client.send_all(b"\x05\x00")
        assert await take(4) == b"\x05\x01\x00\x03"  # a name: it is looked up at the proxy
        (length,) = await take(1)
        name = (await take(length)).decode()
        proxy.asked.append(f"{name}:{int.from_bytes(await take(2), 'big')}")
        await client.send_all(bytes([5, proxy.status, 0, 1]) + bytes(6))
        if proxy.status == 0:
            async with await trio.open_tcp_stream("127.0.0.1", proxy.target) as server, trio.open_nursery() as both:
                both.start_soon(pump, client, server)
                both.start_soon(pump, server, client)

    async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        while data := await source.receive_some():
            await sink.send_all(data)
        await sink.send_eof()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        proxy = _Proxy(listener.socket.getsockname()[1], target)
        yield proxy
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def dialling_by(carriers: Carriers) -> AsyncIterator[Endpoint]:
    async with Endpoint(Identity(DIALLER), carriers=carriers).running() as endpoint:
        yield endpoint


async def test_onions_and_names_are_reached_through_a_proxy() -> None:
    async with running({ECHO: echo}) as maker, socks5((await address_of(maker)).port) as proxy:
        for host in (ONION, "maker.example"):
            async with dialling_by(Socks5("127.0.0.1", proxy.port)) as taker:
                connection = await taker.dial(PeerAddress(maker.identity.public, host, 81))
                assert await ask(connection) == b"question"
        assert proxy.asked == [f"{ONION}:81", "maker.example:81"]


async def test_a_proxy_for_onions_leaves_the_rest_alone() -> None:
    async with running({ECHO: echo}) as maker, socks5(1) as proxy:
        async with dialling_by(Socks5("127.0.0.1", proxy.port, only_onions=True)) as taker:
            assert await ask(await taker.dial(await address_of(maker))) == b"question"
        assert proxy.asked == []


async def test_what_a_proxy_cannot_do_is_a_failed_dial_with_its_reason() -> None:
    onion = PeerAddress(Identity(LISTENER).public, ONION, 81)
    nobody = nobody_at(onion.peer)
    async with dialling_by(Socks5("127.0.0.1", nobody.port)) as taker:
        with pytest.raises(
            DialFailed, match=rf"proxy at 127\.0\.0\.1:{nobody.port} cannot be used: connection refused"
        ):
            await taker.dial(onion)
    async with socks5(1) as proxy, dialling_by(Socks5("127.0.0.1", proxy.port)) as taker:
        proxy.status = 4
        with pytest.raises(DialFailed, match=rf"proxy at 127\.0\.0\.1:{proxy.port} says: .*[Hh]ost unreachable"):
            await taker.dial(onion)


# -- listening


async def test_one_endpoint_listens_at_several_addresses() -> None:
    async with running({ECHO: echo}) as maker:
        places = [await maker.listen(host, 0) for host in ("127.0.0.1", "127.0.0.1", "127.0.0.2")]
        assert len(set(places)) == 3
        for number, (host, port) in enumerate(places):
            async with running(secret=bytes([number + 1]) * 32) as taker:
                assert await ask(await taker.dial(PeerAddress(maker.identity.public, host, port))) == b"question"


async def test_who_is_taken_off_the_list_is_parted_with() -> None:
    async with running({ECHO: echo}) as maker, running(secret=DIALLER) as taker:
        address = await address_of(maker)
        connection = await taker.dial(address)
        assert await ask(connection) == b"question"
        maker.admit((taker.identity.public,), ())
        assert await ask(connection) == b"question"
        maker.admit(None, (taker.identity.public,))
        await connection.wait_closed()
        with pytest.raises(Forbidden):
            await connection.open(ECHO)
        with pytest.raises(Forbidden):
            await ask(await taker.dial(address))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert maker.counts.handshakes_failed == {"forbidden": 1}
        maker.admit(None, ())
        assert await ask(await taker.dial(address)) == b"question"


# -- strangers


class Crowd(ExitStack):
    """Strangers that come one after the other, and stay."""

    def __init__(self, *, in_all: int, per_origin: int) -> None:
        super().__init__()
        self.strangers = Strangers(in_all, per_origin, within=10)

    def come(self, origin: str | None, *, introduced: bool = False) -> Stranger:
        session = Session(secret=LISTENER, ephemeral=bytes([9]) * 32)
        if introduced:
            first = Session(secret=DIALLER, ephemeral=bytes([7]) * 32, peer=Identity(LISTENER).public.key)
            session.receive(first.data_to_send(), 0)
        return self.enter_context(self.strangers.admitted(session, origin))


async def test_one_address_cannot_take_the_places_of_others() -> None:
    with Crowd(in_all=6, per_origin=3) as crowd:
        here = [crowd.come("here") for _ in range(3)]
        there = [crowd.come("there") for _ in range(2)]
        late = [crowd.come("here") for _ in range(4)]
        assert [each.crowded_out for each in here + late] == [True] * 4 + [False] * 3
        assert not any(each.crowded_out for each in there)
        assert len(crowd.strangers) == 5
    assert len(crowd.strangers) == 0


async def test_the_address_with_the_most_strangers_makes_room_and_its_silent_ones_first() -> None:
    with Crowd(in_all=4, per_origin=3) as crowd:
        alone = crowd.come("there")
        introduced = crowd.come("here", introduced=True)
        silent = [crowd.come("here") for _ in range(2)]
        for gone in ([True, False], [True, True]):
            crowd.come("elsewhere")
            assert [each.crowded_out for each in silent] == gone
        crowd.come("nowhere")
        assert not introduced.crowded_out
        assert not alone.crowded_out
        assert len(crowd.strangers) == 4


async def test_where_a_stranger_comes_from() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, await TCP.dial("127.0.0.1", listener.socket.getsockname()[1]):
        async with await listener.accept() as carrier:
            assert origin(carrier) == "127.0.0.1"
        assert origin(carrier) is None
    assert origin(trio.testing.memory_stream_pair()[0]) is None
