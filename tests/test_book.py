"""All positions of a node, over a store that is slow, full, contested, or gone in the middle of a write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import outcome
import pytest
import trio
import trio.testing
from attrs import define

from node.errors import Disconnected
from node.eventstore.interface import Conflict, EventStore, NewEvent, Recorded, serve
from node.eventstore.memory import MemoryBackend, inline, run_memory_store
from node.eventstore.sqlite import run_store
from node.health import State as Up
from node.position.book import CONFLICT_TRIES, Positions, run_positions
from node.position.commands import Command, fail_setup, place_order
from node.position.events import CODEC, STREAM, Event, OrderRejected, signatures_blob
from node.position.observing import observe
from node.position.state import Position, State
from node.supervision import Run, Service
from protocols.contract.keys import Points, negated
from protocols.contract.terms import Role
from protocols.contract_setup import SetupComplete, SignaturesHeld
from protocols.errors import LocalError, WorldError
from tests.lives import LOCKED, close, completed, lock, rollovers
from tests.positions import ORDER_ID, PEER, TRADER, fact, facts, history, view, wanted
from tests.setups import order

R = TypeVar("R")
STREAM_OF_IT = STREAM + ORDER_ID.hex()
PLACE = place_order(order(), Role.TAKER, PEER[Role.TAKER])


@define
class Book:
    """A store and the positions on it, as services."""

    store: Service[EventStore]
    positions: Service[Positions]

    def now(self) -> Positions:
        with self.positions.lent() as positions:
            return positions

    async def execute(self, command: Command, order_id: bytes = ORDER_ID) -> Position:
        return await self.positions.call(Positions.execute, order_id, command)

    async def remember(self, role: Role, *kinds: type[Any]) -> None:
        """Those of a setup's facts, or all."""
        for each in facts()[role]:
            if not kinds or isinstance(each, kinds):
                await self.positions.call(Positions.remember, each, PEER[role])

    async def recorded(self) -> list[Event]:
        found = await self.store.call(EventStore.load, STREAM_OF_IT)
        needed = frozenset[bytes]().union(*map(CODEC.needs, found))
        contents = await self.store.call(EventStore.contents, needed)
        return [CODEC.decode(each, contents) for each in found]

    async def up_again(self) -> None:
        """After the store went down, which its callers may notice before its service does."""
        with trio.fail_after(30):
            await self.positions.until(Up.RESTARTING, Up.WAITING)
            for service in (self.store, self.positions):
                await service.until(Up.HEALTHY)


@asynccontextmanager
async def book(run: Run[EventStore]) -> AsyncIterator[Book]:
    store = Service("store", run)
    positions = Service("positions", partial(run_positions, store), [store], raise_bugs=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.supervise)
        nursery.start_soon(positions.supervise)
        await positions.until(Up.HEALTHY)
        yield Book(store, positions)
        nursery.cancel_scope.cancel()


Open = Callable[[], Any]


