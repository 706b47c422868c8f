"""The backup: what is sealed in a file, how a file comes to its place, and what is in place before anything leaves."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st

from node.backup import keeping, service
from node.backup.files import UNFINISHED, Folder, MemoryFiles, write_whole
from node.backup.format import HEADER, SUFFIX, BadBackup, Contents, Head, Kept, Record, Seal
from node.backup.keeping import matters
from node.backup.restore import put_together, write_records
from node.backup.service import Backup, Owner, run_backup
from node.clock import Clock
from node.eventstore.interface import EventStore, RunBlocking
from node.eventstore.memory import MemoryBackend, inline, run_memory_store
from node.health import State as Up
from node.position.book import Positions, run_positions
from node.position.commands import place_order
from node.position.events import STREAM, Revoking, RolloverHeld
from node.position.observing import observe
from node.position.state import Position
from node.supervision import Service
from protocols.contract.terms import Role
from protocols.contract_setup import SetupComplete, SignaturesHeld
from protocols.errors import LocalError, WorldError
from tests.lives import LOCKED, lock, rollovers
from tests.positions import ORDER_ID, PEER, facts, history, view
from tests.setups import order
from tests.worlds import until

SEED = bytes(range(64))
SEAL = Seal(SEED)
BOTH = pytest.mark.parametrize("role", Role)
SAMPLE = Contents(
    Head("regtest", "taker", 1_700_000_000.5, {bytes(16): 2}),
    (Record(bytes(16), (Kept("A", 1, b"\x80", 1.5), Kept("B", 2, b"\x81", 2.5)), {"signatures/0": b"s" * 99}),),
    {},
)


def sealed(contents: Contents = SAMPLE) -> bytes:
    return SEAL.close(contents, lambda size: bytes([7]) * size)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_what_is_sealed_is_what_is_found() -> None:
    assert SEAL.open(sealed()) == SAMPLE
    assert SEAL.head(sealed()) == SAMPLE.head
    assert SEAL.close(SAMPLE, os.urandom) != SEAL.close(SAMPLE, os.urandom)


@given(at=st.integers(min_value=0), change=st.integers(1, 255))
def test_no_byte_of_a_file_can_be_changed(at: int, change: int) -> None:
    data = bytearray(sealed())
    data[at % len(data)] ^= change
    with pytest.raises(BadBackup):
        SEAL.open(bytes(data))


@given(st.integers(0, 10**4))
def test_a_file_that_is_cut_off_is_damaged(length: int) -> None:
    data = sealed()
    with pytest.raises(BadBackup) as damaged:
        SEAL.open(data[: length % len(data)])
    assert damaged.value.code == "backup_damaged"


def test_another_seed_is_told_from_damage() -> None:
    other = Seal(bytes(64))
    with pytest.raises(BadBackup) as refused:
        other.open(sealed())
    assert refused.value.code == "backup_of_another_seed"
    assert other.name(ORDER_ID) != SEAL.name(ORDER_ID)


def test_a_newer_version_is_named() -> None:
    data = bytearray(sealed())
    data[9] = 2
    with pytest.raises(BadBackup, match="version 2"):
        SEAL.open(bytes(data))


def test_neither_the_seed_nor_the_order_id_is_in_a_file() -> None:
    kept = evolve(SAMPLE.records[0], order_id=ORDER_ID)
    data = sealed(evolve(SAMPLE, head=evolve(SAMPLE.head, versions={ORDER_ID: 2}), records=(kept,)))
    assert SEED[:8] not in data
    assert ORDER_ID not in data
    assert ORDER_ID.hex() not in SEAL.name(ORDER_ID)
    assert len(data) > HEADER


# --- its place --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_whatever_step_fails_the_old_file_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    folder = Folder(tmp_path)
    folder.write("a" + SUFFIX, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(WorldError, match=f"{tmp_path}: No space left on device"):
            folder.write("a" + SUFFIX, b"new")
    assert folder.names() == ["a" + SUFFIX]
    assert os.listdir(tmp_path) == ["a" + SUFFIX]
    assert folder.read("a" + SUFFIX) == b"old"


def test_what_was_left_half_written_is_never_read_and_cleared_away(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "made")
    folder.prepare()
    write_whole(folder.path / ("a" + SUFFIX), b"whole")
    (folder.path / f"b{SUFFIX}{UNFINISHED}").write_bytes(b"ha")
    assert folder.names() == ["a" + SUFFIX]
    folder.prepare()
    assert os.listdir(folder.path) == ["a" + SUFFIX]
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert (folder.path / ("a" + SUFFIX)).stat().st_mode & 0o777 == 0o600


# --- before and behind each append ------------------------------------------------------------------------------------


@define(eq=False)
class Place(MemoryFiles):
    """May be full; remembers what it was given."""

    full: bool = False

    def write(self, name: str, data: bytes) -> None:
        if self.full:
            raise WorldError("backup_failed", "/backup: No space left on device")
        super().write(name, data)

    def try_out(self, name: str) -> None:
        if self.full:
            raise WorldError("backup_failed", "/backup: No space left on device")


@define
class Node:
    """A store, a backup, and the positions on both."""

    disk: MemoryBackend
    place: Place
    positions: Service[Positions]
    backup: Service[Backup]

    async def remember(self, role: Role, *kinds: type[object]) -> None:
        for each in facts()[role]:
            if not kinds or isinstance(each, kinds):
                await self.positions.call(Positions.remember, each, PEER[role])

    def names(self) -> list[str]:
        """Of the events in the backup."""
        data = self.place.kept.get(SEAL.name(ORDER_ID))
        return [] if data is None else [event.name for event in SEAL.open(data).records[0].events]

    def recorded(self) -> list[str]:
        return [event.name for event in self.disk.load(STREAM + ORDER_ID.hex(), 0)]


@asynccontextmanager
async def kept(
    disk: MemoryBackend | None = None, place: Place | None = None, run_blocking: RunBlocking = inline
) -> AsyncIterator[Node]:
    disk, place = disk or MemoryBackend(), place or Place()
    made = Backup(place, SEAL, Owner("regtest", "taker"), Clock(), os.urandom, run_blocking)
    store: Service[EventStore] = Service("store", partial(run_memory_store, disk), raise_bugs=True)
    backup: Service[Backup] = Service("backup", partial(run_backup, made), raise_bugs=True)
    positions: Service[Positions] = Service(
        "positions", partial(run_positions, store, backup), [store], raise_bugs=True
    )
    async with trio.open_nursery() as nursery:
        for service in (store, backup, positions):
            nursery.start_soon(service.supervise)
        await backup.until(Up.HEALTHY)
        await positions.until(Up.HEALTHY)
        yield Node(disk, place, positions, backup)
        nursery.cancel_scope.cancel()


async def place(it: Node, role: Role) -> None:
    if role is Role.TAKER:
        await it.positions.call(Positions.execute, ORDER_ID, place_order(order(), role, PEER[role]))


@BOTH
async def test_what_binds_is_in_place_with_its_signatures(autojump_clock: object, role: Role) -> None:
    async with kept() as it:
        await place(it, role)
        await it.remember(role)
        await trio.testing.wait_all_tasks_blocked()
        assert it.names() == it.recorded()
        (record,) = SEAL.open(it.place.kept[SEAL.name(ORDER_ID)]).records
        assert set(record.blobs) == {"signatures/0"}
        size = len(it.place.kept[SEAL.name(ORDER_ID)])
        assert size < 120_000, "a contract of 25 events with all its signatures"


@BOTH
@pytest.mark.parametrize("kind", [SignaturesHeld, SetupComplete])
async def test_nothing_is_signed_while_no_backup_can_be_written(
    autojump_clock: object, role: Role, kind: type[object]
) -> None:
    async with kept() as it:
        await place(it, role)
        for each in facts()[role]:
            it.place.full = isinstance(each, kind)
            before = it.recorded()
            if it.place.full:
                with pytest.raises(WorldError) as refused:
                    await it.positions.call(Positions.remember, each, PEER[role])
                assert refused.value.code == "backup_failed"
                assert "/backup: No space left" in refused.value.sentence
                assert it.recorded() == before
                return
            await it.positions.call(Positions.remember, each, PEER[role])


async def test_a_backup_that_is_down_is_a_refusal_and_not_an_unknown_outcome(autojump_clock: object) -> None:
    async with kept() as it:
        await place(it, Role.TAKER)
        it.backup.stop()
        await it.backup.until(Up.STOPPED)
        with pytest.raises(WorldError) as refused:
            await it.remember(Role.TAKER)
        assert refused.value.code == "backup_failed"
        assert "CommitSignatureGiven" not in it.recorded()


async def test_what_the_chain_shows_is_seen_though_no_backup_can_be_written(autojump_clock: object) -> None:
    async with kept() as it:
        await it.remember(Role.MAKER)
        await trio.testing.wait_all_tasks_blocked()
        it.place.full = True
        await it.positions.call(Positions.execute, ORDER_ID, observe(view(LOCKED, (lock(), LOCKED))))
        await trio.sleep(1)
        assert it.recorded()[-1] == "LockConfirmed"
        assert it.names()[-1] != "LockConfirmed"
        assert it.backup.health.state is Up.DEGRADED
        it.place.full = False
        await trio.sleep(60)
        assert it.names()[-1] == "LockConfirmed"
        await it.backup.until(Up.HEALTHY)


@BOTH
async def test_a_rollover_is_in_place_step_by_step(autojump_clock: object, role: Role) -> None:
    async with kept() as it:
        await place(it, role)
        await it.remember(role)
        await it.positions.call(Positions.execute, ORDER_ID, observe(view(LOCKED, (lock(), LOCKED))))
        for each in rollovers(1).facts[role][0]:
            await it.positions.call(Positions.remember, each, PEER[role])
            new = it.recorded()
            if new[-1] in {RolloverHeld.__name__, Revoking.__name__}:
                assert it.names() == new, "before anybody else had a turn"
        await trio.testing.wait_all_tasks_blocked()
        assert it.names() == it.recorded()
        (record,) = SEAL.open(it.place.kept[SEAL.name(ORDER_ID)]).records
        assert set(record.blobs) == {"signatures/1"}, "those of a contract that the peer revoked are not needed"


async def test_a_file_that_somebody_took_away_or_damaged_is_written_again(autojump_clock: object) -> None:
    async with kept() as it:
        await it.remember(Role.MAKER)
        await trio.testing.wait_all_tasks_blocked()
        it.place.kept.clear()
        await trio.sleep(60)
        assert it.names() == it.recorded()
        disk, place_ = it.disk, it.place
    (name,) = place_.kept
    place_.kept[name] = place_.kept[name][:-1]
    async with kept(disk, place_) as again:
        await trio.sleep(60)
        assert again.names() == again.recorded()


async def test_a_file_that_is_behind_or_ahead_is_brought_up_at_start(autojump_clock: object) -> None:
    async with kept() as it:
        await it.remember(Role.MAKER)
        await trio.testing.wait_all_tasks_blocked()
        old, disk = dict(it.place.kept), it.disk
        await it.positions.call(Positions.execute, ORDER_ID, observe(view(LOCKED, (lock(), LOCKED))))
    async with kept(disk, Place(kept=old)) as again:
        await trio.sleep(1)
        assert again.names() == again.recorded()


async def test_a_setup_that_failed_leaves_no_file(autojump_clock: object) -> None:
    async with kept() as it:
        for each in facts()[Role.MAKER][:2]:
            await it.positions.call(Positions.remember, each, PEER[Role.MAKER])
        await trio.testing.wait_all_tasks_blocked()
        assert it.names()
        disk, place_ = it.disk, it.place
    async with kept(disk, place_) as again:  # interrupted
        await trio.sleep(1)
        assert again.recorded()[-1] == "SetupFailed"
        assert again.place.kept == {}


@BOTH
async def test_what_is_restored_has_its_announcements(autojump_clock: object, role: Role) -> None:
    async with kept() as it:
        await place(it, role)
        await it.remember(role)
        await it.positions.call(Positions.execute, ORDER_ID, observe(view(LOCKED, (lock(), LOCKED))))
        for each in rollovers(1).facts[role][0]:
            await it.positions.call(Positions.remember, each, PEER[role])
        await trio.testing.wait_all_tasks_blocked()
        (before,) = await it.positions.call(positions_of)
        files = dict(it.place.kept)
    disk = MemoryBackend()
    write_records(disk, put_together(files, "backup", SEED), lambda _: None)
    async with kept(disk, Place(kept=files)) as again:
        (after,) = await again.positions.call(positions_of)
        assert after.recovered
        assert [each.announcements for each in after.attempts] == [before.attempts[1].announcements] * 2
        assert len(after.attempts[1].announcements) == 25
        await trio.sleep(60)
        assert again.names() == again.recorded(), "and what is restored is backed up with them"


async def positions_of(positions: Positions) -> tuple[Position, ...]:
    await trio.lowlevel.checkpoint()
    return positions.all()


async def test_the_file_of_a_position_that_was_archived_is_removed(autojump_clock: object) -> None:
    async with kept() as it:
        await it.remember(Role.MAKER)
        await trio.testing.wait_all_tasks_blocked()
        disk, place_ = it.disk, it.place
    stream = STREAM + ORDER_ID.hex()
    (archived,) = disk.write([partial(disk.archive, stream, len(disk.load(stream, 0)), b"", ())])
    archived.unwrap()
    async with kept(disk, place_) as again:
        await trio.sleep(1)
        assert place_.kept == {}
        assert again.backup.state is Up.HEALTHY


async def test_one_file_of_all_positions(autojump_clock: object, tmp_path: Path) -> None:
    async with kept() as it:
        await it.remember(Role.MAKER)
        with it.positions.lent() as positions:
            assert positions.backup is not None
            records, pieces = await positions.backup.everything(positions)
        target = tmp_path / "all.cfdbackup"
        await it.backup.call(Backup.write_all, target, records, pieces)
        assert [record.order_id for record in SEAL.open(target.read_bytes()).records] == [ORDER_ID]
        for path, code in ((target, "file_exists"), (Path("here"), "bad_path")):
            with pytest.raises(LocalError) as refused:
                await it.backup.call(Backup.write_all, path, records, pieces)
            assert refused.value.code == code


@BOTH
def test_a_position_matters_from_the_first_signature_on(role: Role) -> None:
    wanted = [matters(history(role, steps).position) for steps in range(5)]
    assert wanted == sorted(wanted)
    assert [wanted[0], wanted[-1]] == [False, True]


# --- a place that hangs, and one that is full -------------------------------------------------------------------------


@define(eq=False)
class Hanging(Place):
    """Does not come back from a write while it hangs; does it in the end."""

    hangs: threading.Event = field(factory=threading.Event)

    def __attrs_post_init__(self) -> None:
        self.hangs.set()

    def write(self, name: str, data: bytes) -> None:
        self.hangs.wait(60)
        super().write(name, data)


async def test_a_place_that_hangs_refuses_and_what_it_does_late_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "WITHIN", 0.2)
    monkeypatch.setattr(keeping, "AGAIN", 0.05)
    monkeypatch.setattr(keeping, "LOOK_EVERY", 0.5)  # who tried the place out may be the one that found it hanging
    place_ = Hanging()
    async with kept(place=place_, run_blocking=service.one_thread()) as it:
        *_, last = facts()[Role.MAKER]
        for each in facts()[Role.MAKER][:-1]:
            await it.positions.call(Positions.remember, each, PEER[Role.MAKER])
        await until(lambda: it.names() == it.recorded())
        before = it.recorded()
        place_.hangs.clear()
        for _ in range(2):  # the second waits for the first one's thread, and is not let in
            with pytest.raises(WorldError, match="memory: it has not answered") as refused:
                await it.positions.call(Positions.remember, last, PEER[Role.MAKER])
            assert refused.value.code == "backup_failed"
        assert it.recorded() == before
        await it.backup.until(Up.DEGRADED)
        with it.backup.lent() as backup, pytest.raises(WorldError, match="cannot be written"):
            backup.check_writable()
        place_.hangs.set()
        await it.backup.until(Up.HEALTHY)
        assert it.recorded() == before
        assert it.names() == before, "the write that came late said more, and was replaced"
        await it.positions.call(Positions.remember, last, PEER[Role.MAKER])
        assert it.names() == it.recorded() != before


async def test_no_write_overtakes_one_that_hangs() -> None:
    run, done, hangs = service.one_thread(), [], threading.Event()

    def slow() -> None:
        hangs.wait(60)
        done.append("slow")

    with trio.move_on_after(0.05) as left:
        await run(slow)
    assert left.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, partial(done.append, "next"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert done == []
        hangs.set()
    assert done == ["slow", "next"]


async def test_a_full_place_is_found_out_before_anything_is_begun(autojump_clock: object) -> None:
    async with kept() as it:
        it.place.full = True
        await it.backup.until(Up.DEGRADED)
        with it.backup.lent() as backup, pytest.raises(WorldError, match="No space left on device") as refused:
            backup.check_writable()
        assert refused.value.code == "backup_failed"
        it.place.full = False
        await it.backup.until(Up.HEALTHY)
        with it.backup.lent() as backup:
            backup.check_writable()


def test_trying_a_place_out_leaves_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    folder.try_out("a")
    assert os.listdir(tmp_path) == []

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WorldError, match="No space left on device"):
        folder.try_out("a")
    assert os.listdir(tmp_path) == []
