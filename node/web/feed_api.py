"""What people see of a node, live: ``GET /api/v1/feed`` as server-sent events, ``GET /api/v1/ws`` as a WebSocket.

On connecting comes an event `state`: everything, by topic and key. Then an event `change` for each value that changed:
topic, key, value (null when there is nothing any more). Each event's id is ``<start of the node>-<number>``; a client
that gives the last one that it got (``Last-Event-ID``, or ``?last=`` of the WebSocket) gets what changed since, or the
whole state where nobody can say any more. After 15 s without a change comes a sign of life.

Nothing is queued: a slow client gets the newest values, and one that takes nothing is dropped (`TAKEN_WITHIN` of
`node.web.sockets`). The services' health is taken from the supervisor itself, so this needs no service but `api`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

import trio
from attrs import frozen
from fastapi import APIRouter, Header, Query, WebSocket
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from node.clock import Clock
from node.projections import Board, follow_health
from node.supervision import Supervisor

HEARTBEAT = 15.0
RETRY = 2000
"""Milliseconds after which a client that was cut off is asked to come back."""
SIGNED_OUT = 1008
"""The code of a WebSocket that we close."""


@frozen
class Piece:
    """Of what a client is sent."""

    event: str
    id: str
    number: int
    data: dict[str, Any]


class Reader:
    """One client's way through the board."""

    def __init__(self, board: Board, clock: Clock, start: str, last: str = "") -> None:
        self._board = board
        self._clock = clock
        self._start = start
        self._number = self._known(last)

    def due(self) -> list[Piece]:
        """What the client does not know yet."""
        board = self._board
        if self._number is None or self._number < board.forgotten:
            self._number = board.number
            return [self._piece("state", board.number, {"time": self._clock.now(), "topics": board.topics()})]
        changed = board.since(self._number)
        self._number = board.number
        return [
            self._piece("change", each.number, {"topic": each.topic, "key": each.key, "value": each.value})
            for each in changed
        ]

    async def wait(self) -> None:
        """Until there is something, and at most `HEARTBEAT`."""
        assert self._number is not None, "the first pieces are due at once"
        with trio.move_on_after(HEARTBEAT):
            await self._board.beyond(self._number)

    def _known(self, last: str) -> int | None:
        start, _, number = last.rpartition("-")
        if start != self._start or not number.isdecimal() or len(number) > 15:
            return None
        return int(number) if int(number) <= self._board.number else None

    def _piece(self, event: str, number: int, data: dict[str, Any]) -> Piece:
        return Piece(event, f"{self._start}-{number}", number, data)


def feed_router(supervisor: Supervisor, clock: Clock, board: Board) -> APIRouter:
    router = APIRouter(prefix="/api/v1")
    start = f"{clock.now():.6f}"

    @router.get(
        "/feed",
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {}}, "description": "events `state` and `change`"}},
    )
    async def feed(last_event_id: Annotated[str | None, Header()] = None) -> Response:
        """The node's state and each change of it, as server-sent events."""
        return Feed(supervisor, clock, board, Reader(board, clock, start, last_event_id or ""))

    @router.websocket("/ws")
    async def live(socket: WebSocket, last: Annotated[str, Query()] = "") -> None:
        """The same as JSON texts: `event` (state, change, beat), `id`, `number`, `data`."""
        await socket.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_health, supervisor, clock, board)
            nursery.start_soon(_until_gone, socket.receive, nursery.cancel_scope)
            await _speak(socket, clock, Reader(board, clock, start, last))
            nursery.cancel_scope.cancel()

    return router


async def _speak(socket: WebSocket, clock: Clock, reader: Reader) -> None:
    """Returns when the client is signed out."""
    await trio.lowlevel.checkpoint()  # health is on the board then
    pieces = reader.due()
    while True:
        if await socket.app.state.access.refusal(socket.scope) is not None:
            await socket.close(SIGNED_OUT, "signed out")
            return
        texts = [{"event": each.event, "id": each.id, "number": each.number, "data": each.data} for each in pieces] or [
            {"event": "beat", "data": {"time": clock.now()}}
        ]
        try:
            for text in texts:
                await socket.send_text(json.dumps(text, separators=(",", ":")))
        except (WebSocketDisconnect, RuntimeError):  # it has just gone
            return
        await reader.wait()
        pieces = reader.due()


class Feed(Response):
    """One client's server-sent events, until it goes or stops taking."""

    media_type = "text/event-stream"

    def __init__(self, supervisor: Supervisor, clock: Clock, board: Board, reader: Reader) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._supervisor = supervisor
        self._clock = clock
        self._board = board
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_health, self._supervisor, self._clock, self._board)
            nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._feed(send)

    async def _feed(self, send: Send) -> NoReturn:
        await trio.lowlevel.checkpoint()  # health is on the board then
        text = f"retry: {RETRY}\n\n" + "".join(map(_event, self._reader.due()))
        while True:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await self._reader.wait()
            text = "".join(map(_event, self._reader.due())) or ": still here\n\n"


def _event(piece: Piece) -> str:
    return f"event: {piece.event}\nid: {piece.id}\ndata: {json.dumps(piece.data, separators=(',', ':'))}\n\n"


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    """What a client says is not listened to."""
    while (await receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
        pass
    scope.cancel()