@pytest.fixture(params=["memory", "sqlite"])
def open_book(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens a book over the same disk again and again."""
    if request.param == "memory":
        return partial(book, partial(run_memory_store, MemoryBackend()))
    return partial(book, partial(run_store, tmp_path / "events.sqlite"))


class Disk(MemoryBackend):
    """A disk with faults."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.dies_after_writing = False
        self.contested = 0
        self.open = trio.Event()
        self.open.set()

    def append(self, stream: str, expected_version: int, events: Sequence[NewEvent], cursor: Any) -> list[Recorded]:
        if self.full:
            raise WorldError("disk_full", "no space is left")
        if self.contested:
            self.contested -= 1
            raise Conflict(stream, expected_version, expected_version)
        return super().append(stream, expected_version, events, cursor)

    def write(self, group: Sequence[Callable[[], object]]) -> list[outcome.Outcome[object]]:
        results = super().write(group)
        if self.dies_after_writing:
            self.dies_after_writing = False
            raise OSError("the cable was pulled")
        return results

    async def slowly(self, function: Callable[[], R], /) -> R:
        await self.open.wait()
        return await inline(function)

    async def run(self, *, task_status: trio.TaskStatus[EventStore]) -> None:
        await serve(self, self.slowly, task_status=task_status)


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
async def test_a_setup_is_there_after_reopening(open_book: Open, role: Role) -> None:
    async with open_book() as first:
        if role is Role.TAKER:
            await first.execute(PLACE)
        await first.remember(role)
        (position,) = first.now().all()
        assert position == history(role).position
        assert await first.recorded() == history(role).events
    async with open_book() as second:
        assert second.now().all() == (position,)
        assert second.now().get(ORDER_ID) == position
        held = await second.positions.call(Positions.signatures, ORDER_ID, 0)
        said = fact(role, SignaturesHeld)
        assert isinstance(said, SignaturesHeld)
        assert held == said.signatures


async def test_signatures_that_nobody_stored_are_named(open_book: Open) -> None:
    async with open_book() as opened:
        await opened.execute(PLACE)
        with pytest.raises(LocalError, match=f"attempt 0 of {ORDER_ID.hex()}") as caught:
            await opened.positions.call(Positions.signatures, ORDER_ID, 0)
        assert caught.value.code == "no_signatures"


async def test_a_refused_command_writes_nothing(open_book: Open) -> None:
    async with open_book() as opened:
        await opened.execute(PLACE)
        number = opened.now().changed.value
        for _ in range(2):
            with pytest.raises(LocalError, match="exists already"):
                await opened.execute(PLACE)
        assert len(await opened.recorded()) == 1
        assert opened.now().changed.value == number


@pytest.mark.parametrize("steps", range(1, 6))
async def test_interrupted_setups_failed_and_contracts_did_not(open_book: Open, steps: int) -> None:
    """A crash after every fact: what a node finds on its disk when it comes back."""
    async with open_book() as first:
        events = [CODEC.encode(each) for each in history(Role.TAKER, steps).events]
        await first.store.call(EventStore.append, STREAM_OF_IT, 0, events)
    async with open_book() as second:
        (position,) = second.now().all()
        expected = {1: State.REJECTED, 2: State.SETUP_FAILED, 3: State.SETUP_FAILED}.get(steps, State.OPENING)
        assert position.state is expected
        assert bool(second.now().reserved()) == (expected is State.OPENING)
        if expected is not State.OPENING:
            assert position.refusal == ("interrupted", "the node stopped before the setup was complete")
        assert position == await reread(second)


async def reread(opened: Book) -> Position:
    """The position as the disk tells it."""
    fresh = Positions(opened.store)
    await fresh.load()
    position = fresh.get(ORDER_ID)
    assert position is not None
    return position


async def test_coins_are_reserved_and_points_known_from_the_attempt_on(open_book: Open) -> None:
    async with open_book() as opened:
        await opened.execute(PLACE)
        assert opened.now().reserved() == frozenset()
        coins = {coin.outpoint for coin in TRADER[Role.TAKER].funding().inputs}
        for each in facts()[Role.TAKER]:
            await opened.positions.call(Positions.remember, each, PEER[Role.TAKER])
            assert opened.now().reserved() == coins
        position = opened.now().get(ORDER_ID)
        assert position is not None
        plan = position.plan()
        for party in (plan.maker, plan.taker):
            points = party.points
            assert await opened.now().known_points(points) == {point for _, point in points.each()}
            turned = Points(*(negated(point) for _, point in points.each()))
            assert await opened.now().known_points(turned) == {point for _, point in points.each()}
        strange = Points(*(bytes([2]) + bytes([each]) * 32 for each in (1, 2, 3)))
        assert await opened.now().known_points(strange) == frozenset()
    async with open_book() as again:
        assert await again.now().known_points(plan.taker.points) == {point for _, point in plan.taker.points.each()}
        assert again.now().reserved() == coins


async def test_points_of_a_failed_setup_stay_known(open_book: Open) -> None:
    async with open_book() as opened:
        await opened.execute(PLACE)
        await opened.remember(Role.TAKER, type(facts()[Role.TAKER][0]))
        await opened.execute(fail_setup("peer_gone", "the peer is gone"))
        assert opened.now().reserved() == frozenset()
        points = history(Role.TAKER).position.plan().maker.points
        assert await opened.now().known_points(points) == {point for _, point in points.each()}


# --- on disk first ----------------------------------------------------------------------------------------------------


async def test_nobody_sees_what_is_not_on_disk_yet() -> None:
    disk = Disk()
    async with book(disk.run) as opened, trio.open_nursery() as nursery:
        positions = opened.now()
        await opened.execute(PLACE, order(order_id=bytes(16)).order_id)  # the store is warm
        changes = positions.changed.changes()
        number = await anext(changes)
        disk.open = trio.Event()
        nursery.start_soon(opened.execute, PLACE)
        await trio.testing.wait_all_tasks_blocked()
        assert positions.get(ORDER_ID) is None
        assert positions.changed.value == number
        disk.open.set()
        assert await anext(changes) == number + 1
        assert positions.get(ORDER_ID) is not None
        assert len(await opened.recorded()) == 1


async def test_a_command_happens_or_does_not_whoever_is_cancelled() -> None:
    disk = Disk()
    async with book(disk.run) as opened:
        disk.open = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.execute, PLACE)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            disk.open.set()
        position = opened.now().get(ORDER_ID)
        assert position is not None
        assert len(await opened.recorded()) == position.version == 1


