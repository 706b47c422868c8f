"""Positions at scale: started from snapshots, archived when over, shown though the store takes nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, evolve, field

from node.clock import Clock
from node.eventstore.interface import Cursor, EventStore, NewEvent, Recorded, Snapshot, StoreReadOnly
from node.eventstore.memory import MemoryBackend, run_memory_store
from node.health import State as Up
from node.position import snapshots
from node.position.archive import BURIED_FOR, FAILED_FOR
from node.position.book import SNAPSHOT_EVERY, TIDY_EVERY, Positions, run_positions
from node.position.commands import fail_setup, place_order
from node.position.events import stream_of
from node.position.observing import observe
from node.position.rolling import fail_rollover
from node.position.state import Position, State
from node.supervision import Service
from node.web.views import position_view
from protocols.contract.keys import Points, negated
from protocols.contract.terms import Role
from protocols.errors import LocalError, WorldError
from tests.lives import LOCKED, close, completed, lock, rollovers
from tests.positions import ORDER_ID, PEER, facts, view
from tests.setups import order

ROLE = Role.TAKER
PLACE = place_order(order(), ROLE, PEER[ROLE])
MANY = SNAPSHOT_EVERY + 5


class Disk(MemoryBackend):
    """Counts what is read of it, and may take nothing."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.read_only = False
        self.read_events = 0

    def tails(self, after: Mapping[str, int]) -> dict[str, list[Recorded]]:
        tails = super().tails(after)
        self.read_events += sum(map(len, tails.values()))
        return tails

    def append(
        self, stream: str, expected_version: int, events: Sequence[NewEvent], cursor: Cursor | None
    ) -> list[Recorded]:
        self._refuse()
        return super().append(stream, expected_version, events, cursor)

    def prune(self, stream: str, kinds: Any) -> None:
        self._refuse()
        super().prune(stream, kinds)

    def archive(self, stream: str, expected_version: int, summary: bytes, marks: Collection[bytes]) -> None:
        self._refuse()
        super().archive(stream, expected_version, summary, marks)

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        self._refuse()
        super().keep_snapshot(snapshot)

    def _refuse(self) -> None:
        if self.read_only:
            raise StoreReadOnly("store_read_only", "the file is damaged")


@define
class World:
    """A disk that outlives the positions on it. Its wall clock is trio's."""

    clock: Clock = field(factory=lambda: Clock(wall=trio.current_time))
    disk: Disk = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.disk = Disk(self.clock)

    @asynccontextmanager
    async def node(self) -> AsyncIterator[Service[Positions]]:
        store: Service[EventStore] = Service("store", partial(run_memory_store, self.disk), raise_bugs=True)

        async def run(*, task_status: trio.TaskStatus[Positions]) -> None:
            shown = partial(position_view, broadcasts={})
            await run_positions(store, clock=self.clock, show=shown, report=service, task_status=task_status)

        service: Service[Positions] = Service("positions", run, [store], raise_bugs=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.supervise)
            nursery.start_soon(service.supervise)
            await service.until(Up.HEALTHY, Up.DEGRADED)
            yield service
            nursery.cancel_scope.cancel()


def now(service: Service[Positions]) -> Positions:
    with service.lent() as positions:
        return positions


async def opened(service: Service[Positions]) -> None:
    await service.call(Positions.execute, ORDER_ID, PLACE)
    for fact in facts()[ROLE]:
        await service.call(Positions.remember, fact, PEER[ROLE])
    await service.call(Positions.execute, ORDER_ID, observe(view(LOCKED, (lock(), LOCKED))))


async def closed(service: Service[Positions], tip: int) -> None:
    """And as deep in the chain as `tip` says."""
    for fact in close()[ROLE]:
        await service.call(Positions.remember, fact, PEER[ROLE])
    for height in (215, tip):
        await service.call(
            Positions.execute, ORDER_ID, observe(view(height, (lock(), LOCKED), (completed(close()), 210)))
        )


