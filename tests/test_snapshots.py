"""Snapshots: every prefix of every life comes back as it was, and goes on as if nothing had been between."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256

import attrs
import pytest
from attrs import frozen

from node.position import snapshots
from node.position.commands import attest, fail_setup, force_close, recover
from node.position.events import Event
from node.position.evolve import evolve
from node.position.snapshots import BadSnapshot
from node.position.state import Position
from protocols.contract.terms import Role
from tests.lives import ATTESTED, close, completed, do, opened, punished, rolled, rollovers, see, spend
from tests.positions import LAST, ORDER_ID, History, attestation, history, wanted

POINTS = frozenset({bytes([2]) + bytes([each]) * 32 for each in range(3)})


def pieces(position: Position) -> dict[bytes, bytes]:
    """What the store holds of it beside the events, by hash."""
    named = [position.announcements, *(each.announcements for each in position.attempts)]
    named += [each.following.announcements for each in position.begun if each.following is not None]
    return {sha256(piece).digest(): piece for those in named for piece in those}


def again(position: Position) -> Position:
    """Read back from its bytes."""
    read = snapshots.decode(snapshots.encode(position, POINTS))
    held = pieces(position)
    assert read.points == POINTS
    assert read.needs == held.keys()
    return read.position(held)


def whole(value: object) -> object:
    """All there is, the moments that do not count when positions are compared too."""
    assert isinstance(value, Position)
    return attrs.asdict(value, filter=lambda attribute, _: attribute.name != "_plans")


def _closed(role: Role) -> History:
    made = opened(role)
    do(made, *close()[role])
    see(made, completed(close()), 210)
    see(made, completed(close()), 210, tip=400)
    return made


def _punished(role: Role) -> History:
    made = rolled(role)
    commit = rollovers().commit(role.other, 0)
    see(made, commit, 210)
    see(made, commit, 210, more=punished(made))
    return made


def _settled(role: Role) -> History:
    made = opened(role)
    made.do(force_close("the user's word"))
    commit = wanted(made)
    see(made, commit, 210)
    made.do(attest(attestation(LAST, ATTESTED)))
    do(made, *spend()[role])
    see(made, commit, 210, more=completed(spend()))
    return made


def _recovered(role: Role) -> History:
    made = rolled(role, 2)
    made.do(recover("from a backup"))
    return made


def _failed(role: Role) -> History:
    made = history(role, 2)
    made.do(fail_setup("peer_gone", "the peer is gone"))
    return made


LIVES = {
    "rolled over": lambda role: rolled(role, index=2),
    "closed": _closed,
    "punished": _punished,
    "settled": _settled,
    "recovered": _recovered,
    "failed": _failed,
}


@lru_cache
def life(name: str, role: Role) -> tuple[Event, ...]:
    made = LIVES[name](role)
    assert len(made.events) > 2
    return tuple(made.events)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("name", LIVES)
def test_every_prefix_comes_back_and_goes_on(name: str, role: Role) -> None:
    events = life(name, role)
    position = read = Position(id=ORDER_ID)
    for number, event in enumerate(events):
        at = 1_700_000_000.25 + number
        position, read = evolve(position, event, at), evolve(again(read), event, at)
        assert read == position
        assert whole(read) == whole(position)
    assert again(position).state is position.state


def test_positions_that_name_the_same_events_share_them() -> None:
    position = rolled(Role.TAKER).position
    one, other = again(position), again(position)
    assert one.attempts[1].announcements is other.attempts[1].announcements


@pytest.mark.parametrize("byte", [0, 40, 900, -1])
def test_what_is_damaged_is_not_read(byte: int) -> None:
    data = bytearray(snapshots.encode(opened(Role.TAKER).position, POINTS))
    data[byte] ^= 1
    with pytest.raises(BadSnapshot, match="damaged"):
        snapshots.decode(bytes(data))


def test_what_refers_to_something_that_is_not_there_is_not_read() -> None:
    position = opened(Role.TAKER).position
    data = snapshots.encode(position, POINTS)
    elsewhere = data[32:].replace(next(iter(pieces(position))), bytes(32))
    with pytest.raises(BadSnapshot):
        snapshots.decode(snapshots.sealed(elsewhere)).position(pieces(position))


def test_another_shape_is_another_form() -> None:
    @frozen
    class Before:
        index: int

    @frozen
    class After:
        index: int
        added: bytes = b""

    lines = {name: list(snapshots.shape(cls)) for name, cls in (("before", Before), ("after", After))}
    assert len(lines["before"]) == 1
    assert len(lines["after"]) == 2
    assert snapshots.form() == snapshots.FORM
    assert any("Points.revoke" in line for line in snapshots.shape(Position))
    assert any("Side" in line for line in snapshots.shape(Position))


def test_plans_are_made_anew() -> None:
    position = opened(Role.TAKER).position
    plan = position.plan()
    read = again(position)
    assert read == position
    assert not read._plans
    assert read.plan() == plan
