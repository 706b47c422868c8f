"""Appends and replay of the event store on SQLite, beside sqlite3 alone with a synced commit for each event."""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from node.eventstore.interface import EventStore, NewEvent
from node.eventstore.sqlite import run_store
from node.eventstore.subscriptions import Feed
from scripts.benches import Figure, Seconds, summary

ROUNDS = 5
ALONE, TASKS, EACH = 400, 50, 100
EVENT = NewEvent("OrderPlaced", 1, bytes(300))


def figures() -> Iterator[Figure]:
    raw: list[float] = []
    alone: list[float] = []
    together: list[float] = []
    replay: list[float] = []
    with TemporaryDirectory() as directory:
        for number in range(ROUNDS):
            raw.append(_raw(Path(directory) / f"raw{number}.sqlite"))
            trio.run(_ours, Path(directory) / f"{number}" / "events.sqlite", alone, together, replay)
    reference = 1 / summary(raw).median
    for name, seconds in [("appends one by one", summary(alone)), (f"appends of {TASKS} tasks", summary(together))]:
        yield Figure(name, 1 / seconds.median, "/s", reference, "sqlite3 alone", seconds.spread)
    read: Seconds = summary(replay)
    yield Figure("events read by a feed", 1 / read.median, "/s", spread=read.spread)


def _raw(path: Path) -> float:
    """Seconds per event."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB)")
    start = time.perf_counter()
    for _ in range(ALONE):
        connection.execute("INSERT INTO events (data) VALUES (?)", (EVENT.data,))
    took = time.perf_counter() - start
    connection.close()
    return took / ALONE


async def _ours(path: Path, alone: list[float], together: list[float], replay: list[float]) -> None:
    async def append(store: EventStore, stream: str, count: int) -> None:
        for position in range(count):
            await store.append(stream, position, [EVENT])

    async with trio.open_nursery() as nursery:
        store: EventStore = await nursery.start(run_store, path)
        start = time.perf_counter()
        await append(store, "alone", ALONE)
        alone.append((time.perf_counter() - start) / ALONE)

        start = time.perf_counter()
        async with trio.open_nursery() as tasks:
            for number in range(TASKS):
                tasks.start_soon(append, store, f"stream {number}", EACH)
        together.append((time.perf_counter() - start) / (TASKS * EACH))

        start = time.perf_counter()
        feed = Feed(store)
        for _ in range(store.last_id):
            await anext(feed)
        replay.append((time.perf_counter() - start) / store.last_id)
        nursery.cancel_scope.cancel()
