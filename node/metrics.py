"""What a node measures of itself, for Prometheus: read when it is asked for, but for the lateness of the event loop.

Labels hold names of services, states, symbols, routes, protocols, and the first 16 digits of connected peers' ids:
nothing secret, and no order's id.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import NoReturn

import trio
from attrs import define
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from node.backup.service import Status
from node.core import Core
from node.errors import Disconnected
from node.health import UNREPORTED, Report, State
from node.network.endpoint import Endpoint
from node.projections import Projections
from node.supervision import Service
from node.web.counted import Requests

EVERY = 1.0
PATIENCE = 30.0


@define(eq=False)
class Measured:
    """What cannot be read off later."""

    lag: float = 0.0
    """Seconds by which the event loop was late when it was last looked at."""
    longest_lag: float = 0.0

    async def run(
        self, *, report: Report = UNREPORTED, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Look every second how late this task wakes up."""
        task_status.started()
        while True:
            due = trio.current_time() + EVERY
            await trio.sleep_until(due)
            self.lag = trio.current_time() - due
            self.longest_lag = max(self.lag, self.longest_lag)
            report.beat()


def serve_metrics(core: Core, measured: Measured) -> None:
    """Add the service that measures."""

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await measured.run(report=service, task_status=task_status)

    service = core.supervisor.service("metrics", run, patience=PATIENCE)


class NodeCollector:
    """Everything at one moment. What is down is left out, or as last known with its age."""

    def __init__(self, core: Core, projections: Projections, measured: Measured, requests: Requests) -> None:
        self._core = core
        self._projections = projections
        self._measured = measured
        self._requests = requests

    def collect(self) -> Iterator[Metric]:
        yield from self._services()
        yield from self._positions()
        yield from self._money()
        yield from self._kept()
        yield from self._world()
        yield from network_metrics(self._core.endpoint)
        yield from self._process()

    def _services(self) -> Iterator[Metric]:
        now = self._core.clock.now()
        state = GaugeMetricFamily("cfdnode_service_state", "1 in the state that it is in", labels=("service", "state"))
        failures = CounterMetricFamily("cfdnode_service_failures", "lives that ended by themselves", labels=["service"])
        bugs = CounterMetricFamily("cfdnode_service_bugs", "unforeseen errors", labels=["service"])
        age = GaugeMetricFamily("cfdnode_service_data_age_seconds", "since its data was right", labels=["service"])
        success = GaugeMetricFamily(
            "cfdnode_service_last_success_age_seconds", "since it was last well", labels=["service"]
        )
        for record in self._core.supervisor.health():
            for each in State:
                state.add_metric((record.name, each.value), float(record.state is each))
            failures.add_metric([record.name], record.failures)
            bugs.add_metric([record.name], record.bugs)
            if record.data_at is not None:
                age.add_metric([record.name], max(0.0, now - record.data_at))
            if record.state is State.HEALTHY:
                success.add_metric([record.name], 0.0)
            elif (last := getattr(record, "last_success", None)) is not None:
                success.add_metric([record.name], max(0.0, now - last))
        yield from (state, failures, bugs, age, success)

    def _positions(self) -> Iterator[Metric]:
        known = self._projections.positions.last
        if known is None:
            return
        counts = Counter(position.state.value for position in known.value)
        family = GaugeMetricFamily("cfdnode_positions", "positions by state", labels=["state"])
        for name, count in counts.items():
            family.add_metric([name], count)
        yield family

    def _kept(self) -> Iterator[Metric]:
        """What is on disk, and beside it."""
        events = size = 0
        status: Status | None = None
        with contextlib.suppress(Disconnected), self._core.supervisor["store"].lent() as store:
            events, size = store.appended, store.appended_bytes
        with contextlib.suppress(Disconnected), self._core.backup.lent() as backup:
            status = backup.status()
        yield CounterMetricFamily("cfdnode_store_events", "appended in the present life of the store", value=events)
        yield CounterMetricFamily("cfdnode_store_bytes", "of these events", value=size)
        if status is None:
            return
        yield GaugeMetricFamily("cfdnode_backup_positions", "of which there is a file", value=status.positions)
        yield GaugeMetricFamily("cfdnode_backup_bytes", "of all files together", value=status.size)
        if status.newest is not None:
            age = max(0.0, self._core.clock.now() - status.newest)
            yield GaugeMetricFamily("cfdnode_backup_age_seconds", "since the newest file was written", value=age)

    def _money(self) -> Iterator[Metric]:
        known = self._projections.money.last
        if known is None:
            return
        money = known.value
        family = GaugeMetricFamily("cfdnode_satoshis", "the wallet, and what positions hold", labels=["kind"])
        family.add_metric(["confirmed"], money.balance.confirmed)
        family.add_metric(["pending"], money.balance.pending)
        family.add_metric(["reserved"], money.reserved)
        family.add_metric(["margin_locked"], money.margin_locked)
        yield family
        age = max(0.0, self._core.clock.now() - known.as_of)
        yield GaugeMetricFamily("cfdnode_wallet_age_seconds", "age of the balance", value=age)

    def _world(self) -> Iterator[Metric]:
        now = self._core.clock.now()
        quote_age = GaugeMetricFamily("cfdnode_quote_age_seconds", "age of the last good quote", labels=["symbol"])
        for symbol, feed in self._core.feeds.items():
            if feed.quote is not None:
                quote_age.add_metric([symbol], max(0.0, now - feed.quote.since))
        yield quote_age
        if (tip := self._projections.tip.last) is not None:
            yield GaugeMetricFamily("cfdnode_tip_height", "blocks", value=tip.value["height"])
            yield GaugeMetricFamily(
                "cfdnode_tip_age_seconds", "since it was first seen", value=max(0.0, now - tip.value["since"])
            )
        offers = len(self._projections.board.topic("offers"))
        yield GaugeMetricFamily("cfdnode_offers", "offers that are known", value=offers)
        if (offset := self._core.clocks.offset()) is not None:
            yield GaugeMetricFamily("cfdnode_clock_offset_seconds", "others ahead of this clock", value=offset)

    def _process(self) -> Iterator[Metric]:
        measured = self._measured
        yield GaugeMetricFamily("cfdnode_loop_lag_seconds", "of the event loop, now", value=measured.lag)
        yield GaugeMetricFamily("cfdnode_loop_lag_longest_seconds", "since the start", value=measured.longest_lag)
        requests = CounterMetricFamily(
            "cfdnode_api_requests", "answered requests", labels=("method", "route", "status")
        )
        for (method, route, status), count in self._requests.items():
            requests.add_metric((method, route, str(status)), count)
        yield requests


