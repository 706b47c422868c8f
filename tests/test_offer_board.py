"""The maker's offers on the virtual clock: what stands, and who is told."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from attrs import evolve

from node.clock import Clock
from node.offers import OfferBoard
from protocols.contract.terms import Side
from protocols.offers import STALE_AFTER, Offer
from tests.setups import NOW, OFFER


def offer(number: int, side: Side = Side.SHORT, created: int = NOW) -> Offer:
    return evolve(OFFER, id=bytes([number]) * 16, side=side, created=created)


CLOCK = Clock(wall=lambda: NOW + trio.current_time())
Jumping = trio.testing.MockClock


@pytest.fixture
def board() -> OfferBoard:
    return OfferBoard(CLOCK)


# --- offers -----------------------------------------------------------------------------------------------------------


async def test_one_offer_for_each_side_and_a_new_one_replaces_it(autojump_clock: Jumping, board: OfferBoard) -> None:
    board.put(offer(1))
    board.put(offer(2, Side.LONG))
    board.put(offer(3))
    assert set(board.standing()) == {offer(3), offer(2, Side.LONG)}
    assert board.find(offer(1).id) is None
    assert board.find(offer(3).id) == offer(3)


async def test_an_offer_stands_for_ten_minutes(autojump_clock: Jumping, board: OfferBoard) -> None:
    board.put(offer(1))
    await trio.sleep(STALE_AFTER)
    assert board.standing() == (offer(1),)
    await trio.sleep(0.5)
    assert board.standing() == ()
    assert board.find(offer(1).id) is None


async def test_everyone_is_told_at_once_and_then_of_every_change(
    autojump_clock: Jumping, board: OfferBoard, nursery: trio.Nursery
) -> None:
    told: list[tuple[float, tuple[Offer, ...]]] = []

    async def listen() -> None:
        last: tuple[Offer, ...] | None = None
        while True:
            last = await board.next_set(last)
            told.append((trio.current_time(), last))

    start = trio.current_time()
    nursery.start_soon(listen)
    await trio.sleep(5)
    board.put(offer(1))
    await trio.sleep(5)
    board.put(offer(1))  # the same again is no change
    await trio.sleep(5)
    board.put(offer(2, Side.LONG, created=NOW + 15))
    await trio.sleep(5)
    board.clear("BTCUSD", Side.LONG)
    await trio.sleep(STALE_AFTER)
    assert [(round(at - start), [each.id[0] for each in offers]) for at, offers in told] == [
        (0, []),
        (5, [1]),
        (15, [1, 2]),
        (20, [1]),
        (600, []),
    ]


async def test_each_of_two_offers_ends_in_its_own_time(autojump_clock: Jumping, board: OfferBoard) -> None:
    board.put(offer(1))
    board.put(offer(2, Side.LONG, created=NOW + 60))
    last = board.standing()
    last = await board.next_set(last)
    assert [each.id[0] for each in last] == [2]
    assert 600 <= trio.current_time() <= 601
    assert await board.next_set(last) == ()
    assert 660 <= trio.current_time() <= 661
