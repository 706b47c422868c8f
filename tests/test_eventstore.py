"""The conformance suite of event stores, run on each implementation, then what only the SQLite store promises."""

import contextlib
import gzip
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from node.clock import Clock
from node.errors import Disconnected, NeedsUser
from node.eventstore.damaged import salvaged, told
from node.eventstore.interface import (
    AlreadyHandled,
    Archived,
    Blob,
    BlobExists,
    Conflict,
    Cursor,
    EventStore,
    NewEvent,
    Recorded,
    RunBlocking,
    Snapshot,
    StoreReadOnly,
)
from node.eventstore.memory import MemoryBackend, inline, run_memory_store
from node.eventstore.sqlite import SqliteBackend, move_aside, run_store
from node.health import State
from node.position.events import CODEC
from node.position.evolve import replay
from node.position.state import State as PositionState
from node.supervision import Service
from protocols.errors import CodedError, LocalError, WorldError

R = TypeVar("R")
NOW = 1_700_000_000.5
CLOCK = Clock(wall=lambda: NOW)
Open = Callable[[], AbstractAsyncContextManager[EventStore]]


def event(name: str = "OrderPlaced", data: bytes = b"", *blobs: Blob) -> NewEvent:
    return NewEvent(name, 1, data, blobs)


@asynccontextmanager
async def started(run: Callable[..., Awaitable[object]]) -> AsyncIterator[EventStore]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(run)
        nursery.cancel_scope.cancel()


def sqlite_store(
    path: Path, run_blocking: RunBlocking = trio.to_thread.run_sync
) -> AbstractAsyncContextManager[EventStore]:
    return started(partial(run_store, path, clock=CLOCK, run_blocking=run_blocking))