def network_metrics(network: Service[Endpoint]) -> Iterator[Metric]:
    """Of the endpoint that is up, from its beginning; of each connection while it is there."""
    if not network.health.up:
        return
    with network.lent() as endpoint:
        counts, traffic, connections = endpoint.counts, endpoint.traffic, endpoint.connections
    passed = CounterMetricFamily("cfdnode_network_bytes", "encrypted, on all connections", labels=["direction"])
    passed.add_metric(["sent"], traffic.sent)
    passed.add_metric(["received"], traffic.received)
    opened = CounterMetricFamily("cfdnode_streams_opened", "substreams, by either side", labels=["protocol"])
    refused = CounterMetricFamily("cfdnode_streams_refused", "by either side", labels=("protocol", "status"))
    resets = CounterMetricFamily("cfdnode_streams_reset", "by either side; code 0: done", labels=("protocol", "code"))
    said = CounterMetricFamily("cfdnode_stream_bytes", "of messages", labels=("protocol", "direction"))
    for protocol, each in traffic.protocols.items():
        opened.add_metric([protocol], each.opened)
        for status, count in each.refused.items():
            refused.add_metric((protocol, str(status)), count)
        for code, count in each.resets.items():
            resets.add_metric((protocol, str(code)), count)
        said.add_metric((protocol, "sent"), each.sent)
        said.add_metric((protocol, "received"), each.received)
    yield from (passed, opened, refused, resets, said)
    for name, what, counter in (
        ("cfdnode_handshakes_failed", "of those who dialled this node", counts.handshakes_failed),
        ("cfdnode_dials_failed", "addresses that were dialled in vain", counts.dials_failed),
        ("cfdnode_peer_offences", "connections ended because the peer broke the protocol", counts.offences),
    ):
        failed = CounterMetricFamily(name, what, labels=["cause"])
        for cause, count in counter.items():
            failed.add_metric([cause], count)
        yield failed
    yield CounterMetricFamily("cfdnode_connections_made", "in either direction", value=counts.connections)
    up = GaugeMetricFamily("cfdnode_connection_streams", "open now", labels=("peer", "dialled_by"))
    carried = CounterMetricFamily("cfdnode_connection_bytes", "encrypted", labels=("peer", "dialled_by", "direction"))
    latency = GaugeMetricFamily("cfdnode_ping_seconds", "of the newest ping", labels=("peer", "dialled_by"))
    for connection in filter(lambda each: each.usable, connections):  # at most one of a peer and direction
        who = (connection.peer.short, "us" if connection.dialled else "peer")
        up.add_metric(who, len(connection.substreams))
        carried.add_metric((*who, "sent"), connection.counts.sent)
        carried.add_metric((*who, "received"), connection.counts.received)
        if connection.latency is not None:
            latency.add_metric(who, connection.latency)
    yield from (up, carried, latency)


def exposition(collector: NodeCollector) -> bytes:
    """Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)
