"""A position that is rolled over for long: its record in the backup hardly grows with it, and nothing is missing from
it that money depends on."""

from __future__ import annotations

import os
from hashlib import sha256

import pytest
from attrs import evolve

from node.backup.behind import lack
from node.backup.format import Contents, Head, Kept, Record, Seal
from node.backup.keeping import needed, recorded_of
from node.backup.pruning import pruned
from node.eventstore.interface import Recorded
from node.position.due import punishment
from node.position.events import (
    CODEC,
    Event,
    Following,
    RevocationReceived,
    Revoking,
    RolloverBegun,
    RolloverFailed,
    RolloverHeld,
    RolloverSigned,
    signatures_blob,
)
from node.position.evolve import replay
from node.position.facts import encode_signatures
from node.position.state import State
from node.web.views import position_view
from protocols.contract.keys import Points, attempt_keys
from protocols.contract.oracle import OLIVIA
from protocols.contract.rolling import rolled_terms
from protocols.contract.schedule import HOUR
from protocols.contract.terms import Role
from tests.lives import opened, punished, rolled, rollovers, see
from tests.positions import ORDER_ID, TRADER, History, signatures
from tests.setups import announcement, secret

BOTH = pytest.mark.parametrize("role", Role)
TRIES = 3
"""Rollovers begun for one that is made."""


def points(role: Role, *name: object) -> Points:
    trader = TRADER[role]
    salt = trader.attempt(ORDER_ID).salt
    return attempt_keys(trader.seed, setup_salt=salt, salt=secret(*name), order_id=ORDER_ID, index=1).points


def one_rollover(made: History, index: int) -> list[Event]:
    """As a node records it, with signatures that nobody has to check."""
    before = made.position.attempts[index - 1]
    times = [announcement_time(raw) + HOUR for raw in before.announcements]
    names = [OLIVIA.event_id("BTCUSD", time) for time in times]
    named = tuple(announcement(name).raw for name in names)
    terms = rolled_terms(before.terms, rate="0.0001", price=str(54_000 + index), hours=1)
    events: list[Event] = []
    maker = made.role is Role.MAKER

    def begun(attempt: int) -> RolloverBegun:
        following = Following(terms, named, "0.0001", points(made.role.other, "peer", index, attempt))
        own = points(made.role, "own", index, attempt)
        return RolloverBegun(index, secret("salt", index, attempt), own, following if maker else None)

    for attempt in range(1, TRIES):
        events += [begun(attempt), RolloverFailed("peer_gone", "the peer is gone")]
    last = begun(0)
    following = Following(terms, named, "0.0001", points(made.role.other, "peer", index, 0))
    events.append(last)
    signature, txid = secret("signature", index) * 2, secret("txid", index)
    events += [
        RolloverHeld(index, last.own, None if maker else following, signature, txid),
        RolloverSigned(index, signature),
        Revoking(index - 1),
        RevocationReceived(index - 1, secret("revocation", index)),
    ]
    return events


def announcement_time(raw: bytes) -> int:
    return TIMES[raw]


TIMES: dict[bytes, int] = {}


def rolled_often(role: Role, times: int) -> History:
    made = opened(role)
    first = made.position.attempts[0].announcements
    plan = made.position.plan(0)
    TIMES.update({raw: each.time for raw, each in zip(first, plan.announcements, strict=True)})
    for index in range(1, times + 1):
        for event in one_rollover(made, index):
            made.events.append(event)
        made.position = replay(ORDER_ID, made.events)
        new = made.position.attempts[index].announcements
        old = made.position.attempts[index - 1].announcements
        TIMES.update({raw: TIMES[before] + HOUR for raw, before in zip(new, old, strict=True)})
    return made


def kept_of(made: History) -> list[Kept]:
    return [Kept(new.name, new.version, new.data, 100.0 + at) for at, new in enumerate(map(CODEC.encode, made.events))]


def record(made: History) -> Record:
    blobs = {signatures_blob(made.position.attempts[-1].index): encode_signatures(signatures(made.role))}
    return Record(ORDER_ID, pruned(made.position, kept_of(made)), blobs)


