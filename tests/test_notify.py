"""Notifications: to a real HTTP server by Apprise, to a real program; what is worth telling, once; nothing secret."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from node import notify
from node.clock import Clock
from node.config import NotifyTable, TakerConfig, load
from node.errors import ConfigError, NeedsUser
from node.eventstore.damaged import Salvaged
from node.eventstore.interface import EventStore
from node.eventstore.memory import MemoryBackend, run_memory_store
from node.health import ServiceHealth, State
from node.notify import EVENTS, HealthNews, Notification, Notifier, Program, Webhook, targets
from node.position.book import Positions, run_positions
from node.position.commands import place_order
from node.position.events import CODEC
from node.supervision import Service, Supervisor
from protocols.contract.terms import Role
from protocols.errors import WorldError
from tests.positions import PEER
from tests.setups import order
from tests.worlds import until

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # Apprise imports it

SECRET = "hunter2hunter2"
NOTE = Notification(kind="opened", severity="info", title="taker: it is open", body="order 00", at=1.5, order_id="00")


@define(eq=False)
class Hook:
    """A web server that keeps what it is told."""

    port: int = 0
    status: int = 200
    told: list[Any] = field(factory=list)

    @property
    def url(self) -> SecretStr:
        return SecretStr(f"json://user:{SECRET}@127.0.0.1:{self.port}/{SECRET}")


@contextmanager
def hook() -> Iterator[Hook]:
    this = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if this.status == 200:
                this.told.append(body)
            self.send_response(this.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        this.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield this
        finally:
            server.shutdown()
            thread.join()


# --- the targets ------------------------------------------------------------------------------------------------------


async def test_a_webhook_is_told_and_says_so_when_it_refuses(caplog: pytest.LogCaptureFixture) -> None:
    with hook() as server:
        (target,) = targets(NotifyTable(urls=(server.url,)))
        await target.send(NOTE)
        assert [(told["title"], told["message"], told["type"]) for told in server.told] == [
            (NOTE.title, "order 00", "info")
        ]
        server.status = 500
        with pytest.raises(WorldError, match=r"notify\.urls 1 \(json\) was not reached, or refused"):
            await target.send(NOTE)
        assert SECRET not in repr(target) + caplog.text


@pytest.mark.parametrize("url", ["nonesuch://h/x", "json://", "ntfy://:::"])
async def test_a_url_that_apprise_does_not_know_is_a_problem_and_not_shown(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(WorldError, match=r"knows|reached") as caught:
        await Webhook("notify.urls 1", SecretStr(url + SECRET)).send(NOTE)
    assert SECRET not in str(caught.value) + caplog.text


async def test_a_program_gets_json_on_its_standard_input(tmp_path: Path) -> None:
    code = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"
    await Program((sys.executable, "-c", code, str(tmp_path / "told"))).send(NOTE)
    told = json.loads((tmp_path / "told").read_text())
    assert told == {
        "kind": "opened",
        "severity": "info",
        "title": NOTE.title,
        "body": "order 00",
        "at": 1.5,
        "order_id": "00",
    }
    with pytest.raises(WorldError, match="ended with status 3"):
        await Program((sys.executable, "-c", "raise SystemExit(3)")).send(NOTE)
    with pytest.raises(WorldError, match="command /none: No such file"):
        await Program(("/none",)).send(NOTE)


def test_the_configuration_shows_no_url(tmp_path: Path) -> None:
    table = NotifyTable.model_validate({"urls": f"json://{SECRET}@h/x, ntfy://h/{SECRET}", "events": "health,alarm"})
    assert len(table.urls) == 2
    assert SECRET not in repr(table)
    path = tmp_path / "node.toml"
    path.write_text(f'network = "regtest"\n[notify]\nurls = ["{SECRET}"]\n')
    with pytest.raises(ConfigError) as caught:
        load(TakerConfig, paths=[path], environ={})
    assert SECRET not in str(caught.value)


# --- what is told of health -------------------------------------------------------------------------------------------


def record(state: State = State.HEALTHY, failures: int = 0) -> ServiceHealth:
    return ServiceHealth(name="chain", state=state, since=0.0, reason="no server", failures=failures, last_error="gone")


def test_health_is_told_once_it_lasts_and_again_when_it_is_over() -> None:
    news = HealthNews(quiet=60.0)
    down = record(State.RESTARTING)
    assert news.look([record()], 0) == []
    assert news.look([down], 10) == []
    assert news.look([down], 69) == []
    assert news.look([down], 70) == [("warning", "chain is restarting: no server")]
    assert news.look([down], 1000) == []
    assert news.look([record()], 1001) == []
    assert news.look([record()], 1061) == [("info", "chain is well again")]


def test_what_is_mended_at_once_is_told_only_when_it_happens_again_and_again() -> None:
    news = HealthNews(quiet=60.0)
    told = []
    for minute in range(60):
        told += news.look([record(State.RESTARTING, failures=minute + 1)], 60 * minute)
        told += news.look([record(failures=minute + 1)], 60 * minute + 30)
    assert told == [("warning", "chain failed 5 times within an hour: gone")]


def test_one_that_is_unwell_from_the_start_is_told_of() -> None:
    news = HealthNews(quiet=60.0)
    assert news.look([record(State.BLOCKED)], 0) == []
    assert len(news.look([record(State.BLOCKED)], 60)) == 1


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 100)), max_size=40))
def test_down_and_well_take_turns_and_only_once_they_lasted(looks: list[tuple[bool, int]]) -> None:
    news, now, told, changed, before = HealthNews(quiet=60.0), 0.0, [True], 0.0, True
    for well, seconds in looks:
        now += seconds
        changed = now if well is not before else changed
        before = well
        for severity, _ in news.look([record(State.HEALTHY if well else State.DEGRADED)], now):
            told.append(severity == "info")
            assert told[-1] is well
            assert now - changed >= 60.0
    assert all(this is not that for this, that in pairwise(told))


# --- the service ------------------------------------------------------------------------------------------------------


def test_each_event_that_is_told_of_exists() -> None:
    assert EVENTS.keys() <= CODEC.names.keys()


@define(eq=False)
class Told:
    """A node's store, positions and notifications, over a memory that outlives their lives."""

    supervisor: Supervisor
    store: Service[EventStore]
    positions: Service[Positions]
    notifications: Service[None]

    async def follow(self, table: NotifyTable) -> None:
        """Until every target has its cursor."""
        for target in targets(table):
            while await self.store.call(EventStore.cursor, f"notifications-{target.key}") is None:  # noqa: ASYNC110
                await trio.sleep(0.005)

    async def place(self, number: int) -> str:
        order_id = number.to_bytes(16, "big")
        await self.positions.until(State.HEALTHY)
        await self.positions.call(Positions.execute, order_id, place_order(order(), Role.TAKER, PEER[Role.TAKER]))
        return order_id.hex()


