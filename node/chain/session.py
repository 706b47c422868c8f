"""JSON-RPC, one object a line, over one stream to an Electrum server that is not trusted.

Requests are pipelined and answered in any order. Whatever is malformed, too long or too late for a ping ends the
session; everyone who waits then gets `ServerLost` with the one reason.
"""

import json
from collections.abc import Callable
from decimal import Decimal
from itertools import count
from typing import Any, NoReturn

import trio
from attrs import Factory, define

from protocols.errors import WorldError

REQUEST_TIMEOUT = 30.0
MAX_REPLY = 16 * 2**20
"""Bytes of one line: twice the largest transaction that a block can hold, in hex."""
IN_FLIGHT = 200
"""Requests that wait for their answer at one time; more of them wait for their turn."""


class ServerLost(WorldError, trio.BrokenResourceError):
    """The connection to the Electrum server is over; the sentence says why."""

    def __init__(self, sentence: str) -> None:
        super().__init__("server_lost", sentence)


class ServerError(WorldError):
    """The server answered a request with an error; `message` is its own text, cut and made printable."""

    def __init__(self, server: str, method: str, message: str) -> None:
        super().__init__("server_error", f"electrum server {server} refused {method}: {message}")
        self.message = message


@define(eq=False)
class _Call:
    method: str
    arrived: Callable[[object], object] | None = None
    done: trio.Event = Factory(trio.Event)
    result: object = None
    error: str | None = None


class Session:
    """The requests and notifications of one connection. `server` names it in every error."""

    def __init__(
        self,
        server: str,
        stream: trio.abc.Stream,
        *,
        notified: Callable[[str, list[object]], object],
        heard: Callable[[], object],
        ended: Callable[[], object],
    ) -> None:
        self.server = server
        self._stream = stream
        self._notified = notified
        self._heard = heard
        self._ended = ended
        self._over: str | None = None
        self._ids = count()
        self._calls: dict[int, _Call] = {}
        self._in_flight = trio.Semaphore(IN_FLIGHT)
        self._outgoing = bytearray()
        self._wake_writer = trio.Event()

    async def request(self, method: str, *params: object, arrived: Callable[[object], object] | None = None) -> object:
        """The server's answer. Raises `ServerError` if it is an error, `WorldError` ``server_slow`` after 30 s, and
        `ServerLost` once the session is over.

        `arrived` gets the answer before the next line is looked at, whereas who waits here may run after
        notifications that the server sent later. It must not raise.
        """
        with trio.move_on_after(REQUEST_TIMEOUT):
            async with self._in_flight:
                self.check()
                number, call = next(self._ids), _Call(method, arrived)
                self._calls[number] = call
                try:
                    self._send(number, method, params)
                    await call.done.wait()
                finally:
                    del self._calls[number]
                self.check()
                if call.error is not None:
                    raise ServerError(self.server, method, call.error)
                return call.result
        raise WorldError(
            "server_slow", f"electrum server {self.server} did not answer {method} in {REQUEST_TIMEOUT:g} seconds"
        )

    def tell(self, method: str, *params: object) -> None:
        """Send a request whose answer nobody needs. Never waits."""
        if self._over is None:
            self._send(next(self._ids), method, params)

    def check(self) -> None:
        """Raise `ServerLost` if the session is over."""
        if self._over is not None:
            raise self.lost()

    def lost(self) -> ServerLost:
        return ServerLost(self._over or f"electrum server {self.server} is not connected")

    def end(self, sentence: str) -> None:
        """End the session; only the first reason counts."""
        if self._over is None:
            self._over = sentence
            for call in self._calls.values():
                call.done.set()
            self._ended()

    def fail(self, what: str) -> None:
        """End the session because of what the server is or did."""
        self.end(f"electrum server {self.server} {what}")

    def lied(self, what: str) -> ServerLost:
        """The same, with the error for a caller who cannot go on: ``raise session.lied("…")``."""
        self.fail(what)
        return self.lost()

    def items(self, answer: object, what: str) -> list[object]:
        """The list that an answer must be."""
        if not isinstance(answer, list):
            raise self.lied(f"sent a malformed {what}")
        return answer

    def unhex(self, answer: object, what: str, size: int | None = None) -> bytes:
        """The bytes, `size` of them, whose hex an answer must be."""
        try:
            found = bytes.fromhex(answer) if isinstance(answer, str) else None
        except ValueError:
            found = None
        if found is None or (size is not None and len(found) != size):
            raise self.lied(f"sent a malformed {what}")
        return found

    async def run(self) -> None:
        """Read and write until the session is over."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.fail("is no longer needed: this node ended the connection")

    async def _write(self) -> None:
        try:
            while True:
                await self._wake_writer.wait()
                self._wake_writer = trio.Event()
                data, self._outgoing = bytes(self._outgoing), bytearray()
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.fail(f"is gone: {error.__cause__ or error}")

    async def _read(self) -> None:
        buffer, searched = bytearray(), 0
        try:
            while self._over is None:
                data = await self._stream.receive_some()
                if not data:
                    self.fail("closed the connection")
                    return
                self._heard()
                buffer += data
                while (end := buffer.find(b"\n", searched)) >= 0 and self._over is None:
                    self._line(bytes(buffer[:end]))
                    del buffer[: end + 1]
                    searched = 0
                searched = len(buffer)
                if searched > MAX_REPLY:
                    self.fail(f"sent a line of more than {MAX_REPLY} bytes")
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.fail(f"is gone: {error.__cause__ or error}")

    def _line(self, line: bytes) -> None:
        try:
            message = json.loads(line, parse_float=Decimal, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            self.fail("sent a line that is not JSON")
            return
        match message:
            case {"method": str(method), "params": list(params)}:
                self._notified(method, params)
            case {"id": int(number)} if number in self._calls:
                call = self._calls[number]
                if message.get("error") is not None:
                    call.error = _message(message["error"])
                call.result = message.get("result")
                if call.arrived is not None and call.error is None:
                    call.arrived(call.result)
                call.done.set()
            case {"id": _}:
                pass  # the answer to a request that nobody waits for any more
            case _:
                self.fail("sent a line that is no answer and no notification")

    def _send(self, number: int, method: str, params: tuple[object, ...]) -> None:
        request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        self._outgoing += json.dumps(request).encode() + b"\n"
        self._wake_writer.set()


def _no_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _message(error: Any) -> str:
    text = error["message"] if isinstance(error, dict) and "message" in error else error
    return printable(str(text))


def printable(text: str, limit: int = 500) -> str:
    """Words of a stranger, safe to log and to show: one line, no control characters, not too long."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "�" for c in line[:limit])
