"""What is done with each kind, and how long it takes. Seconds, bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import anyio.abc

from scripts.benches._transport import HOST, Address, Kind, Link, Talk

MESSAGE = b"e" + bytes(99)
"""Of a short dialogue: one such from each side."""
CHUNK = bytes(256 * 1024)
PIECE = 64 * 1024
"""What gRPC's performance guide advises for messages of a stream that carries much: 16 to 64 KiB."""
TASKS = 16
"""Dialogues at once where dialogues a second are counted."""
PINGS = 200
_LENGTH = 8
_DELAY = 0.05


async def serve(talk: Talk) -> None:
    """The server's side: ``e`` and what follows comes back; ``s`` and a length takes as much and answers one byte."""
    data = await talk.receive()
    if data[:1] == b"s":
        await _sink(talk, data[1:])
    else:
        while data:
            await talk.send(data)
            data = await talk.receive()
    await talk.aclose()


async def _sink(talk: Talk, data: bytes) -> None:
    while len(data) < _LENGTH:
        data += await talk.receive()
    left = int.from_bytes(data[:_LENGTH], "big") - (len(data) - _LENGTH)
    while left:
        left -= len(await talk.receive())
    await talk.send(b"k")


async def exchange(talk: Talk, message: bytes = MESSAGE) -> None:
    """Send it, and receive as much."""
    await talk.send(message)
    left = len(message)
    while left:
        data = await talk.receive()
        if not data:
            raise EOFError("the server ended the stream")
        left -= len(data)


async def dialogue(link: Link) -> None:
    talk = await link.open()
    await exchange(talk)
    await talk.aclose()


async def bulk(link: Link, size: int, step: int = len(CHUNK)) -> None:
    talk = await link.open()
    await talk.send(b"s" + size.to_bytes(_LENGTH, "big"))
    piece = CHUNK[:step]
    for start in range(0, size, step):
        await talk.send(piece[: size - start])
    while not await talk.receive():
        raise EOFError("the server ended the stream")
    await talk.aclose()