@pytest.fixture(params=["memory", "sqlite in threads", "sqlite inline"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same store again and again."""
    if request.param == "memory":
        return partial(started, partial(run_memory_store, MemoryBackend(CLOCK)))
    run_blocking = inline if request.param == "sqlite inline" else trio.to_thread.run_sync
    return partial(sqlite_store, tmp_path / "data" / "events.sqlite", run_blocking)


# Every store


async def test_events_are_numbered_in_their_stream_and_over_all_streams(open_store: Open) -> None:
    async with open_store() as store:
        assert store.last_id == 0
        first = await store.append("a", 0, [event("One", b"1"), event("Two", b"2")])
        (other,) = await store.append("b", 0, [event("Three", b"3")])
        (last,) = await store.append("a", 2, [event("Four", b"4")])
        assert [(r.stream, r.position, r.name, r.version, r.data) for r in [*first, other, last]] == [
            ("a", 1, "One", 1, b"1"),
            ("a", 2, "Two", 1, b"2"),
            ("b", 1, "Three", 1, b"3"),
            ("a", 3, "Four", 1, b"4"),
        ]
        assert first[0].id < first[1].id < other.id < last.id == store.last_id
        assert {r.recorded_at for r in first} == {NOW}

        assert await store.load("a") == [*first, last]
        assert await store.load("a", after=2) == [last]
        assert await store.load("nobody") == []
        assert await store.read() == [*first, other, last]
        assert await store.read(first[1].id, limit=1) == [other]
        assert await store.read(last.id) == []
        assert await store.streams() == ["a", "b"]


async def test_everything_is_there_after_reopening(open_store: Open) -> None:
    async with open_store() as store:
        written = await store.append("a", 0, [event("One", b"\x00\xff", Blob("cets", b"large"))])
        await store.ack(Cursor("reactor", written[0].id))
    async with open_store() as store:
        assert await store.load("a") == written
        assert store.last_id == written[0].id
        assert await store.blob("a", "cets") == b"large"
        assert await store.cursor("reactor") == written[0].id
        (more,) = await store.append("a", 1, [event()])
        assert more.id > written[0].id


@pytest.mark.parametrize("expected", [0, 2])
async def test_a_conflict_names_both_versions_and_writes_nothing(open_store: Open, expected: int) -> None:
    async with open_store() as store:
        await store.append("a", 0, [event()])
        with pytest.raises(Conflict) as refused:
            await store.append("a", expected, [event("Late", b"", Blob("kind", b""))], cursor=Cursor("reactor", 1))
        assert (refused.value.stream, refused.value.expected, refused.value.actual) == ("a", expected, 1)
        assert len(await store.read()) == 1
        assert await store.blob("a", "kind") is None
        assert await store.cursor("reactor") is None


async def test_of_tasks_that_decided_on_one_version_exactly_one_wins(open_store: Open) -> None:
    won: list[int] = []
    lost: list[int] = []

    async with open_store() as store:

        async def decide(number: int) -> None:
            for version in range(5):
                try:
                    await store.append("contended", version, [event(data=bytes([number]))])
                except Conflict as conflict:
                    assert conflict.expected < conflict.actual  # noqa: PT017 - both outcomes are right
                    lost.append(version)
                else:
                    won.append(version)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(decide, number)
        assert sorted(won) == [0, 1, 2, 3, 4]
        assert len(lost) == 45
        assert [recorded.position for recorded in await store.load("contended")] == [1, 2, 3, 4, 5]


async def test_blobs_are_written_once_and_pruned_by_name(open_store: Open) -> None:
    async with open_store() as store:
        await store.append("a", 0, [event("Signed", b"", Blob("cets/0", b"0"), Blob("cets/1", b"1"))])
        await store.append("b", 0, [event("Signed", b"", Blob("cets/0", b"other"))])
        assert await store.blob("a", "cets/1") == b"1"
        assert await store.blob("a", "cets/2") is None

        with pytest.raises(BlobExists):
            await store.append("a", 1, [event(), event("Signed", b"", Blob("cets/0", b"new"))])
        with pytest.raises(BlobExists):
            await store.append("c", 0, [event("Signed", b"", Blob("k", b"1"), Blob("k", b"2"))])
        assert await store.blob("a", "cets/0") == b"0"
        assert [r.position for r in await store.load("a")] == [1]
        assert await store.load("c") == []

        for _ in range(2):
            await store.prune("a", ["cets/0", "never"])
        assert await store.blob("a", "cets/0") is None
        assert await store.blob("a", "cets/1") == b"1"
        assert await store.blob("b", "cets/0") == b"other"


async def test_a_cursor_makes_an_append_happen_exactly_once(open_store: Open) -> None:
    async with open_store() as store:
        (cause,) = await store.append("a", 0, [event("PriceAttested")])
        assert await store.cursor("reactor") is None
        await store.append("b", 0, [event("CommitPublished")], cursor=Cursor("reactor", cause.id))
        assert await store.cursor("reactor") == cause.id
        with pytest.raises(AlreadyHandled) as refused:
            await store.append("b", 1, [event("CommitPublished")], cursor=Cursor("reactor", cause.id))
        assert refused.value.actual == cause.id
        assert len(await store.load("b")) == 1

        assert await store.append("b", 1, [], cursor=Cursor("reactor", cause.id + 1)) == []
        with pytest.raises(AlreadyHandled):
            await store.append("b", 1, [], cursor=Cursor("reactor", cause.id + 1))


async def test_acks_never_move_a_cursor_back(open_store: Open) -> None:
    async with open_store() as store:
        for id_, stands in [(3, 3), (2, 3), (3, 3), (7, 7)]:
            await store.ack(Cursor("reactor", id_))
            assert await store.cursor("reactor") == stands
        assert await store.cursor("another") is None


async def test_who_waits_is_woken_when_the_event_can_be_read(open_store: Open) -> None:
    async with open_store() as store:
        seen: list[Recorded] = []

        async def wait() -> None:
            await store.wait_beyond(0)
            seen.extend(await store.read())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await store.ack(Cursor("reactor", 0))
            await trio.testing.wait_all_tasks_blocked()
            assert seen == []
            written = await store.append("a", 0, [event()])
        assert seen == written


def test_contents_stay_out_of_sight() -> None:
    secret = b"a salt"
    blob = Blob("kind", secret)
    recorded = Recorded(1, "a", 1, "AttemptStarted", 1, secret, NOW)
    assert "salt" not in repr([NewEvent("AttemptStarted", 1, secret, (blob,)), recorded, blob])


Operation = tuple[str, int, int, int]


@given(st.lists(st.tuples(st.sampled_from(["append", "blob", "cursor", "ack", "prune"]), *[st.integers(0, 3)] * 3)))
@settings(max_examples=40, deadline=None)
def test_all_stores_give_the_same_answers(
    tmp_path_factory: pytest.TempPathFactory, operations: list[Operation]
) -> None:
    async def apply(store: EventStore, operation: Operation) -> object:
        what, a, b, c = operation
        stream = f"s{a}"
        try:
            match what:
                case "append":
                    return await store.append(stream, b, [event(data=bytes([i])) for i in range(c)])
                case "blob":
                    return await store.append(stream, b, [event("B", b"", Blob(f"k{c}", bytes([a, b])))])
                case "cursor":
                    return await store.append(stream, b, [event()], cursor=Cursor(f"r{a}", c))
                case "ack":
                    await store.ack(Cursor(f"r{a}", b))
                case _:
                    await store.prune(stream, [f"k{b}", f"k{c}"])
        except LocalError as error:
            return error.code, error.sentence
        return None

    async def everything(store: EventStore) -> object:
        streams = await store.streams()
        return (
            store.last_id,
            await store.read(),
            [await store.load(stream, after=1) for stream in streams],
            [await store.blob(f"s{i}", f"k{j}") for i in range(4) for j in range(4)],
            [await store.cursor(f"r{i}") for i in range(4)],
        )

    async def compare() -> None:
        disk = MemoryBackend(CLOCK)
        path = tmp_path_factory.mktemp("random") / "events.sqlite"
        for once in (operations, []):
            async with started(partial(run_memory_store, disk)) as memory, sqlite_store(path, inline) as store:
                for operation in once:
                    assert await apply(store, operation) == await apply(memory, operation)
                assert await everything(store) == await everything(memory)

    trio.run(compare)


# SQLite: commits


async def test_appends_that_come_together_share_a_commit(tmp_path: Path) -> None:
    calls = 0

    async def counting(function: Callable[[], R], /) -> R:
        nonlocal calls
        calls += 1
        return await trio.to_thread.run_sync(function)

    async with sqlite_store(tmp_path / "events.sqlite", counting) as store:
        calls = 0
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(store.append, f"s{number}", 0, [event()])
        assert calls <= 2
        assert store.last_id == 50


async def test_a_refused_append_leaves_its_group_alone(tmp_path: Path) -> None:
    results: dict[str, object] = {}

    async with sqlite_store(tmp_path / "events.sqlite", inline) as store:

        async def append(stream: str, expected: int, name: object) -> None:
            try:
                results[stream] = await store.append(stream, expected, [NewEvent(name, 1, b"")])  # type: ignore[arg-type]
            except (LocalError, sqlite3.Error, UnicodeError) as error:
                results[stream] = type(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, "late", 1, "Name")
            nursery.start_soon(append, "object", 0, object())  # bugs of the caller's
            nursery.start_soon(append, "surrogate", 0, "\ud800")
            nursery.start_soon(append, "none", 0, None)
            nursery.start_soon(append, "right", 0, "Name")
        assert results == {
            "late": Conflict,
            "object": sqlite3.ProgrammingError,
            "surrogate": UnicodeEncodeError,
            "none": sqlite3.IntegrityError,
            "right": await store.read(),
        }
        assert await store.streams() == ["right"]


class Gate:
    """Lets blocking work through only when open."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.open.set()

    async def run(self, function: Callable[[], R], /) -> R:
        await self.open.wait()
        return await inline(function)


async def test_nobody_hears_of_an_event_before_its_commit(tmp_path: Path) -> None:
    gate = Gate()
    heard: list[int] = []
    async with sqlite_store(tmp_path / "events.sqlite", gate.run) as store:

        async def listen() -> None:
            await store.wait_beyond(0)
            heard.append(store.last_id)

        gate.open = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            nursery.start_soon(store.append, "a", 0, [event()])
            await trio.testing.wait_all_tasks_blocked()
            assert (heard, store.last_id) == ([], 0)
            gate.open.set()
        assert heard == [1]


async def test_a_cancelled_append_that_has_not_begun_is_not_written(tmp_path: Path) -> None:
    gate = Gate()
    async with sqlite_store(tmp_path / "events.sqlite", gate.run) as store:
        gate.open = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.append, "first", 0, [event()])
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0):
                await store.append("second", 0, [event()])
            gate.open.set()
        await store.append("third", 0, [event()])
        assert await store.streams() == ["first", "third"]


