"""``GET /api/v1/feed``: what people see of a node as server-sent events, live.

On connecting comes an event `state`: everything, by topic and key. Then an event `change` for each value that changed:
topic, key, value (null when there is nothing any more). Each event's id is ``<start of the node>-<number>``; a client
that sends the last one as ``Last-Event-ID`` and missed nothing goes on from there, any other gets the whole state.
Nothing is queued: a slow client gets the newest values, and one that takes nothing for 30 s is dropped. The services'
health is taken from the supervisor itself, so this needs no service but `api`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import trio
from fastapi import APIRouter, Header
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from node.core import Core
from node.projections import Board, follow_health

HEARTBEAT = 15.0
TAKEN_WITHIN = 30.0
"""Seconds in which a client has to take an event."""
RETRY = 2000
"""Milliseconds after which a client that was cut off is asked to come back."""


def feed_router(core: Core, board: Board) -> APIRouter:
    router = APIRouter(prefix="/api/v1")
    start = f"{core.clock.now():.6f}"

    @router.get("/feed")
    async def feed(last_event_id: Annotated[str | None, Header()] = None) -> Response:
        """The node's state and each change of it, as server-sent events."""
        return Feed(core, board, start, last_event_id or "")

    return router


class Feed(Response):
    """One client's feed, until it goes or stops taking."""

    media_type = "text/event-stream"

    def __init__(self, core: Core, board: Board, start: str, last: str) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._core = core
        self._board = board
        self._start = start
        self._last = last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_health, self._core, self._board)
            nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._feed(send)
            nursery.cancel_scope.cancel()

    async def _feed(self, send: Send) -> None:
        """Returns when the client took nothing for too long."""
        await trio.lowlevel.checkpoint()  # health is on the board then
        number = self._board.number
        text = f"retry: {RETRY}\n\n"
        if self._last != self._id(number):
            text += self._event("state", number, {"time": self._core.clock.now(), "topics": self._board.topics()})
        while True:
            with trio.move_on_after(TAKEN_WITHIN) as patience:
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            if patience.cancelled_caught:
                return
            text = ": still here\n\n"
            with trio.move_on_after(HEARTBEAT):
                await self._board.beyond(number)
            if changed := self._board.since(number):
                text = "".join(
                    self._event("change", each.number, {"topic": each.topic, "key": each.key, "value": each.value})
                    for each in changed
                )
                number = changed[-1].number

    def _id(self, number: int) -> str:
        return f"{self._start}-{number}"

    def _event(self, kind: str, number: int, data: dict[str, Any]) -> str:
        return f"event: {kind}\nid: {self._id(number)}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