def node(table: NotifyTable, disk: MemoryBackend | None = None) -> Told:
    supervisor, disk = Supervisor(raise_bugs=True), disk or MemoryBackend()
    store: Service[EventStore] = supervisor.service("store", partial(run_memory_store, disk))
    positions: Service[Positions] = supervisor.service("positions", partial(run_positions, store), [store])
    notifier = Notifier(
        table, "taker on regtest", clock=Clock(), store=store, positions=positions, health=supervisor.health
    )
    return Told(supervisor, store, positions, supervisor.reporting("notifications", notifier.run, [store]))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_PAUSE", "LONGEST_PAUSE", "LOOK_EVERY"):
        monkeypatch.setattr(notify, name, 0.02)


@pytest.mark.usefixtures("hasty")
async def test_what_could_not_be_told_is_told_later_and_nothing_twice() -> None:
    with hook() as server:
        table = NotifyTable(urls=(server.url,), events=("ordered", "alarm"))
        this = node(table)
        async with trio.open_nursery() as nursery:
            await nursery.start(this.supervisor.run)
            await this.notifications.until(State.HEALTHY)
            await this.follow(table)
            server.status = 500
            first = await this.place(1)
            await this.notifications.until(State.DEGRADED)
            assert this.notifications.health.reason == "notify.urls 1 (json) was not reached, or refused"
            server.status = 200
            await this.notifications.until(State.HEALTHY)
            this.notifications.stop()
            await this.notifications.until(State.STOPPED)
            second = await this.place(2)
            this.notifications.start()
            await until(lambda: len(server.told) == 2)
            nursery.cancel_scope.cancel()
    assert [told["message"].splitlines()[0] for told in server.told] == [f"order {first}", f"order {second}"]
    assert server.told[0]["title"] == "taker on regtest: long 3500 BTCUSD was ordered"


@pytest.mark.usefixtures("hasty")
async def test_a_target_that_is_away_holds_up_no_other_and_a_new_one_hears_of_no_past() -> None:
    with hook() as server:
        nobody = SecretStr("json://127.0.0.1:1/")
        table = NotifyTable(urls=(nobody, server.url))
        this = node(table)
        this.notifications.stop()
        async with trio.open_nursery() as nursery:
            await nursery.start(this.supervisor.run)
            await this.place(1)
            this.notifications.start()
            await this.follow(table)
            second = await this.place(2)
            await until(lambda: server.told)
            await this.notifications.until(State.DEGRADED)
            nursery.cancel_scope.cancel()
    assert [told["message"].splitlines()[0] for told in server.told] == [f"order {second}"]


@pytest.mark.usefixtures("hasty")
async def test_a_service_that_goes_down_is_told_of_by_name_and_without_credentials() -> None:
    with hook() as server:
        this = node(NotifyTable(urls=(server.url,), events=("health",), quiet=0.0))

        async def run_chain(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await fails.wait()
            raise WorldError("gone", "ssl://user:pass@chain.example is gone")

        fails = trio.Event()
        this.supervisor.service("chain", run_chain)
        async with trio.open_nursery() as nursery:
            await nursery.start(this.supervisor.run)
            await until(lambda: any("chain is well again" in told["message"] for told in server.told))
            fails.set()
            # that it is restarting, or how often it failed if that went by too quickly
            await until(lambda: any("ssl://(secret)@chain.example is gone" in told["message"] for told in server.told))
            nursery.cancel_scope.cancel()
    assert not any("user:pass" in told["message"] for told in server.told)


@pytest.mark.usefixtures("hasty")
async def test_while_the_store_takes_nothing_health_is_told_all_the_same() -> None:
    with hook() as server:
        damage = NeedsUser("the store is damaged", "restore it")
        this = node(NotifyTable(urls=(server.url,), quiet=0.0), Salvaged(damage))
        this.positions.stop()
        async with trio.open_nursery() as nursery:
            await nursery.start(this.supervisor.run)
            await until(lambda: any("positions is stopped" in told["message"] for told in server.told))
            await this.notifications.until(State.DEGRADED)
            assert "not written to" in this.notifications.health.reason
            nursery.cancel_scope.cancel()