def test_commits_are_synced(tmp_path: Path) -> None:
    database = SqliteBackend(tmp_path / "events.sqlite", CLOCK.now)
    for pragma, value in [("synchronous", 2), ("journal_mode", "wal"), ("foreign_keys", 1), ("fullfsync", 1)]:
        assert database._writer.execute(f"PRAGMA {pragma}").fetchone() == (value,)
    database.close()


KILLED = """
import sys, trio
from pathlib import Path
from node.eventstore.interface import Blob, NewEvent
from node.eventstore.sqlite import run_store
from node.health import State
from node.supervision import Service

async def append(store, stream):
    for position in range(1_000_000):
        await store.append(stream, position, [NewEvent("E", 1, b"", (Blob(str(position + 1), b"x" * 3000),))])
        print(stream, position + 1, flush=True)

async def main():
    async with trio.open_nursery() as nursery:
        store = await nursery.start(run_store, Path(sys.argv[1]))
        for number in range(4):
            nursery.start_soon(append, store, f"s{number}")

trio.run(main)
"""


def test_what_was_appended_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(200)]
        process.kill()
        lines += process.stdout.readlines()
    acknowledged = dict.fromkeys(["s0", "s1", "s2", "s3"], 0)
    for line in lines:
        if line.endswith("\n"):
            acknowledged[line.split()[0]] = int(line.split()[1])
    assert sum(acknowledged.values()) >= 200

    async def look() -> None:
        async with sqlite_store(path) as store:
            for stream, position in acknowledged.items():
                events = await store.load(stream)
                assert [recorded.position for recorded in events] == list(range(1, len(events) + 1))
                assert position <= len(events) <= position + 1
                assert all([await store.blob(stream, str(r.position)) == b"x" * 3000 for r in events])

    trio.run(look)