async def test_commands_on_one_position_take_turns_and_others_do_not_wait(open_book: Open) -> None:
    async with open_book() as opened, trio.open_nursery() as nursery:
        seen: list[int] = []

        def reject(position: Position) -> list[Event]:
            seen.append(position.version)
            return [OrderRejected("code", f"number {position.version}")]

        others = [bytes([each]) * 16 for each in range(1, 6)]
        for each in (*([ORDER_ID] * 5), *others):
            nursery.start_soon(opened.execute, reject, each)
        with trio.fail_after(5):
            while len(opened.now().all()) < 6 or len(seen) < 10:  # noqa: ASYNC110
                await trio.sleep(0.001)
        assert sorted(seen) == [0] * 6 + [1, 2, 3, 4]


# --- faults -----------------------------------------------------------------------------------------------------------


async def test_another_writer_is_noticed_and_decided_upon_anew(open_book: Open) -> None:
    async with open_book() as opened:
        await opened.execute(PLACE)
        behind = CODEC.encode(OrderRejected("max_exposure", "no more"))
        await opened.store.call(EventStore.append, STREAM_OF_IT, 1, [behind])
        decided: list[int] = []

        def once(position: Position) -> list[Event]:
            decided.append(position.version)
            return fail_setup("peer_gone", "the peer is gone")(position)

        position = await opened.execute(once)
        assert decided == [1, 2]
        assert position.refusal == ("max_exposure", "no more")
        assert opened.now().get(ORDER_ID) == position
        assert len(await opened.recorded()) == 2


async def test_a_writer_that_is_always_faster_ends_in_a_refusal() -> None:
    disk = Disk()
    async with book(disk.run) as opened:
        disk.contested = CONFLICT_TRIES
        with pytest.raises(LocalError, match="again and again"):
            await opened.execute(PLACE)
        assert disk.contested == 0
        assert opened.now().all() == ()
        await opened.execute(PLACE)


async def test_a_full_disk_refuses_and_everything_known_stays() -> None:
    """A contract stays watched and its coins reserved, though its next event could not be written."""
    disk = Disk()
    async with book(disk.run) as opened:
        await opened.execute(PLACE)
        await opened.remember(Role.TAKER)
        before = opened.now().all()
        reserved = opened.now().reserved()
        confirmed = observe(view(200, (wanted(history(Role.MAKER)), 200)))
        disk.full = True
        with pytest.raises(WorldError, match="no space is left"):
            await opened.execute(confirmed)
        assert opened.now().all() == before
        assert opened.now().reserved() == reserved != frozenset()
        disk.full = False
        assert (await opened.execute(confirmed)).state is State.OPEN


async def test_a_write_of_unknown_outcome_is_known_when_the_store_is_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk = Disk()
    async with book(disk.run) as opened:
        await opened.execute(PLACE)
        await opened.remember(Role.TAKER)
        earlier = opened.now()
        confirmed = observe(view(200, (wanted(history(Role.MAKER)), 200)))
        disk.dies_after_writing = True
        with pytest.raises(Disconnected):
            await opened.execute(confirmed)
        assert earlier.all()[0].state is State.OPENING  # as last known, and not forgotten
        assert earlier.reserved()
        await opened.up_again()
        assert opened.now() is not earlier
        assert opened.now().all()[0].state is State.OPEN
        assert (await opened.execute(confirmed)).version == len(await opened.recorded())


async def test_a_setup_whose_end_could_not_be_recorded_has_failed_when_the_store_is_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk = Disk()
    async with book(disk.run) as opened:
        await opened.execute(PLACE)
        disk.dies_after_writing = True
        with pytest.raises(Disconnected):
            await opened.remember(Role.TAKER)
        with pytest.raises(Disconnected):
            await opened.execute(fail_setup("peer_gone", "the peer is gone"))
        await opened.up_again()
        assert opened.now().all()[0].state is State.SETUP_FAILED
        assert opened.now().reserved() == frozenset()
        with pytest.raises(LocalError, match="not under way"):
            await opened.remember(Role.TAKER, SignaturesHeld)  # a dialogue that went on without noticing


