"""The feed over real sockets, as a WebSocket and as server-sent events: all of it, then each change."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import trio
from attrs import Factory, define
from starlette.types import Receive, Scope, Send
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from node.clock import Clock
from node.config import HostPort
from node.projections import GONE_KEPT, Board
from node.supervision import Supervisor
from node.web import feed_api, sockets
from node.web.feed_api import Reader, feed_router
from node.web.server import create_app, serve
from node.web.sockets import bind_api

TOKEN = "t" * 43


@define
class Served:
    board: Board
    port: int
    clients: int = 0
    idle: trio.Event = Factory(trio.Event)
    """Set when a client is no longer served, and was the last one."""

    @asynccontextmanager
    async def reader(self, last: str = "", token: str = TOKEN, queue: int = 16) -> AsyncIterator[WebSocketConnection]:
        headers = [(b"Authorization", f"Bearer {token}".encode())]
        host, path = f"127.0.0.1:{self.port}", f"/api/v1/ws?last={last}"
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream, trio.open_nursery() as nursery:
            socket = await wrap_client_stream(
                nursery, stream, host, path, extra_headers=headers, message_queue_size=queue
            )
            yield socket
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    clock, board = Clock(), Board()
    router = feed_router(Supervisor(clock=clock), clock, board)
    with bind_api(HostPort("127.0.0.1", 0)) as listener, trio.fail_after(20):
        api, app = Served(board, listener.getsockname()[1]), create_app([router], token=TOKEN, sockets=[listener])

        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            api.clients += 1
            try:
                await app(scope, receive, send)
            finally:
                api.clients -= 1
                if not api.clients:
                    api.idle.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(serve, counting, [listener])
            yield api
            nursery.cancel_scope.cancel()


async def said(socket: WebSocketConnection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await socket.get_message())
    return found


async def test_a_websocket_tells_everything_and_then_each_change() -> None:
    async with served() as api:
        api.board.put_one("tip", "tip", {"height": 1})
        async with api.reader() as socket:
            state = await said(socket)
            assert (state["event"], state["data"]["topics"]["tip"]) == ("state", {"tip": {"height": 1}})
            api.board.put_one("tip", "tip", {"height": 2})
            change = await said(socket)
            assert change["data"] == {"topic": "tip", "key": "tip", "value": {"height": 2}}
            assert change["number"] > state["number"]
            await socket.send_message("nobody listens")
            api.board.put("tip", {})
            gone = await said(socket)
            assert gone["data"]["value"] is None
        api.board.put_one("tip", "tip", {"height": 3})
        async with api.reader(last=change["id"]) as socket:  # goes on where it was
            later = await said(socket)
            assert (later["event"], later["data"]["value"]) == ("change", {"height": 3})
        async with api.reader(last="1.0-1") as socket:  # of another start of the node
            assert (await said(socket))["event"] == "state"


async def test_a_websocket_needs_the_token() -> None:
    async with served() as api:
        with pytest.RaisesGroup(ConnectionRejected):
            async with api.reader(token="x"):
                pass


async def test_a_sign_of_life_comes_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_api, "HEARTBEAT", 0.05)
    async with served() as api, api.reader() as socket:
        await said(socket)
        assert [(await said(socket))["event"] for _ in range(3)] == ["beat"] * 3


async def test_a_slow_client_is_dropped_and_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes nothing, while more comes than any buffer on the way holds; another one is served meanwhile."""
    monkeypatch.setattr(sockets, "TAKEN_WITHIN", 0.3)
    async with served() as api, await trio.open_tcp_stream("127.0.0.1", api.port) as slow:
        lines = ("GET /api/v1/feed HTTP/1.1", f"Host: 127.0.0.1:{api.port}", f"Authorization: Bearer {TOKEN}", "", "")
        await slow.send_all("\r\n".join(lines).encode())
        assert await slow.receive_some(1000)
        async with api.reader(queue=1) as stuck:
            async with api.reader() as quick:
                await said(quick)
                for number in range(12):
                    api.board.put_one("tip", "tip", [number, "x" * 900_000])
                    assert (await said(quick))["data"]["value"][0] == number
            await api.idle.wait()
            with pytest.raises(ConnectionClosed):
                for _ in range(12):
                    await stuck.get_message()