async def grown(service: Service[Positions]) -> Position:
    position = None
    for number in range(MANY):
        refused = fail_rollover("peer_gone", f"the maker was away ({number})", rejected=False)
        position = await service.call(Positions.execute, ORDER_ID, refused)
    assert position is not None
    return position


# --- snapshots --------------------------------------------------------------------------------------------------------


async def test_a_start_reads_what_happened_since_the_snapshot(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with world.node() as node:
        await opened(node)
        for fact in rollovers(2).records(ROLE):
            await node.call(Positions.remember, fact, PEER[ROLE])
        await grown(node)
        await trio.sleep(TIDY_EVERY + 1)
        refused = fail_rollover("peer_gone", "once more", rejected=False)
        before = await node.call(Positions.execute, ORDER_ID, refused)
        assert world.disk.read_events == 0
    async with world.node() as node:
        assert now(node).all() == (before,)
        assert world.disk.read_events == 1
        for points in (rollovers().node(role).plan(index).maker.points for role in Role for index in (0, 1)):
            turned = Points(*(negated(point) for _, point in points.each()))
            assert await node.call(Positions.known_points, turned) == {point for _, point in points.each()}
        for fact in rollovers(2).records(ROLE, 1):  # it goes on as if it had been replayed
            await node.call(Positions.remember, fact, PEER[ROLE])
        after = now(node).all()
    world.disk._snapshots.clear()
    async with world.node() as node:
        assert now(node).all() == after


@pytest.mark.parametrize("harm", ["another form", "damaged", "without its announcements", "another version"])
async def test_a_snapshot_that_is_of_no_use_is_as_good_as_none(
    harm: str, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    async with world.node() as node:
        await opened(node)
        before = await grown(node)
        await trio.sleep(TIDY_EVERY + 1)
    kept = {each.stream: each for each in world.disk.snapshots("")}[stream_of(ORDER_ID)]
    match harm:
        case "another form":
            monkeypatch.setattr(snapshots, "FORM", bytes(32))
        case "damaged":
            world.disk.keep_snapshot(evolve(kept, data=kept.data[:-1] + b"?"))
        case "another version":
            world.disk.keep_snapshot(evolve(kept, position=kept.position - 1))
        case _:
            snapshot = snapshots.decode(kept.data)
            needed = dict.fromkeys(snapshot.needs, b"")
            data = snapshots.encode(before, [])
            elsewhere = data.replace(next(iter(needed)), bytes(32))
            world.disk.keep_snapshot(evolve(kept, data=snapshots.sealed(elsewhere[32:])))
    async with world.node() as node:
        assert now(node).all() == (before,)
        assert world.disk.read_events >= MANY or harm != "another form"


async def test_a_snapshot_that_cannot_be_written_hinders_nobody(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    async with world.node() as node:
        await opened(node)

        def full(*_: object) -> None:
            raise WorldError("disk_full", "no space is left")

        monkeypatch.setattr(world.disk, "keep_snapshot", full)  # a disk that is full for snapshots only
        await grown(node)
        await trio.sleep(3 * TIDY_EVERY)
        assert node.health.state is Up.HEALTHY
        monkeypatch.undo()
        await trio.sleep(2 * TIDY_EVERY)
        assert len(world.disk.snapshots("position/")) == 1


# --- the archive ------------------------------------------------------------------------------------------------------


async def test_a_buried_position_leaves_the_memory_and_is_known_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    async with world.node() as node:
        await opened(node)
        await closed(node, 310)
        (position,) = now(node).all()
        assert position.buried
        await trio.sleep(BURIED_FOR - TIDY_EVERY)
        assert now(node).all() == (position,)
        await trio.sleep(2 * TIDY_EVERY)
        await check_archived(node, position)
        assert len(now(node)._points) == len(now(node)._locks) == len(now(node)._kept) == 0
    async with world.node() as node:
        assert now(node).all() == ()
        await check_archived(node, position)


async def check_archived(node: Service[Positions], position: Position) -> None:
    positions = now(node)
    assert positions.get(ORDER_ID) is None
    assert await positions.known(ORDER_ID)
    assert not await positions.known(bytes(16))
    for party in (position.plan(0).maker, position.plan(0).taker):
        turned = Points(*(negated(point) for _, point in party.points.each()))
        assert await positions.known_points(turned) == {point for _, point in party.points.each()}
    with pytest.raises(LocalError) as caught:
        await positions.execute(ORDER_ID, PLACE)
    assert caught.value.code == "archived"
    (archived,) = await positions.archived()
    assert archived == await positions.archived_one(ORDER_ID)
    assert archived.view == position_view(position, {})
    assert archived.scripts == {position.attempts[0].own.payout_script, position.attempts[0].own.change_script}
    assert await positions.archived(before=archived.id) == []
    assert await positions.archived_one(bytes(16)) is None


async def test_what_came_to_nothing_is_archived_after_a_day(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with world.node() as node:
        for number in range(5):
            order_id = bytes([number]) * 16
            await node.call(Positions.execute, order_id, PLACE)
            await node.call(Positions.execute, order_id, fail_setup("no", "not today"))
            await trio.sleep(60)
        await trio.sleep(FAILED_FOR - 6 * 60)
        assert len(now(node).all()) == 5
        await trio.sleep(2 * TIDY_EVERY + 5 * 60)
        assert now(node).all() == ()
        newest = await node.call(Positions.archived, limit=2)
        assert [each.order_id[0] for each in newest] == [4, 3]
        assert [each.order_id[0] for each in await node.call(Positions.archived, newest[-1].id)] == [2, 1, 0]
        assert {each.view["state"] for each in newest} == {State.REJECTED.value}


async def test_what_is_open_or_not_deep_enough_is_not_archived(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with world.node() as node:
        await opened(node)
        await trio.sleep(3 * FAILED_FOR)
        assert now(node).all()[0].state is State.OPEN
        await closed(node, 309)
        await trio.sleep(3 * FAILED_FOR)
        assert now(node).all()[0].state is State.CLOSED


# --- a store that takes nothing more ----------------------------------------------------------------------------------


async def test_a_read_only_store_shows_positions_and_refuses_commands(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with world.node() as node:
        await opened(node)
        await closed(node, 310)
        for number in (1, 2):
            await node.call(Positions.execute, bytes([number]) * 16, PLACE)
        torn = stream_of(bytes([2]) * 16)
        world.disk._streams[torn] = [Recorded(99, torn, 1, "OrderPlaced", 1, b"\xc1", 0.0)]
        before = {each.id: each for each in now(node).all()}
    world.disk.read_only = True
    async with world.node() as node:
        assert node.health.state is Up.DEGRADED
        assert "restore a backup" in str(node.health)
        positions = now(node)
        assert {each.id: each for each in positions.all()} == {
            order_id: each for order_id, each in before.items() if order_id != bytes([2]) * 16
        }
        assert list(positions.unreadable) == [bytes([2]) * 16]
        with pytest.raises(WorldError, match="no new trades, rollovers or closes") as caught:
            positions.check_writable()
        assert caught.value.code == "store_read_only"
        for command in (PLACE, fail_setup("no", "not today")):
            with pytest.raises(WorldError, match="until a backup is restored") as caught:
                await positions.execute(bytes([1]) * 16 if command is not PLACE else bytes([3]) * 16, command)
            assert caught.value.code == "store_read_only"
        await trio.sleep(2 * FAILED_FOR)
        assert len(positions.all()) == 2
    world.disk.read_only = False
    async with world.node() as node:
        assert now(node).read_only is None
        assert now(node).get(bytes([1]) * 16).state is State.REJECTED  # type: ignore[union-attr]  # it is there
