"""Appends and replay of the event store on SQLite, beside sqlite3 alone with a synced commit for each event.

The whole path of an append is a real event through the codec, the store's task and thread, and back. What is replayed
is a file of 100 000 such events.
"""

import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from node.eventstore.interface import EventStore
from node.eventstore.sqlite import run_store
from node.eventstore.subscriptions import BATCH, Feed
from node.position.events import CODEC, CommitConfirmed
from scripts.benches import Figure, summary

ROUNDS = 5
ALONE, TASKS, EACH = 400, 50, 100
REPLAYED = 100_000
EVENT = CommitConfirmed(7, bytes(32), 860_000, bytes(32))
DATA = CODEC.encode(EVENT).data


def figures() -> Iterator[Figure]:
    raw: list[float] = []
    alone: list[float] = []
    together: list[float] = []
    with TemporaryDirectory() as directory:
        for number in range(ROUNDS):
            raw.append(_raw(Path(directory) / f"raw{number}.sqlite"))
            trio.run(_ours, Path(directory) / f"{number}" / "events.sqlite", alone, together)
        reference, one, many = 1 / summary(raw).median, summary(alone), summary(together)
        yield Figure("appends of one task", 1 / one.median, "/s", reference, "sqlite3 alone", one.spread)
        yield Figure(f"appends of {TASKS} tasks", 1 / many.median, "/s", reference, "sqlite3 alone", many.spread)
        yield Figure(f"appends of {TASKS} tasks", 1 / many.median, "/s", 1 / one.median, "one task", many.spread)
        path = Path(directory) / "long" / "events.sqlite"
        trio.run(_fill, path)
        plain, replay = _read(path), _replayed(path)
        yield Figure(f"replay of {REPLAYED} events", replay[0], "s", plain, "sqlite3 alone")
        yield Figure(f"memory of that, {BATCH} events at a time", replay[1], "MB")


def _raw(path: Path) -> float:
    """Seconds per event."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB)")
    start = time.perf_counter()
    for _ in range(ALONE):
        connection.execute("INSERT INTO events (data) VALUES (?)", (DATA,))
    took = time.perf_counter() - start
    connection.close()
    return took / ALONE


def _read(path: Path) -> float:
    """Seconds in which sqlite3 alone reads all rows."""
    connection = sqlite3.connect(path)
    start = time.perf_counter()
    for _ in connection.execute("SELECT * FROM events ORDER BY id"):
        pass
    took = time.perf_counter() - start
    connection.close()
    return took


def _replayed(path: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of a process of its own that reads and decodes all."""
    script = f"from scripts.benches import store; store.replay({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, memory = done.stdout.split()
    return float(seconds), float(memory)


def replay(path: str) -> None:
    async def read() -> float:
        async with trio.open_nursery() as nursery:
            store: EventStore = await nursery.start(run_store, Path(path))
            start = time.perf_counter()
            feed = Feed(store)
            for _ in range(store.last_id):
                CODEC.decode(await anext(feed))
            took = time.perf_counter() - start
            nursery.cancel_scope.cancel()
        return took

    print(trio.run(read), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


async def _fill(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        store: EventStore = await nursery.start(run_store, path)
        for number in range(REPLAYED // 1_000):
            await store.append(f"stream {number}", 0, [CODEC.encode(EVENT)] * 1_000)
        nursery.cancel_scope.cancel()


async def _ours(path: Path, alone: list[float], together: list[float]) -> None:
    async def append(store: EventStore, stream: str, count: int) -> None:
        for position in range(count):
            await store.append(stream, position, [CODEC.encode(EVENT)])

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
        nursery.cancel_scope.cancel()
