"""A node that has enough to do says so."""

from __future__ import annotations

from contextlib import suppress

import pytest

from node.network.errors import Refuse
from node.network.room import Room

ONE, OTHER, THIRD = b"1" * 32, b"2" * 32, b"3" * 32


def test_there_is_room_for_so_many_of_a_peer_and_of_all() -> None:
    room = Room("setups", per_peer=2, in_all=3)

    def refused(peer: bytes) -> bool:
        with suppress(Refuse), room.taken(peer):
            return False
        return True

    with room.taken(ONE), room.taken(ONE):
        with pytest.raises(Refuse) as refusal, room.taken(ONE):
            pass
        assert (refusal.value.status, refusal.value.retry_after) == (429, 60)
    with room.taken(ONE):
        with pytest.raises(ZeroDivisionError), room.taken(ONE):
            assert refused(ONE)
            assert not refused(OTHER)
            with room.taken(OTHER):
                assert refused(OTHER)
                assert refused(THIRD)
            raise ZeroDivisionError
        assert not refused(ONE)
    assert not refused(THIRD)