# SQLite: trouble


@contextmanager
def no_space(path: Path) -> Iterator[None]:
    """The log may grow by 128 KiB: the kernel refuses to write more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = path.with_name(path.name + "-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(log, path.stat().st_size) + 2**17, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def few_pages(path: Path, store: EventStore) -> Iterator[None]:
    """The file may grow by 32 pages: SQLite itself says that the disk is full."""
    writer = store._backend._writer  # type: ignore[attr-defined]
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages + 32}")
    yield
    writer.execute("PRAGMA max_page_count = 1000000000")


@pytest.mark.parametrize("trouble", ["disk_error", "disk_full"])
async def test_a_full_disk_refuses_what_is_too_large_and_nothing_else(tmp_path: Path, trouble: str) -> None:
    path = tmp_path / "events.sqlite"
    results: dict[str, object] = {}
    large = [event("Large", bytes(2**20))]
    async with sqlite_store(path) as store:

        async def append(stream: str, events: list[NewEvent]) -> None:
            try:
                results[stream] = await store.append(stream, 0, events)
            except WorldError as error:
                results[stream] = error.code

        await store.append("before", 0, [event()])
        with no_space(path) if trouble == "disk_error" else few_pages(path, store):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(append, "small", [event()])
                nursery.start_soon(append, "large", large)
                nursery.start_soon(append, "little", [event()])
            assert results.pop("large") == trouble
            assert all(isinstance(result, list) for result in results.values())
            assert store.last_id == 3
            with pytest.raises(WorldError):
                await store.append("large", 0, large)
            assert await store.load("large") == []
        (recorded,) = await store.append("large", 0, large)
        assert store.last_id == recorded.id == 4
    async with sqlite_store(path) as store:
        assert [r.id for r in await store.read()] == [1, 2, 3, 4]


async def test_a_closed_store_answers_everybody(tmp_path: Path) -> None:
    gate = Gate()
    ended: list[str] = []

    async def expect_closed(name: str, function: Callable[..., object], *args: object) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await function(*args)  # type: ignore[misc]
        ended.append(name)

    async with trio.open_nursery() as tasks:
        async with sqlite_store(tmp_path / "events.sqlite", gate.run) as store:
            gate.open = trio.Event()
            tasks.start_soon(expect_closed, "append", store.append, "a", 0, [event()])
            tasks.start_soon(expect_closed, "wait", store.wait_beyond, 0)
            await trio.testing.wait_all_tasks_blocked()
            tasks.start_soon(expect_closed, "waiting append", store.append, "b", 0, [event()])
            await trio.testing.wait_all_tasks_blocked()
            tasks.start_soon(_open_later, gate)
        tasks.start_soon(expect_closed, "late append", store.append, "c", 0, [event()])
        tasks.start_soon(expect_closed, "late load", store.load, "c")
        tasks.start_soon(expect_closed, "late wait", store.wait_beyond, 5)
    assert sorted(ended) == ["append", "late append", "late load", "late wait", "wait", "waiting append"]


async def _open_later(gate: Gate) -> None:
    await trio.testing.wait_all_tasks_blocked()
    gate.open.set()


async def refusal(path: Path) -> CodedError:
    """Why the store there cannot be opened."""
    with pytest.raises((NeedsUser, WorldError)) as refused:
        await run_store(path, run_blocking=inline)
    return refused.value


async def test_a_data_directory_serves_one_process(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    async with sqlite_store(path):
        error = await refusal(path)
        assert error.code == "data_in_use"
        assert str(os.getpid()) in error.sentence
        other = await trio.run_process([sys.executable, "-c", KILLED, path], check=False, capture_stderr=True)
        assert b"data_in_use" in other.stderr
    async with sqlite_store(path) as store:
        assert store.last_id == 0


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(10_000))


def _text(path: Path) -> None:
    path.write_text("not a database, but a text of some length that was put here by mistake\n" * 30)


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE wallet (coin)")
    connection.close()


def _future(path: Path) -> None:
    SqliteBackend(path, CLOCK.now).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def _lost_index_row(path: Path) -> None:
    """One row of the unique index is gone, as after a write that reached the disk in part."""
    # the unique index's root page loses its last cell
    with sqlite3.connect(path) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE type = 'index' AND tbl_name = 'events'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    raw = bytearray(path.read_bytes())
    count = (page - 1) * size + 3
    raw[count + 1] -= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_zeros, "store_corrupt"),
        (_text, "store_corrupt"),
        (_foreign, "not_an_event_store"),
        (_future, "store_too_new"),
    ],
)
async def test_a_wrong_file_needs_the_user_and_is_left_as_it_is(
    tmp_path: Path, spoil: Callable[[Path], None], code: str
) -> None:
    path = tmp_path / "events.sqlite"
    spoil(path)
    before = path.read_bytes()
    error = await refusal(path)
    assert (error.code, type(error)) == (code, NeedsUser)
    assert str(path) in error.sentence
    assert path.read_bytes() == before


async def test_damage_found_later_takes_the_store_down(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    async with sqlite_store(path) as store:
        for position in range(20):
            await store.append("a", position, [event(data=bytes(5000))])
    with pytest.RaisesGroup(pytest.RaisesExc(WorldError, match="damaged")):
        async with sqlite_store(path) as store:
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.seek(8192)
                file.write(b"\xee" * (size - 8192))
            with pytest.raises(trio.BrokenResourceError):
                await store.load("a")
            await trio.sleep_forever()


async def test_a_place_that_cannot_be_written_is_the_worlds_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = await refusal(tmp_path / "file" / "events.sqlite")
    assert (error.code, type(error)) == ("disk_error", WorldError)
    (tmp_path / "events.sqlite").mkdir()
    error = await refusal(tmp_path / "events.sqlite")
    assert (error.code, type(error)) == ("disk_error", WorldError)


async def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    path = tmp_path / "data" / "events.sqlite"
    async with sqlite_store(path) as store:
        await store.append("a", 0, [event()])
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        assert modes["events.sqlite"] == modes["events.sqlite-wal"] == modes["lock"] == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_ids_are_never_used_again(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    async with sqlite_store(path) as store:
        await store.append("a", 0, [event(), event()])
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM events")  # archived
    connection.close()
    async with sqlite_store(path) as store:
        assert store.last_id == 2
        (recorded,) = await store.append("b", 0, [event()])
        assert recorded.id == 3


async def test_what_events_share_is_kept_once(open_store: Open) -> None:
    piece, other = b"announcement" * 100, b"another"
    names = [sha256(each).digest() for each in (piece, other)]
    async with open_store() as store:
        await store.append("a", 0, [NewEvent("One", 1, b"", contents=(piece,))])
        await store.append("b", 0, [NewEvent("One", 1, b"", contents=(piece, other))])
        with pytest.raises(Conflict):
            await store.append("b", 7, [NewEvent("Late", 1, b"", contents=(b"refused",))])
    async with open_store() as store:
        assert await store.contents(names) == dict(zip(names, (piece, other), strict=True))
        assert await store.contents([sha256(b"refused").digest()]) == {}
        assert await store.contents([]) == {}


async def test_many_contents_are_found_by_one_question(open_store: Open) -> None:
    pieces = tuple(b"%d" % number for number in range(1_200))
    async with open_store() as store:
        await store.append("a", 0, [NewEvent("One", 1, b"", contents=pieces)])
        found = await store.contents([sha256(piece).digest() for piece in pieces])
        assert sorted(found.values()) == sorted(pieces)


async def test_the_newest_snapshot_of_a_stream_is_kept(open_store: Open) -> None:
    async with open_store() as store:
        await store.append("position/1", 0, [event(), event()])
        await store.append("other", 0, [event()])
        for position in (1, 2):
            await store.keep_snapshot("position/1", position, b"form", b"at %d" % position)
        await store.keep_snapshot("other", 1, b"form", b"")
        await store.keep_snapshot("position/unknown", 1, b"form", b"")
    async with open_store() as store:
        assert await store.snapshots("position/") == [Snapshot("position/1", 2, b"form", b"at 2")]
        assert len(await store.snapshots()) == 2


async def test_an_archived_stream_is_put_away_whole_and_for_ever(open_store: Open) -> None:
    async with open_store() as store:
        written = await store.append("position/1", 0, [event("One", b"1", Blob("cets", b"large")), event("Two", b"2")])
        (other,) = await store.append("position/2", 0, [event("Other", b"3")])
        await store.keep_snapshot("position/1", 2, b"form", b"")
        with pytest.raises(Conflict):
            await store.archive("position/1", 1, b"too early")
        await store.archive("position/1", 2, b"summary", [b"point", b"other point"])
    async with open_store() as store:
        assert await store.streams() == ["position/2"]
        assert await store.load("position/1") == []
        assert await store.read() == [other]
        assert await store.blob("position/1", "cets") is None
        assert await store.snapshots() == []
        assert await store.load_archived("position/1") == written
        assert await store.load_archived("position/2") == []
        assert await store.marked([b"point", b"unknown"]) == {b"point"}
        for expected in (0, 2):
            with pytest.raises(Archived):
                await store.append("position/1", expected, [event()])
        (more,) = await store.append("position/2", 1, [event()])
        assert more.id > other.id  # ids of archived events stay used
        await store.archive("position/2", 2, b"second")
        newest_first = await store.archived("position/")
        assert [(each.stream, each.summary, each.archived_at) for each in newest_first] == [
            ("position/2", b"second", NOW),
            ("position/1", b"summary", NOW),
        ]
        assert await store.archived("position/", limit=1) == newest_first[:1]
        assert await store.archived("position/", before=newest_first[0].id) == newest_first[1:]
        assert await store.archived("other") == []


# SQLite: older files


def _older(tmp_path: Path) -> Path:
    """A file that version 1 of the schema wrote: a taker's position that is rolled over and being closed, and a maker's
    that is open."""
    path = tmp_path / "events.sqlite"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "golden" / "store-1.sqlite.gz").read_bytes()))
    return path


def copies(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if ".v1-" in path.name or path.name.endswith(".copying")]


@contextmanager
def file_sizes_limited_to(size: int) -> Iterator[None]:
    """What a full disk looks like to this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def _states(store: EventStore) -> list[PositionState]:
    states = []
    for stream in await store.streams():
        recorded = await store.load(stream)
        contents = await store.contents(frozenset[bytes]().union(*map(CODEC.needs, recorded)))
        events = [CODEC.decode(each, contents) for each in recorded]
        states.append(replay(b"", events, [each.recorded_at for each in recorded]).state)
    return states


