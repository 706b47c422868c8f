"""The maker's offers and orders on the virtual clock: what stands, who is told, what is taken, and by whose word."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from attrs import evolve

from node.clock import Clock
from node.errors import NotFound
from node.offers import ANSWER_WITHIN, OfferBoard, OrderDesk, Policy, exposure
from node.position.commands import fail_setup
from node.position.events import OrderPlaced
from node.position.evolve import replay
from node.position.state import Position, State
from protocols.codec import Rejected
from protocols.contract.terms import Role, Side
from protocols.contract_setup import DECISION_WITHIN, Order
from protocols.offers import STALE_AFTER, Offer
from tests.positions import history
from tests.setups import NOW, OFFER

PEER = bytes([1]) * 32


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
    with pytest.raises(NotFound, match="no offer"):
        board.withdraw(offer(1).id)


async def test_a_withdrawn_offer_is_gone(autojump_clock: Jumping, board: OfferBoard) -> None:
    board.put(offer(1))
    assert board.withdraw(offer(1).id) == offer(1)
    assert board.standing() == ()
    with pytest.raises(NotFound, match=offer(1).id.hex()):
        board.withdraw(offer(1).id)


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
    board.withdraw(offer(2, Side.LONG).id)
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


# --- orders -----------------------------------------------------------------------------------------------------------


def an_order(number: int, quantity: int, side: Side = Side.SHORT) -> Order:
    return Order(bytes([number]) * 16, offer(9, side), quantity, 1)


def position(number: int, quantity: int, side: Side = Side.SHORT) -> Position:
    """One of the maker's."""
    return replay(bytes([number]) * 16, [OrderPlaced(Role.MAKER, PEER, offer(9, side), quantity, 1)])


def desk(*, manual: bool = False) -> OrderDesk:
    return OrderDesk(Policy(max_quantity=1_000, max_exposure=2_500, manual=manual), CLOCK)


async def take(at: OrderDesk, order: Order, *positions: Position) -> str:
    """The code of the refusal, or ``accepted``; the order stays under way."""
    assert at.begin(order.order_id)
    refusal = await at.decide(order, PEER, positions)
    return "accepted" if refusal is None else refusal.code


async def test_an_order_above_the_limit_names_the_quantity_and_what_is_allowed(autojump_clock: Jumping) -> None:
    refusal = await desk().decide(an_order(1, 1_001), PEER, ())
    assert refusal == Rejected("bad_quantity", "quantity is 1001, allowed is at most 1000")
    assert await take(desk(), an_order(1, 1_000)) == "accepted"


async def test_exposure_counts_positions_and_orders_under_way_once(autojump_clock: Jumping) -> None:
    at = desk()
    assert await take(at, an_order(1, 1_000)) == "accepted"
    assert await take(at, an_order(2, 1_000)) == "accepted"
    assert await take(at, an_order(3, 600)) == "max_exposure"
    first, second = position(1, 1_000), position(2, 1_000)
    assert await take(at, an_order(4, 600), first) == "max_exposure"
    assert await take(at, an_order(5, 500), first, second) == "accepted"
    assert await take(at, an_order(6, 1), first, second) == "max_exposure"
    # an order that came to nothing counts no more
    for number in (1, 2, 3, 4, 5, 6):
        at.forget(bytes([number]) * 16)
    assert await take(at, an_order(7, 500), first, second) == "accepted"


async def test_orders_of_the_other_side_free_what_the_first_took(autojump_clock: Jumping) -> None:
    at = desk()
    shorts = (position(1, 1_000), position(2, 1_000), position(3, 500))
    assert exposure(shorts) == -2_500
    assert await take(at, an_order(4, 100), *shorts) == "max_exposure"
    assert await take(at, an_order(5, 1_000, Side.LONG), *shorts) == "accepted"
    assert await take(at, an_order(6, 900), *shorts) == "accepted"
    assert exposure((*shorts, position(7, 1_000, Side.LONG))) == -1_500


async def test_what_lessens_an_exposure_beyond_the_limit_is_taken(autojump_clock: Jumping) -> None:
    """The operator lowered the limit meanwhile."""
    too_many = tuple(position(number, 1_000) for number in range(1, 6))
    assert await take(desk(), an_order(7, 1_000, Side.LONG), *too_many) == "accepted"
    assert await take(desk(), an_order(8, 100), *too_many) == "max_exposure"


def test_positions_that_ended_are_no_exposure() -> None:
    ended = history(Role.MAKER, 2)
    assert exposure((ended.position,)) == -3_500
    ended.do(fail_setup("peer_gone", "the peer is gone"))
    assert ended.state() is State.SETUP_FAILED
    assert exposure((ended.position,)) == 0


async def test_one_setup_for_an_order_id_at_a_time(autojump_clock: Jumping) -> None:
    at = desk()
    assert at.begin(bytes(16))
    assert not at.begin(bytes(16))
    at.forget(bytes(16))
    at.forget(bytes(16))
    assert at.begin(bytes(16))


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [None, Rejected("declined_by_hand", "not today")])
async def test_an_order_waits_for_a_persons_word(
    autojump_clock: Jumping, nursery: trio.Nursery, refusal: Rejected | None
) -> None:
    at = desk(manual=True)
    answers: list[Rejected | None] = []

    async def wait() -> None:
        answers.append(await at.decide(an_order(1, 100), PEER, ()))

    nursery.start_soon(wait)
    await trio.sleep(20)
    (waiting,) = at.waiting.values()
    assert (waiting.order, waiting.peer, waiting.since) == (an_order(1, 100), PEER, NOW)
    assert at.answer(bytes([1]) * 16, refusal) is waiting
    with pytest.raises(NotFound, match="waits for an answer"):  # the first word stands
        at.answer(bytes([1]) * 16, None)
    await trio.testing.wait_all_tasks_blocked()
    assert answers == [refusal]
    assert at.waiting == {}
    with pytest.raises(NotFound, match=(bytes([1]) * 16).hex()):
        at.answer(bytes([1]) * 16, None)


async def test_without_a_word_the_taker_hears_no_in_time(autojump_clock: Jumping) -> None:
    at = desk(manual=True)
    assert await take(at, an_order(1, 100)) == "no_decision"
    assert trio.current_time() == ANSWER_WITHIN < DECISION_WITHIN
    assert at.waiting == {}


async def test_a_taker_that_leaves_takes_its_order_along(autojump_clock: Jumping, nursery: trio.Nursery) -> None:
    at = desk(manual=True)
    with trio.move_on_after(5):
        await take(at, an_order(1, 100))
    assert at.waiting == {}


async def test_an_order_that_waits_counts_towards_the_exposure(autojump_clock: Jumping, nursery: trio.Nursery) -> None:
    at = desk(manual=True)
    for number in (1, 2):
        nursery.start_soon(take, at, an_order(number, 1_000))
    await trio.sleep(1)
    assert await take(at, an_order(3, 1_000)) == "max_exposure"
    assert len(at.waiting) == 2


async def test_limits_come_before_a_person_is_asked(autojump_clock: Jumping) -> None:
    at = desk(manual=True)
    assert await take(at, an_order(1, 5_000)) == "bad_quantity"
    assert trio.current_time() == 0
