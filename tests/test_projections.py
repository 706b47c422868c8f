"""What people see of a node while its parts are down: the last known state with its age, and the live feed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from starlette.types import Message, Receive, Scope, Send

from node.clock import Clock
from node.projections import Board, Kept
from node.web.counted import Counted, Requests
from protocols.errors import WorldError
from tests.test_node import Api, maker_on
from tests.worlds import running_world


def test_a_board_tells_what_changed_after_a_number() -> None:
    board = Board()
    board.put("offers", {"a": 1, "b": 2})
    seen = board.number
    board.put("offers", {"b": 2, "c": 3})
    assert [(each.key, each.value) for each in board.since(seen)] == [("c", 3), ("a", None)]
    assert board.topics() == {"offers": {"b": 2, "c": 3}}
    assert board.since(board.number) == []


def test_a_reader_that_was_slow_gets_the_newest_value_once() -> None:
    board = Board()
    for number in range(1000):
        board.put_one("tip", "tip", number)
    assert [each.value for each in board.since(0)] == [999]


def test_a_value_that_stays_the_same_is_no_change() -> None:
    board = Board()
    board.put_one("tip", "tip", {"height": 7})
    board.put_one("tip", "tip", {"height": 7})
    assert board.number == 1


async def test_what_was_known_is_kept_with_its_age_and_the_reason(autojump_clock: trio.testing.MockClock) -> None:
    answers: list[int | Exception] = [WorldError("gone", "not yet"), 5, WorldError("gone", "it is gone")]

    async def ask() -> int:
        if not answers:
            await trio.sleep_forever()
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    kept = Kept(Clock(wall=trio.current_time), ask)
    with pytest.raises(WorldError, match="not yet"):
        await kept.read()
    good = await kept.read()
    await trio.sleep(60)
    stale = await kept.read()
    assert (stale.value, stale.as_of, stale.reason) == (5, good.as_of, "it is gone")
    assert stale.age(trio.current_time())["age"] == 60
    assert (await kept.read()).reason == "no answer within 5 s"  # one that hangs holds nobody up


async def test_an_answer_that_its_part_doubts_is_stale(autojump_clock: trio.testing.MockClock) -> None:
    async def ask() -> int:
        return 5

    doubts: list[str | None] = ["the chain is away", None]
    kept = Kept(Clock(wall=trio.current_time), ask, doubt=doubts.pop)
    assert (await kept.read()).reason is None
    assert (await kept.read()).age(trio.current_time())["stale"] is True
    assert kept.last is not None
    assert (kept.last.value, kept.last.reason) == (5, "the chain is away")


async def test_answers_are_counted_by_route_and_not_by_path() -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None: ...

    requests = Requests()
    for path in ("/a", "/b"):
        await Counted(app, requests)({"type": "http", "method": "GET", "path": path}, receive, send)
    assert requests == {("GET", "none", 404): 2}


class FeedReader:
    """A client of the feed on a socket of its own."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._rest = b""
        self.head = b""

    async def next(self) -> tuple[str, Any]:
        """The next event's kind and data. Each is one line of data, and comes in one piece of the body."""
        kind = ""
        while True:
            while b"\n" not in self._rest:
                data = await self._stream.receive_some()
                assert data, "the feed ended"
                self._rest += data
            line, self._rest = self._rest.split(b"\n", 1)
            if line.startswith(b"event: "):
                kind = line.removeprefix(b"event: ").decode()
            elif line.startswith(b"data: "):
                return kind, json.loads(line.removeprefix(b"data: "))
            self.head += line if not kind else b""


@asynccontextmanager
async def feed_of(api: Api, *headers: str) -> AsyncIterator[FeedReader]:
    host, port = api.http.base_url.host, api.http.base_url.port
    assert port is not None
    async with await trio.open_tcp_stream(host, port) as stream:
        lines = (
            "GET /api/v1/feed HTTP/1.1",
            f"Host: {host}:{port}",
            f"Authorization: {api.http.headers['authorization']}",
            *headers,
        )
        await stream.send_all("\r\n".join((*lines, "", "")).encode())
        yield FeedReader(stream)


async def test_parts_that_are_down(tmp_path: Path) -> None:
    """Over real sockets: every route goes on answering, and the feed and the metrics show what is down."""
    async with (
        running_world(tmp_path / "world", hour=2) as world,
        maker_on(world.config, tmp_path / "maker") as (maker, _),
    ):
        await maker.healthy()
        whole = await maker.get("/wallet")
        await maker.get("/oracle")
        assert whole["stale"] is False
        assert await maker.get("/positions") == []
        services = {each.name: each for each in maker.core.supervisor.services}
        measured = (await maker.http.get(str(maker.http.base_url).replace("/api/v1/", "/metrics"))).text
        for name in ("store_events_total", "store_bytes_total", "backup_positions", "backup_bytes", "tip_age_seconds"):
            assert f"\ncfdnode_{name} " in measured

        async def doubted() -> bool:
            services["wallet"].degraded("the chain is away")  # until its next sync
            return bool((await maker.get("/wallet"))["reason"] == "the chain is away")

        await maker.sees(doubted)
        services["wallet"].recovered()
        whole = await maker.get("/wallet")
        async with feed_of(maker) as feed:
            kind, state = await feed.next()
            assert kind == "state"
            assert b"text/event-stream" in feed.head
            assert state["topics"]["health"]["wallet"]["state"] == "healthy"
            for name in services.keys() - {"api"}:
                services[name].stop()
            stopped = set[str]()
            with trio.fail_after(20):
                while not {"wallet", "store", "projections", "metrics"} <= stopped:
                    _, change = await feed.next()
                    if change.get("topic") == "health" and change["value"]["state"] == "stopped":
                        stopped.add(change["key"])
        stale = await maker.get("/wallet")
        await maker.get("/oracle")
        assert (stale["confirmed"], stale["as_of"], stale["stale"]) == (whole["confirmed"], whole["as_of"], True)
        assert "wallet" in stale["reason"]
        assert await maker.get("/positions") == []
        for path in ("/prices", "/offers", "/health", "/maker", "/oracle"):
            await maker.get(path)
        metrics = (await maker.http.get(str(maker.http.base_url).replace("/api/v1/", "/metrics"))).text
        assert 'cfdnode_service_state{service="wallet",state="stopped"} 1.0' in metrics
        assert 'cfdnode_api_requests_total{method="GET",route="/api/v1/wallet",status="200"}' in metrics
        async with feed_of(maker, "Last-Event-ID: another life-7") as feed:
            kind, state = await feed.next()
            assert (kind, state["topics"]["health"]["wallet"]["state"]) == ("state", "stopped")