def test_a_reader_who_was_away_for_long_gets_the_whole_state() -> None:
    """Of what is gone only so much is remembered."""
    board, clock = Board(), Clock()
    board.put_one("tip", "tip", 0)
    early = Reader(board, clock, "s", "s-1")
    assert early.due() == []
    for number in range(3 * GONE_KEPT):
        board.put("offers", {str(number): number})
    assert [piece.event for piece in Reader(board, clock, "s", "s-1").due()] == ["state"]
    assert [piece.event for piece in early.due()] == ["state"]
    known = board.number
    board.put("offers", {"new": 1})
    changes = Reader(board, clock, "s", f"s-{known}").due()
    assert [piece.data["key"] for piece in changes] == ["new", str(3 * GONE_KEPT - 1)]
    assert len(board.since(0)) <= 2 * GONE_KEPT + 2


@pytest.mark.parametrize("last", ["", "s", "s-", "s-x", "s--1", "t-1", "s-2", "s-99999999999999999999", "s-²"])
def test_an_id_that_says_nothing_gets_the_whole_state(last: str) -> None:
    board = Board()
    board.put_one("tip", "tip", 0)
    assert [piece.event for piece in Reader(board, Clock(), "s", last).due()] == ["state"]


async def test_server_sent_events_go_on_where_a_client_was() -> None:
    async with served() as api:
        api.board.put_one("tip", "tip", 1)
        first = await events_of(api, "", 1)
        assert first[0]["event"] == "state"
        api.board.put_one("tip", "tip", 2)
        (later,) = await events_of(api, first[0]["id"], 1)
        assert (later["event"], json.loads(later["data"])["value"]) == ("change", 2)
        assert (await events_of(api, "of another start-1", 1))[0]["event"] == "state"


async def events_of(api: Served, last: str, count: int) -> list[dict[str, str]]:
    """The first events that a client is sent that got `last` last."""
    async with await trio.open_tcp_stream("127.0.0.1", api.port) as stream:
        lines = (
            "GET /api/v1/feed HTTP/1.1",
            f"Host: 127.0.0.1:{api.port}",
            f"Authorization: Bearer {TOKEN}",
            f"Last-Event-ID: {last}",
        )
        await stream.send_all("\r\n".join((*lines, "", "")).encode())
        text = b""
        while text.count(b"\ndata: ") < count or not text.endswith(b"\n\n\r\n"):
            text += await stream.receive_some()
    blocks = [block for block in text.decode().split("\n\n") if "data: " in block]
    pairs = [[line.split(": ", 1) for line in block.splitlines() if ": " in line] for block in blocks]
    return [dict(each) for each in pairs]


async def test_a_client_that_signs_out_is_told_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served() as api:
        own = f"http://127.0.0.1:{api.port}"
        async with httpx2.AsyncClient(base_url=own) as client:
            await client.post("/api/v1/session", json={"token": TOKEN})
            name, secret = next(iter(client.cookies.items()))
            headers = [(b"Cookie", f"{name}={secret}".encode()), (b"Origin", own.encode())]
            async with await trio.open_tcp_stream("127.0.0.1", api.port) as stream, trio.open_nursery() as nursery:
                socket = await wrap_client_stream(
                    nursery, stream, f"127.0.0.1:{api.port}", "/api/v1/ws", extra_headers=headers
                )
                await said(socket)
                await client.delete("/api/v1/session")
                api.board.put_one("tip", "tip", "secret")
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.get_message()
                assert closed.value.reason is not None
                assert closed.value.reason.code == 1008
                nursery.cancel_scope.cancel()