@contextmanager
def _timed(into: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    into.append(time.perf_counter() - start)


class Client:
    """One link that stays, and the measurements by name; each returns numbers by name."""

    def __init__(self, kind: Kind, address: Address) -> None:
        self._kind, self._address = kind, address
        self._link: Link | None = None
        self._held: list[Link | Talk] = []

    async def link(self) -> Link:
        if self._link is None:
            self._link = await self._kind.connect(self._address)
        return self._link

    async def measure(self, name: str, count: int) -> dict[str, float]:
        measures: dict[str, Callable[[int], Awaitable[dict[str, float]]]] = {
            "connect": self.connect,
            "first_answer": self.first_answer,
            "dialogues": self.dialogues,
            "concurrent": self.concurrent,
            "bulk": self.bulk,
            "bulk_in_pieces": self.bulk_in_pieces,
            "ping_under_load": self.ping_under_load,
            "hold_connections": self.hold_connections,
            "hold_streams": self.hold_streams,
            "let_go": self.let_go,
            "round_trips": self.round_trips,
        }
        return await measures[name](count)

    async def connect(self, count: int) -> dict[str, float]:
        """From nothing to a connection on which a stream can be opened."""
        seconds: list[float] = []
        for _ in range(count):
            with _timed(seconds):
                link = await self._kind.connect(self._address)
            await link.aclose()
        return {"median": statistics.median(seconds)}

    async def first_answer(self, count: int) -> dict[str, float]:
        """From opening a stream to the whole of a short answer, one after another."""
        link = await self.link()
        await dialogue(link)
        seconds: list[float] = []
        for _ in range(count):
            with _timed(seconds):
                talk = await link.open()
                await exchange(talk)
            await talk.aclose()
        return {"p50": _quantile(seconds, 0.5), "p99": _quantile(seconds, 0.99)}

    async def dialogues(self, count: int) -> dict[str, float]:
        """A second, several at once."""
        link = await self.link()
        await dialogue(link)

        async def some() -> None:
            for _ in range(count // TASKS):
                await dialogue(link)

        seconds: list[float] = []
        with _timed(seconds):
            async with anyio.create_task_group() as group:
                for _ in range(TASKS):
                    group.start_soon(some)
        done = count // TASKS * TASKS
        return {"rate": done / seconds[0], "amount": done}

    async def concurrent(self, count: int) -> dict[str, float]:
        """So many streams at once: each opened and answered, then all asked once more while all are open."""
        link = await self.link()
        seconds: list[float] = []
        talks: list[Talk] = []

        async def begin() -> None:
            talk = await link.open()
            await exchange(talk)
            talks.append(talk)

        with _timed(seconds):
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(begin)
            async with anyio.create_task_group() as group:
                for talk in talks:
                    group.start_soon(exchange, talk)
            async with anyio.create_task_group() as group:
                for talk in talks:
                    group.start_soon(talk.aclose)
        return {"rate": count / seconds[0]}

    async def bulk_in_pieces(self, streams: int) -> dict[str, float]:
        """The same, written 64 KiB at a time and not 256."""
        return await self.bulk(streams, PIECE)

    async def bulk(self, streams: int, step: int = len(CHUNK)) -> dict[str, float]:
        """Megabytes a second over so many streams together; as many megabytes as take about a second or less."""
        link = await self.link()
        await bulk(link, len(CHUNK))
        megabytes, amount, seconds = 4, 0, [0.0]
        while seconds[-1] < 0.25 and megabytes <= 1024:
            megabytes *= 4 if seconds[-1] < 0.06 else 2
            amount += megabytes
            with _timed(seconds):
                async with anyio.create_task_group() as group:
                    for _ in range(streams):
                        group.start_soon(bulk, link, megabytes * 1_000_000 // streams, step)
        return {"rate": megabytes / seconds[-1], "amount": amount}

    async def ping_under_load(self, count: int) -> dict[str, float]:
        """An exchange on one stream while another is busy with bulk."""
        link = await self.link()
        talk = await link.open()
        await exchange(talk)
        seconds: list[float] = []
        done = False

        async def load() -> None:
            while not done:
                await bulk(link, 16_000_000)

        async with anyio.create_task_group() as group:
            group.start_soon(load)
            await anyio.sleep(0.1)
            for _ in range(count):
                with _timed(seconds):
                    await exchange(talk)
            done = True
        await talk.aclose()
        return {"p50": _quantile(seconds, 0.5), "p99": _quantile(seconds, 0.99)}

    async def hold_connections(self, count: int) -> dict[str, float]:
        """So many connections, each used once, that stay."""
        for _ in range(count):
            link = await self._kind.connect(self._address)
            talk = await link.open()
            await exchange(talk)
            self._held.append(link)
            if self._kind.one_stream:
                self._held.append(talk)
            else:
                await talk.aclose()
        return {}

    async def hold_streams(self, count: int) -> dict[str, float]:
        """So many streams of one connection, each used once, that stay open."""
        link = await self.link()
        for _ in range(count):
            talk = await link.open()
            await exchange(talk)
            self._held.append(talk)
        return {}

    async def let_go(self, count: int) -> dict[str, float]:
        """Close the first so many of what is held."""
        for each in self._held[:count]:
            await each.aclose()
        del self._held[:count]
        return {}

    async def round_trips(self, count: int) -> dict[str, float]:
        """How often the wire is crossed there and back, by what a slow one costs; TCP's own round trip is one."""
        connects: list[float] = []
        answers: list[float] = []
        async with slow_wire(self._address.port) as port:
            for _ in range(count):
                with _timed(connects):
                    link = await self._kind.connect(Address(port, self._address.key))
                with _timed(answers):
                    talk = await link.open()
                    await exchange(talk)
                await talk.aclose()
                await link.aclose()
        both = 2 * _DELAY
        return {"connect": 1 + min(connects) / both, "answer": min(answers) / both}


def _quantile(seconds: list[float], part: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * part))]


@asynccontextmanager
async def slow_wire(port: int) -> AsyncIterator[int]:
    """A port whose connections end at `port`, each way late by `_DELAY`, however much passes."""

    async def carry(near: anyio.abc.ByteStream) -> None:
        # at the far end the connection begins later: that is when its first bytes can leave
        there = anyio.current_time() + _DELAY
        async with near, await anyio.connect_tcp(HOST, port) as far, anyio.create_task_group() as group:
            group.start_soon(_late, near, far, 0)
            group.start_soon(_late, far, near, there)

    async with await anyio.create_tcp_listener(local_host=HOST) as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, carry)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  # has nothing to do with Django
        group.cancel_scope.cancel()


async def _late(source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream, begin: float) -> None:
    send, receive = anyio.create_memory_object_stream[tuple[float, bytes]](10_000)

    async def deliver() -> None:
        async for due, data in receive:
            await anyio.sleep_until(due)
            await sink.send(data)

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(deliver)
            async with send:
                async for data in source:
                    send.send_nowait((max(begin, anyio.current_time()) + _DELAY, data))
        await sink.send_eof()
    except* (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):  # shut down already
        await sink.aclose()