async def test_a_contract_whose_record_is_of_unknown_outcome_is_kept_when_the_store_is_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Our lock signatures count as left: the position may not be taken for a failed setup."""
    disk = Disk()
    async with book(disk.run) as opened:
        for each in facts()[Role.MAKER]:
            disk.dies_after_writing = isinstance(each, SetupComplete)
            if disk.dies_after_writing:
                with pytest.raises(Disconnected):
                    await opened.positions.call(Positions.remember, each, PEER[Role.MAKER])
            else:
                await opened.positions.call(Positions.remember, each, PEER[Role.MAKER])
        await opened.up_again()
        assert opened.now().all()[0].state is State.OPENING
        assert opened.now().reserved()
        with pytest.raises(LocalError, match="our lock signatures left"):
            await opened.execute(fail_setup("peer_gone", "the peer is gone"))


async def test_an_order_that_never_was_wakes_nobody() -> None:
    disk = Disk()
    async with book(disk.run) as opened:
        number = opened.now().changed.value
        await opened.execute(fail_setup("bad_quantity", "too many"))
        assert opened.now().changed.value == number
        assert opened.now().all() == ()
        assert disk.streams() == []


async def test_orders_that_came_to_nothing_leave_nothing_in_memory(autojump_clock: trio.testing.MockClock) -> None:
    """A maker closes the book on each order that it refused, by an id that the taker chose."""
    async with book(partial(run_memory_store, MemoryBackend())) as refusing:
        before = refusing.now().changed.value
        async with trio.open_nursery() as nursery:
            for number in range(50):
                for _ in range(2):  # two at once on one id
                    nursery.start_soon(refusing.execute, fail_setup("no", "not today"), number.to_bytes(16, "big"))
        positions = refusing.now()
        assert positions.all() == ()
        assert positions.changed.value == before
        assert len(positions._locks) == 0
        await refusing.execute(PLACE)
        assert list(positions._locks) == [ORDER_ID]


async def test_one_record_that_cannot_be_read_is_told_and_hides_no_other() -> None:
    damaged = bytes([1]) * 16
    store: Service[EventStore] = Service("store", partial(run_memory_store, MemoryBackend()), raise_bugs=True)

    async def run(*, task_status: trio.TaskStatus[Positions]) -> None:
        await run_positions(store, report=told, task_status=task_status)

    told: Service[Positions] = Service("positions", run, [store], raise_bugs=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.supervise)
        await store.until(Up.HEALTHY)
        torn = NewEvent("OrderPlaced", 1, b"\xc1")
        await store.call(EventStore.append, STREAM + damaged.hex(), 0, [torn])
        for event in PLACE(Position(id=ORDER_ID)):
            await store.call(EventStore.append, STREAM_OF_IT, 0, [CODEC.encode(event)])
        nursery.start_soon(told.supervise)
        await told.until(Up.DEGRADED)
        with told.lent() as positions:
            assert [position.id for position in positions.all()] == [ORDER_ID]
            assert set(positions.unreadable) == {damaged}
            assert told.health.reason == positions.unreadable[damaged]
        nursery.cancel_scope.cancel()


async def test_what_happened_all_the_same_is_written_once_the_disk_takes_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk = Disk()
    async with book(partial(run_memory_store, disk)) as this:
        await this.execute(PLACE)
        disk.full = True
        await this.positions.call(Positions.record, ORDER_ID, fail_setup("peer_gone", "the peer is gone"))
        await trio.sleep(60)
        assert this.now().all()[0].state is State.ORDERED
        disk.full = False
        await trio.sleep(60)
        assert this.now().all()[0].state is State.REJECTED


@pytest.mark.parametrize("role", Role)
async def test_signatures_are_dropped_when_the_peer_revoked_and_when_the_position_is_buried(
    open_book: Open, role: Role
) -> None:
    """Should the peer publish what it revoked, it is punished; once nothing is watched, nothing is claimed."""
    run = rollovers(2)
    async with open_book() as opened:
        if role is Role.TAKER:
            await opened.execute(PLACE)
        await opened.remember(role)
        await opened.execute(observe(view(LOCKED, (lock(), LOCKED))))

        async def held() -> list[bool]:
            kinds = [signatures_blob(index) for index in range(3)]
            return [await opened.store.call(EventStore.blob, STREAM_OF_IT, kind) is not None for kind in kinds]

        assert await held() == [True, False, False]
        for fact_ in run.records(role)[:-1]:
            await opened.positions.call(Positions.remember, fact_, PEER[role])
        assert await held() == [True, True, False]
        await opened.positions.call(Positions.remember, run.records(role)[-1], PEER[role])
        assert await held() == [False, True, False]
        for fact_ in run.records(role, 1):
            await opened.positions.call(Positions.remember, fact_, PEER[role])
        assert await held() == [False, False, True]
        closed = completed(close(index=2))
        for fact_ in close(index=2)[role]:
            await opened.positions.call(Positions.remember, fact_, PEER[role])
        await opened.execute(observe(view(215, (lock(), LOCKED), (closed, 210))))
        assert await held() == [False, False, True]
        await opened.execute(observe(view(310, (lock(), LOCKED), (closed, 210))))
        assert await held() == [False, False, False]