def pieces(made: History) -> dict[bytes, bytes]:
    return {sha256(piece).digest(): piece for new in map(CODEC.encode, made.events) for piece in new.contents}


def size(made: History) -> int:
    """Of its file."""
    it, shared = record(made), pieces(made)
    head = Head("regtest", made.role.value, 0.0, {ORDER_ID: len(it.events)})
    contents = Contents(head, (it,), {name: shared[name] for name in needed(it)})
    return len(Seal(bytes(64)).close(contents, os.urandom))


def replayed(made: History) -> History:
    """What a restore makes of the record."""
    it, shared = record(made), pieces(made)
    wanted = {name: shared[name] for name in needed(it)}
    again = History(made.role)
    again.events = [CODEC.decode(each, wanted) for each in recorded_of(it)]
    again.position = replay(ORDER_ID, again.events)
    return again


@BOTH
def test_fifty_rollovers_take_little_more_than_one(role: Role) -> None:
    """Each with two that came to nothing before it: what punishes, and no announcement."""
    one, fifty = (size(rolled_often(role, times)) for times in (1, 50))
    assert 25_000 < one < 45_000
    assert fifty - one < 49 * 420


@BOTH
def test_what_the_record_says_is_what_the_position_was(role: Role) -> None:
    made = rolled_often(role, 4)
    again = replayed(made)
    assert again.position.version == made.position.version
    assert again.position.attempts[-1] == made.position.attempts[-1]
    assert again.position.peer_secrets == made.position.peer_secrets
    assert [evolve(each, announcements=()) for each in again.position.attempts[1:-1]] == [
        evolve(each, announcements=(), commit_signature=b"", own_commit_signature=b"")
        for each in made.position.attempts[1:-1]
    ]
    assert again.position.contract == again.position.attempts[-1]
    assert again.position.state is made.position.state is State.OPEN
    assert {each.announcements for each in again.position.attempts} == {made.position.attempts[-1].announcements}
    assert again.position.commit_txid(again.position.attempts[0]) == made.position.commit_txid(
        made.position.attempts[0]
    )


@BOTH
def test_a_rollover_that_is_under_way_is_kept_whole(role: Role) -> None:
    made = rolled_often(role, 2)
    whole = one_rollover(made, 3)
    at = next(at for at, event in enumerate(whole) if isinstance(event, RolloverHeld))
    for until in range(1, len(whole)):
        before = len(made.events)
        made.events += whole[:until]
        made.position = replay(ORDER_ID, made.events)
        again = replayed(made).position
        if until > at:
            assert again.attempts[3] == made.position.attempts[3]
            assert again.rolling is made.position.rolling
        else:
            assert again.begun[-1] == made.position.begun[-1]
        del made.events[before:]


@BOTH
@pytest.mark.parametrize("index", [0, 1])
def test_a_revoked_commit_is_punished_with_what_is_left(role: Role, index: int) -> None:
    """Of a real rollover, of whose contracts none is the present one any more."""
    made = rolled(role, index=index)
    again = replayed(made)
    see(again, rollovers(index + 1).commit(role.other, index), 205)
    assert again.position.cheated
    assert again.position.state is State.PUNISHING
    assert punished(again)
    assert punishment(again.position)
    position_view(again.position, broadcasts={})


@BOTH
def test_a_store_is_compared_with_what_is_left(role: Role) -> None:
    made = rolled_often(role, 3)
    it = record(made)
    stored = [
        Recorded(at, "", at, each.name, each.version, each.data, each.recorded_at)
        for at, each in enumerate(kept_of(made), 1)
    ]
    assert lack(it, stored) is None
    assert lack(it, [*stored, stored[0]]) is None
    for had in (1, 8, len(stored) - 1):
        missing = lack(it, stored[:had])
        assert missing is not None
        assert (missing.version, missing.events) == (had, it.events[had:])
    other = evolve(stored[-3], data=CODEC.encode(RolloverSigned(3, b"another")).data)
    apart = lack(it, [*stored[:-3], other, *stored[-2:]])
    assert apart is not None
    assert not apart.interrupted