async def test_an_older_file_is_migrated_and_a_copy_of_it_stays(tmp_path: Path) -> None:
    path = _older(tmp_path)
    async with sqlite_store(path) as store:
        assert await _states(store) == [PositionState.CLOSING, PositionState.OPEN]
        assert (await store.cursor("projection"), store.last_id) == (3, 20)
        (recorded,) = await store.append("new", 0, [NewEvent("One", 1, b"", contents=(b"piece",))])
        assert recorded.id == 21
    (copy,) = copies(tmp_path)
    assert copy.name == "events.sqlite.v1-20231114T221320Z"
    assert copy.stat().st_mode & 0o777 == 0o600
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (20,)
    async with sqlite_store(path) as store:  # once is enough
        assert copies(tmp_path) == [copy]


async def test_a_copy_is_never_overwritten(tmp_path: Path) -> None:
    taken = tmp_path / "events.sqlite.v1-20231114T221320Z"
    taken.write_text("of another day")
    async with sqlite_store(_older(tmp_path)):
        assert taken.read_text() == "of another day"
        assert (tmp_path / f"{taken.name}.1").stat().st_size > 100_000


async def test_no_room_for_the_copy_leaves_the_older_file_as_it_was(tmp_path: Path) -> None:
    path = _older(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    before = path.read_bytes()
    with file_sizes_limited_to(50_000):
        error = await refusal(path)
    assert type(error) is WorldError
    assert path.read_bytes() == before
    assert not copies(tmp_path)
    async with sqlite_store(path) as store:
        assert len(await store.streams()) == 2


# SQLite: damage


def _index_of_noise(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE type = 'index' AND tbl_name = 'events'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    raw = bytearray(path.read_bytes())
    raw[(page - 1) * size : page * size] = bytes([0xEE]) * size
    path.write_bytes(raw)


@pytest.mark.parametrize("spoil", [_lost_index_row, _index_of_noise])
async def test_what_can_be_read_of_a_damaged_file_is_served_and_nothing_is_written(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = _older(tmp_path)
    async with sqlite_store(path):
        pass
    spoil(path)
    before = path.read_bytes()
    service: Service[EventStore]

    async def run(*, task_status: trio.TaskStatus[EventStore]) -> None:
        await run_store(path, run_blocking=inline, report=service, task_status=task_status)

    service = Service("store", run, raise_bugs=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.supervise)
        await service.until(State.DEGRADED)
        assert "damaged" in service.health.reason
        assert service.health.remedy.startswith("restore a backup")
        with service.lent() as store:
            assert await _states(store) == [PositionState.CLOSING, PositionState.OPEN]
        with pytest.raises(StoreReadOnly):
            await service.call(EventStore.append, "new", 0, [event()])
        assert path.read_bytes() == before
        aside = move_aside(path, NOW)
        assert aside.read_bytes() == before
        service.restart()
        await service.until(State.HEALTHY)
        assert len(await service.call(EventStore.append, "new", 0, [event()])) == 1
        nursery.cancel_scope.cancel()


async def test_a_stream_with_a_gap_is_left_out(tmp_path: Path) -> None:
    path = _older(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM blobs")
        connection.execute("DELETE FROM events WHERE id = 3")
        connection.commit()
    backend = salvaged(path, NeedsUser("damaged", "restore"))
    (left,) = backend.streams()
    (gone,) = backend.left_out
    assert gone != left
    assert told(backend) == f"; 1 incomplete and left out: {gone.removeprefix('position/')}"
    backend.left_out *= 25
    assert told(backend).endswith(" and 5 more")


@pytest.mark.parametrize("spoil", [_zeros, _text, lambda path: path.write_bytes(b"")])
async def test_a_file_of_which_nothing_can_be_read_needs_the_user(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    path = tmp_path / "events.sqlite"
    spoil(path)
    error = await refusal(path)
    assert isinstance(error, NeedsUser)
    assert (error.code, error.repairs) == ("store_corrupt", ("move-aside", "restore-backup"))


async def test_a_first_start_that_was_cut_off_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "events.sqlite.new").write_bytes(b"half")
    async with sqlite_store(tmp_path / "events.sqlite") as store:
        assert len(await store.append("a", 0, [event()])) == 1
    assert not (tmp_path / "events.sqlite.new").exists()


def test_what_is_moved_aside_keeps_its_log_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    for text in ("first", "second"):
        path.write_text(text)
        path.with_name("events.sqlite-wal").write_text(f"{text} log")
        move_aside(path, NOW)
    first, second = (tmp_path / f"events.sqlite.damaged-20231114T221320Z{end}" for end in ("", ".1"))
    assert [first.read_text(), second.read_text()] == ["first", "second"]
    assert second.with_name(f"{second.name}-wal").read_text() == "second log"
    assert not path.exists()


# SQLite: the service


async def test_a_damaged_store_is_blocked_until_its_file_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    _text(path)
    service = Service("store", partial(run_store, path, run_blocking=inline), raise_bugs=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.supervise)
        await service.until(State.BLOCKED)
        assert "damaged" in service.health.reason
        assert "move the file aside" in service.health.remedy
        path.rename(tmp_path / "damaged.sqlite")
        service.restart()
        await service.until(State.HEALTHY)
        assert len(await service.call(EventStore.append, "a", 0, [event()])) == 1
        nursery.cancel_scope.cancel()


async def test_an_append_in_flight_when_the_store_is_stopped_raises_disconnected(tmp_path: Path) -> None:
    gate = Gate()
    service = Service("store", partial(run_store, tmp_path / "events.sqlite", run_blocking=gate.run), raise_bugs=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.supervise)
        await service.until(State.HEALTHY)
        gate.open = trio.Event()
        async with trio.open_nursery() as tasks:

            async def append() -> None:
                with pytest.raises(Disconnected):
                    await service.call(EventStore.append, "a", 0, [event()])

            tasks.start_soon(append)
            await trio.testing.wait_all_tasks_blocked()
            service.restart()
        gate.open.set()
        await service.until(State.HEALTHY)
        version = len(await service.call(EventStore.load, "a"))
        assert await service.call(EventStore.append, "a", version, [event()])
        nursery.cancel_scope.cancel()
