"""What the transport counts, and how Prometheus sees it."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from node.metrics import network_metrics
from node.network.address import Identity
from node.network.endpoint import Endpoint, Limits
from node.network.errors import Refuse, UnknownProtocol
from node.network.substream import Substream
from node.supervision import Service
from tests.endpoints import ECHO, address_of, echo, joined, running
from tests.sessions import DIALLER, LISTENER

BUSY = "/cfd/busy/1"


async def refuse(stream: Substream) -> None:
    raise Refuse(429)


async def test_each_stream_and_byte_is_counted_once_on_both_sides() -> None:
    async with joined({ECHO: echo, BUSY: refuse}, sockets=True) as both:
        for _ in range(3):
            async with await both.at_taker.open(ECHO) as stream:
                await stream.send_all(bytes(1000))
                await stream.send_eof()
                while await stream.receive_some():
                    pass
        cancelled = await both.at_taker.open(ECHO)
        cancelled.reset()
        busy = await both.at_taker.open(BUSY)
        await busy.wait_broken()
        for number in range(50):
            unknown = await both.at_taker.open(f"/cfd/unknown{number}/1")
            assert isinstance(await unknown.wait_broken(), UnknownProtocol)
        at_maker, at_taker = both.at_maker.counts, both.at_taker.counts
        for counts in (at_maker, at_taker):
            assert counts.protocols[ECHO].opened == 4
            assert counts.protocols[ECHO].sent == counts.protocols[ECHO].received == 3000
            assert counts.protocols[ECHO].resets == {8: 1}
            assert counts.protocols[BUSY].refused == {429: 1}
        # A peer cannot make the maker remember names.
        assert set(at_maker.protocols) == {ECHO, BUSY, "other"}
        assert at_maker.protocols["other"].refused == {404: 50}
        assert at_maker.sent == at_taker.received
        # The handshake's last message leaves with the first bytes behind it.
        assert 3000 < at_maker.received < at_taker.sent < at_maker.received + 300
        before = both.maker.traffic
        await both.at_taker.aclose()
        await both.at_maker.wait_closed()
        assert both.maker.traffic.protocols[ECHO].sent == before.protocols[ECHO].sent == 3000
        assert both.maker.traffic.sent >= before.sent


async def test_pings_are_measured(autojump_clock: trio.testing.MockClock) -> None:
    async with joined() as both:
        latencies = [(both.at_taker.latency, both.at_maker.latency)]
        assert await both.at_taker.ping() == 0
        latencies.append((both.at_taker.latency, both.at_maker.latency))
        await trio.sleep(16)  # liveness asks too
        latencies.append((both.at_taker.latency, both.at_maker.latency))
        assert latencies == [(None, None), (0, None), (0, 0)]


async def test_no_number_of_pings_is_a_flood(autojump_clock: trio.testing.MockClock) -> None:
    async with joined() as both:
        for turn in range(100):
            for _ in range(10):
                assert await both.at_taker.ping() == 0
            await trio.sleep(turn % 3 / 2)
        assert both.maker.offences == 0
        assert not both.at_taker.closed


async def test_failed_handshakes_and_dials_are_counted_by_cause() -> None:
    limits = Limits(handshake_within=0.3)
    async with running({ECHO: echo}, limits=limits) as maker, running(secret=DIALLER) as taker:
        address = await address_of(maker)
        for said in (bytes(2), (48).to_bytes(2, "big") + os.urandom(48), b"\0", b""):
            async with await trio.open_tcp_stream(address.host, address.port) as stranger:
                await stranger.send_all(said)
                if said == b"":
                    await stranger.send_eof()
                assert await stranger.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert maker.counts.handshakes_failed == {"bad_length": 1, "bad_handshake": 1, "too_slow": 1, "hung_up": 1}
        with pytest.raises(Exception, match="is the key right"):
            await taker.dial(type(address)(taker.identity.public, address.host, address.port))
        assert taker.counts.dials_failed == {"handshake_failed": 1}
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert maker.counts.handshakes_failed["bad_handshake"] == 2


async def test_prometheus_sees_it() -> None:
    endpoint = Endpoint(Identity(LISTENER), handlers={ECHO: echo})
    network = Service("network", endpoint.run)

    class Collector:
        def collect(self) -> list[Metric]:
            return list(network_metrics(network))

    def scrape() -> list[str]:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collector())
        return generate_latest(registry).decode().splitlines()

    assert scrape() == []
    async with trio.open_nursery() as nursery, running(secret=DIALLER) as taker:
        nursery.start_soon(network.supervise)
        while not network.health.up:
            await trio.lowlevel.checkpoint()
        address = await address_of(endpoint)
        async with await taker.open(ECHO, address) as stream:
            await stream.send_all(b"question")
            await stream.receive_some()
            await endpoint.connections[0].ping()
            lines = scrape()
        peer = taker.identity.public.short
        assert f'cfdnode_streams_opened_total{{protocol="{ECHO}"}} 1.0' in lines
        assert f'cfdnode_stream_bytes_total{{direction="sent",protocol="{ECHO}"}} 8.0' in lines
        assert f'cfdnode_connection_streams{{dialled_by="peer",peer="{peer}"}} 1.0' in lines
        assert any(line.startswith(f'cfdnode_ping_seconds{{dialled_by="peer",peer="{peer}"}}') for line in lines)
        assert "cfdnode_connections_made_total 1.0" in lines
        nursery.cancel_scope.cancel()
