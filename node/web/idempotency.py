"""``Idempotency-Key``: a request that changes something and carries one is carried out once, however often it comes.

The key goes to disk before the request begins, its answer before it is given; both are kept for a day, over restarts.
The same request again gets the same answer, whatever it was; another request under the same key is refused. One that
was begun and never answered, because the node ended, is not begun again: nobody knows how far it came, and the user has
to look.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import asdict, define, field, frozen
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node import files
from node.clock import Clock
from node.web.problems import problem

HEADER = b"idempotency-key"
KEY = re.compile(r"[!-~]{1,200}")
KEPT_FOR = 86_400.0
"""Seconds."""
MOST = 10_000
"""Keys; of further ones the oldest are forgotten."""
CHANGING = ("POST", "PUT", "PATCH", "DELETE")


@frozen
class Answer:
    """`body` is what was sent, a text."""

    status: int
    kind: str
    body: str


@frozen
class Asked:
    """A request under a key: the hash of what it asks, when it began (seconds since 1970), its answer once there is
    one."""

    key: str
    asks: str
    at: float
    answer: Answer | None = None


@define(eq=False)
class Book:
    """The keys of one node, in a file of JSON lines; the last line of a key counts."""

    path: Path
    clock: Clock
    _known: dict[str, Asked] | None = None
    _turn: trio.Lock = field(factory=trio.Lock)

    async def find(self, key: str) -> Asked | None:
        async with self._turn:
            if self._known is None:
                self._known = await trio.to_thread.run_sync(_read, self.path)
                await self._forget(self._known, 0)
        found = self._known.get(key)
        return found if found is not None and found.at > self.clock.now() - KEPT_FOR else None

    async def note(self, asked: Asked) -> None:
        """On disk when this returns. Raises `OSError`."""
        assert self._known is not None, "it was looked for first"
        async with self._turn:
            await trio.to_thread.run_sync(_append, self.path, asked)
            self._known.pop(asked.key, None)
            self._known[asked.key] = asked
            if len(self._known) > MOST:
                await self._forget(self._known, MOST // 10)

    async def _forget(self, known: dict[str, Asked], oldest: int) -> None:
        """What is too old, and so many of the rest; written anew if anything is."""
        since = self.clock.now() - KEPT_FOR
        gone = [key for number, (key, each) in enumerate(known.items()) if each.at <= since or number < oldest]
        for key in gone:
            del known[key]
        if gone:
            text = "".join(_line(each) for each in known.values())
            await trio.to_thread.run_sync(files.write_private, self.path, text)


class Idempotent:
    """The layer that sees to it."""

    def __init__(self, app: ASGIApp, book: Book) -> None:
        self._app = app
        self._book = book
        self._under_way: dict[str, trio.Event] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        keys = [value for name, value in scope.get("headers", ()) if name == HEADER]
        if scope["type"] != "http" or scope["method"] not in CHANGING or not keys:
            await self._app(scope, receive, send)
            return
        key = keys[0].decode("latin-1")
        if len(keys) > 1 or not KEY.fullmatch(key):
            sentence = "Idempotency-Key: allowed is one, of 1 to 200 printable characters without spaces"
            await problem(422, "bad_idempotency_key", sentence, field="Idempotency-Key")(scope, receive, send)
            return
        try:
            body = await _body(receive)
        except HTTPException as error:
            await problem(error.status_code, "body_too_large", str(error.detail))(scope, receive, send)
            return
        while (event := self._under_way.get(key)) is not None:
            await event.wait()
        self._under_way[key] = trio.Event()
        try:
            await self._once(key, _asks(scope, body), body, (scope, receive, send))
        finally:
            self._under_way.pop(key).set()

    async def _once(self, key: str, asks: str, body: bytes, call: tuple[Scope, Receive, Send]) -> None:
        scope, receive, send = call
        try:
            known = await self._book.find(key)
            if known is not None:
                await _again(known, asks)(scope, receive, send)
                return
            asked = Asked(key, asks, self._book.clock.now())
            await self._book.note(asked)
        except OSError as error:
            sentence = f"the idempotency key cannot be kept: {error.strerror}; nothing was done"
            await problem(503, "not_written", sentence)(scope, receive, send)
            return
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._app(scope, partial(_given, [body], receive), keep)
        answer = _answer(messages)
        with trio.CancelScope(shield=True):  # the client may be gone: what was done stays on record
            await self._noted(asked, answer)
        for message in messages:
            await send(message)

    async def _noted(self, asked: Asked, answer: Answer) -> None:
        try:
            await self._book.note(Asked(asked.key, asked.asks, asked.at, answer))
        except OSError:
            return  # it stands as begun, and is not begun again


def _again(known: Asked, asks: str) -> Response:
    if known.asks != asks:
        return problem(
            422,
            "idempotency_key_used",
            f"Idempotency-Key: {known.key} was given with another request; a key is for one request",
            field="Idempotency-Key",
        )
    if known.answer is None:
        return problem(
            409,
            "outcome_unknown",
            "the node ended while it carried this request out: look at what became of it before asking anew",
        )
    headers = {"Idempotent-Replayed": "true"}
    return Response(known.answer.body, known.answer.status, headers, media_type=known.answer.kind or None)


def _answer(messages: list[Message]) -> Answer:
    start = messages[0]
    kind = dict(start["headers"]).get(b"content-type", b"").decode("latin-1")
    body = b"".join(message.get("body", b"") for message in messages[1:])
    return Answer(start["status"], kind, body.decode(errors="replace"))


def _asks(scope: Scope, body: bytes) -> str:
    parts = (scope["method"].encode(), scope["path"].encode(), scope["query_string"], body)
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return bytes(body)


async def _given(bodies: list[bytes], receive: Receive) -> Message:
    """The body that was read already, and then what comes."""
    if bodies:
        return {"type": "http.request", "body": bodies.pop(), "more_body": False}
    return await receive()


def _line(asked: Asked) -> str:
    return json.dumps(asdict(asked), separators=(",", ":")) + "\n"


def _append(path: Path, asked: Asked) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with open(descriptor, "a", encoding="utf-8") as file:
        file.write("\n" + _line(asked))  # a line that was cut off swallows none
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Asked]:
    """What can be read: a line that was cut off by the end of the node is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    known: dict[str, Asked] = {}
    for line in lines:
        try:
            said: dict[str, Any] = json.loads(line)
            answer = Answer(**said.pop("answer")) if said.get("answer") else None
            asked = Asked(**{**said, "answer": answer})
        except (ValueError, TypeError, AttributeError):
            continue
        known.pop(asked.key, None)
        known[asked.key] = asked
    return known
