"""The maker's desk on the virtual clock: what it decides by itself, and what by a word."""

from __future__ import annotations

from itertools import count

import pytest
import trio
import trio.testing
from attrs import evolve
from structlog.testing import capture_logs

from node.clock import Clock
from node.desk import ANSWER_WITHIN, Desk, Kind, Said, SetRate
from node.errors import Conflict, FieldError, NotFound
from node.policy import Policy
from node.position.state import Position
from node.prices import STALE_AFTER, Feed
from protocols import contract_setup, rollover, settlement
from protocols.codec import Rejected
from protocols.contract.terms import SYMBOL, Role, Side
from protocols.contract_setup import Order
from protocols.errors import Declined
from protocols.rollover import Conditions
from tests.feeds import HandFed
from tests.positions import history
from tests.setups import NOW, OFFER

PEER, OTHER = bytes([1]) * 32, bytes([3]) * 32
CLOCK = Clock(wall=lambda: NOW + trio.current_time())
Jumping = trio.testing.MockClock
NOTHING = Said()


def a_desk(**policy: object) -> tuple[Desk, HandFed]:
    """With a fresh quote around the offer's price."""
    limits = Policy(max_quantity={SYMBOL: 1_000}, max_exposure={SYMBOL: 2_500})
    feed, ids = HandFed(CLOCK), count(1)
    feed.tell("53999.5", "54000")
    changes = Policy.model_validate(policy)
    return Desk(limits.changed(changes), {SYMBOL: feed}, CLOCK, lambda size: next(ids).to_bytes(size, "big")), feed


def an_order(number: int, quantity: int, side: Side = Side.SHORT) -> Order:
    return Order(bytes([number]) * 16, evolve(OFFER, id=bytes([9]) * 16, side=side), quantity, 1)


def position(number: int, quantity: int) -> Position:
    """One of the maker's, short."""
    order_id = bytes([number]) * 16
    return Position(id=order_id, version=1, role=Role.MAKER, peer=PEER, offer=OFFER, quantity=quantity, leverage=1)


OPEN = history(Role.MAKER).position
"""The maker is short at 54 000."""


async def take(at: Desk, order: Order, *positions: Position, peer: bytes = PEER) -> str:
    """The code of the refusal, or ``accepted``; the order stays under way."""
    assert at.begin(order.order_id)
    refusal = await at.decide_order(order, peer, positions)
    return "accepted" if refusal is None else refusal.code


def sole(at: Desk) -> bytes:
    """The id of the only request that waits."""
    (request,) = at.waiting.values()
    return request.id


# --- orders by the rules ----------------------------------------------------------------------------------------------


async def test_exposure_counts_positions_and_orders_under_way_once(autojump_clock: Jumping) -> None:
    at, _ = a_desk()
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
    at, _ = a_desk()
    shorts = (position(1, 1_000), position(2, 1_000), position(3, 500))
    assert await take(at, an_order(4, 100), *shorts) == "max_exposure"
    assert await take(at, an_order(5, 1_000, Side.LONG), *shorts) == "accepted"
    assert await take(at, an_order(6, 900), *shorts) == "accepted"


async def test_a_peer_has_so_many_orders_under_way_and_others_have_theirs(autojump_clock: Jumping) -> None:
    at, _ = a_desk(max_orders_per_peer=2)
    assert await take(at, an_order(1, 100)) == "accepted"
    assert await take(at, an_order(2, 100)) == "accepted"
    assert await take(at, an_order(3, 100)) == "max_orders"
    assert await take(at, an_order(4, 100), peer=OTHER) == "accepted"
    at.forget(bytes([1]) * 16)
    assert await take(at, an_order(5, 100)) == "accepted"


async def test_orders_under_way_count_as_positions_of_their_peer(autojump_clock: Jumping) -> None:
    at, _ = a_desk(max_positions_per_peer=2)
    assert await take(at, an_order(1, 100), position(7, 100)) == "accepted"
    assert await take(at, an_order(2, 100), position(7, 100), position(1, 100)) == "max_positions"
    assert await take(at, an_order(3, 100), position(7, 100), peer=OTHER) == "accepted"


async def test_one_setup_for_an_order_id_at_a_time(autojump_clock: Jumping) -> None:
    at, _ = a_desk()
    assert at.begin(bytes(16))
    assert not at.begin(bytes(16))
    at.forget(bytes(16))
    at.forget(bytes(16))
    assert at.begin(bytes(16))


async def test_an_offers_price_is_held_against_a_fresh_quote(autojump_clock: Jumping) -> None:
    at, feed = a_desk()
    feed.tell("54545", "54545.5")
    assert await take(at, an_order(1, 100)) == "price_moved"  # 54 000 is less than 99 % of it
    assert await take(at, an_order(2, 100, Side.LONG)) == "accepted"
    feed.tell("54545", "54545.4")
    assert await take(at, an_order(3, 100)) == "accepted"
    await trio.sleep(STALE_AFTER + 1)
    assert await take(at, an_order(4, 100)) == "no_quote"
    assert await take(at, an_order(5, 100, Side.LONG)) == "no_quote"


async def test_without_a_feed_prices_are_not_checked_and_the_operator_is_told_once(autojump_clock: Jumping) -> None:
    at, _ = a_desk()
    at.feeds = {SYMBOL: Feed(None, CLOCK)}
    with capture_logs() as entries:
        assert await take(at, an_order(1, 100)) == "accepted"
        assert await take(at, an_order(2, 100)) == "accepted"
    assert [(entry["log_level"], entry["symbol"]) for entry in entries] == [("warning", SYMBOL)]


async def test_a_rate_that_has_grown_old_opens_nothing_and_rolls_nothing_over(autojump_clock: Jumping) -> None:
    at, feed = a_desk(rate_max_age=3_600)
    at.rates[SYMBOL] = SetRate("0.0002", CLOCK.now())
    await trio.sleep(3_600)
    feed.tell("54000")
    assert await take(at, an_order(1, 100)) == "accepted"
    assert await at.decide_rollover(OPEN, OPEN.plan()) == Conditions("0.0002", "54000")
    await trio.sleep(1)
    assert await take(at, an_order(2, 100)) == "stale_rate"
    refusal = await at.decide_rollover(OPEN, OPEN.plan())
    assert refusal == Rejected("stale_rate", "the maker's funding rate of BTCUSD is older than it allows")
    at.rates[SYMBOL] = SetRate("-0.0001", CLOCK.now())
    assert await at.decide_rollover(OPEN, OPEN.plan()) == Conditions("-0.0001", "54000")


# --- rollovers and closes by the rules --------------------------------------------------------------------------------


async def test_a_rollover_is_at_the_middle_of_the_quote_and_at_the_rate_in_force(autojump_clock: Jumping) -> None:
    at, _ = a_desk()
    assert await at.decide_rollover(OPEN, OPEN.plan()) == Conditions(OFFER.funding_rate, "53999.75")
    at.policy = at.policy.changed(Policy(funding_rate={SYMBOL: "0.0003"}))
    assert await at.decide_rollover(OPEN, OPEN.plan()) == Conditions("0.0003", "53999.75")
    await trio.sleep(10 * 86_400)
    refusal = await at.decide_rollover(OPEN, OPEN.plan())  # the rate is as good as ever, the quote is not
    assert isinstance(refusal, Rejected)
    assert refusal.code == "no_quote"
    at.feeds = {SYMBOL: Feed(None, CLOCK)}
    refusal = await at.decide_rollover(OPEN, OPEN.plan())
    assert refusal == Rejected(
        "no_quote", "at the maker there is no fresh quote of BTCUSD: no price feed is configured"
    )


async def test_a_close_is_decided_and_checked_again_by_the_quote_of_that_moment(autojump_clock: Jumping) -> None:
    at, feed = a_desk()
    assert OPEN.side is Side.SHORT
    feed.tell("60000", "60010")
    assert await at.decide_close(OPEN, "60060") is None
    at.check_close(OPEN, "60060")
    feed.tell("59999", "60010")
    with pytest.raises(Declined, match=r"price is 60060, the maker takes at most 60059 now \[price_moved\]"):
        at.check_close(OPEN, "60060")
    refusal = await at.decide_close(OPEN, "60060")
    assert refusal == Rejected("price_moved", "price is 60060, the maker takes at most 60059 now")


async def test_nothing_is_closed_at_a_quote_older_than_two_minutes(autojump_clock: Jumping) -> None:
    at, _ = a_desk()
    await trio.sleep(120)
    assert await at.decide_close(OPEN, "54000") is None
    await trio.sleep(0.5)
    refusal = await at.decide_close(OPEN, "54000")
    assert refusal is not None
    assert refusal.code == "no_quote"
    assert refusal.sentence.endswith("older than 120 s; closing is paused")
    with pytest.raises(Declined, match=r"closing is paused \[no_quote\]"):
        at.check_close(OPEN, "54000")


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [None, Rejected("declined_by_hand", "not today")])
async def test_an_order_waits_for_a_word(
    autojump_clock: Jumping, nursery: trio.Nursery, refusal: Rejected | None
) -> None:
    at, _ = a_desk(accept_orders="manual")
    answers: list[Rejected | None] = []

    async def wait() -> None:
        answers.append(await at.decide_order(an_order(1, 100), PEER, ()))

    nursery.start_soon(wait)
    await trio.sleep(20)
    (waiting,) = at.waiting.values()
    assert (waiting.kind, waiting.order, waiting.peer) == (Kind.ORDER, an_order(1, 100), PEER)
    assert (waiting.since, waiting.answer_by) == (NOW, NOW + 55)
    assert (waiting.side, waiting.price, waiting.funding_rate) == (Side.SHORT, "54000", "0.001")
    assert at.waiting_order(bytes([1]) * 16) is waiting
    said = at.accept(waiting.id, NOTHING) if refusal is None else at.reject(waiting.id, refusal.sentence)
    assert said is waiting
    with pytest.raises(NotFound, match="waits for an answer"):  # the first word stands
        at.accept(waiting.id, NOTHING)
    await trio.testing.wait_all_tasks_blocked()
    assert answers == [refusal]
    assert at.waiting == {}
    with pytest.raises(NotFound, match=(bytes([1]) * 16).hex()):
        at.waiting_order(bytes([1]) * 16)


@pytest.mark.parametrize("kind", Kind)
async def test_without_a_word_the_taker_hears_no_in_time(autojump_clock: Jumping, kind: Kind) -> None:
    at, _ = a_desk(accept_orders="manual", accept_rollovers="manual", accept_closes="manual")
    allowed = {
        Kind.ORDER: contract_setup.DECISION_WITHIN,
        Kind.ROLLOVER: rollover.DECISION_WITHIN,
        Kind.CLOSE: settlement.DECISION_WITHIN,
    }
    refusal: Conditions | Rejected | None
    match kind:
        case Kind.ORDER:
            refusal = await at.decide_order(an_order(1, 100), PEER, ())
        case Kind.ROLLOVER:
            refusal = await at.decide_rollover(OPEN, OPEN.plan())
        case Kind.CLOSE:
            refusal = await at.decide_close(OPEN, "54000")
    assert trio.current_time() == ANSWER_WITHIN[kind] < allowed[kind]
    assert refusal == Rejected("no_decision", f"the maker did not decide within {ANSWER_WITHIN[kind]:g} s")
    assert at.waiting == {}


async def test_a_taker_that_leaves_takes_its_order_along(autojump_clock: Jumping) -> None:
    at, _ = a_desk(accept_orders="manual")
    with trio.move_on_after(5):
        await take(at, an_order(1, 100))
    assert at.waiting == {}


async def test_an_order_that_waits_counts_towards_the_exposure(autojump_clock: Jumping, nursery: trio.Nursery) -> None:
    at, _ = a_desk(accept_orders="manual")
    for number in (1, 2):
        nursery.start_soon(take, at, an_order(number, 1_000))
    await trio.sleep(1)
    assert await take(at, an_order(3, 1_000)) == "max_exposure"
    assert len(at.waiting) == 2


async def test_the_rules_come_before_anybody_is_asked(autojump_clock: Jumping) -> None:
    at, feed = a_desk(accept_orders="manual", accept_closes="manual")
    assert await take(at, an_order(1, 5_000)) == "bad_quantity"
    feed.tell("60000")
    assert await take(at, an_order(2, 100)) == "price_moved"
    assert (await at.decide_close(OPEN, "60100")) is not None
    assert trio.current_time() == 0


async def test_and_again_when_somebody_says_yes(autojump_clock: Jumping, nursery: trio.Nursery) -> None:
    at, feed = a_desk(accept_orders="manual", accept_closes="manual")
    answers: list[object] = []

    async def order() -> None:
        answers.append(await at.decide_order(an_order(1, 100), PEER, ()))

    async def close() -> None:
        answers.append(await at.decide_close(OPEN, "54000"))

    for decide, bid, code in ((order, "60000", "price_moved"), (close, "50000", "price_moved")):
        feed.tell("54000")
        nursery.start_soon(decide)
        await trio.sleep(1)
        feed.tell(bid)
        with pytest.raises(Conflict) as caught:
            at.accept(sole(at), NOTHING)
        assert caught.value.code == code
        feed.tell("54000")  # it waits on
        at.accept(sole(at), NOTHING)
        await trio.testing.wait_all_tasks_blocked()
    assert answers == [None, None]


async def test_whoever_accepts_a_rollover_may_say_at_what(autojump_clock: Jumping, nursery: trio.Nursery) -> None:
    at, _ = a_desk(accept_rollovers="manual")
    answers: list[Conditions | Rejected] = []

    async def decide() -> None:
        answers.append(await at.decide_rollover(OPEN, OPEN.plan()))

    for said, told in (
        (NOTHING, Conditions("0.001", "53999.75")),
        (Said(funding_rate="-0.0002"), Conditions("-0.0002", "53999.75")),
        (Said("0", "54321.5"), Conditions("0", "54321.5")),
    ):
        nursery.start_soon(decide)
        await trio.testing.wait_all_tasks_blocked()
        (waiting,) = at.waiting.values()
        assert (waiting.kind, waiting.order.order_id, waiting.peer) == (Kind.ROLLOVER, OPEN.id, OPEN.peer)
        assert (waiting.price, waiting.funding_rate) == ("53999.75", "0.001")
        at.accept(waiting.id, said)
        await trio.testing.wait_all_tasks_blocked()
        assert answers.pop() == told

    # without a quote it takes a word for the price
    await trio.sleep(STALE_AFTER + 1)
    nursery.start_soon(decide)
    await trio.testing.wait_all_tasks_blocked()
    (waiting,) = at.waiting.values()
    assert (waiting.price, waiting.funding_rate) == (None, None)
    for words, error, field in (
        (Said(funding_rate="0.1"), Conflict, "no_quote"),
        (Said("0.0000000001", "54000"), FieldError, "funding_rate"),
        (Said("2", "54000"), FieldError, "funding_rate"),
        (Said("", "54000"), FieldError, "funding_rate"),
        (Said("0.1", "0"), FieldError, "price"),
        (Said("0.1", "54000.123"), FieldError, "price"),
    ):
        with pytest.raises(error) as caught:
            at.accept(waiting.id, words)
        assert field in {caught.value.code, getattr(caught.value, "field", None)}
    at.accept(waiting.id, Said("0.0001", "54000"))
    await trio.testing.wait_all_tasks_blocked()
    assert answers == [Conditions("0.0001", "54000")]


async def test_conditions_are_said_of_rollovers_only(autojump_clock: Jumping, nursery: trio.Nursery) -> None:
    at, _ = a_desk(accept_closes="manual")
    nursery.start_soon(at.decide_close, OPEN, "54000")
    await trio.testing.wait_all_tasks_blocked()
    for said, field in ((Said(price="54000"), "price"), (Said(funding_rate="0"), "funding_rate")):
        with pytest.raises(FieldError) as caught:
            at.accept(sole(at), said)
        assert caught.value.field == field
    assert len(at.waiting) == 1


async def test_the_same_order_id_with_another_size_is_another_request(
    autojump_clock: Jumping, nursery: trio.Nursery
) -> None:
    """Else a yes to the small order would be one to the large one."""
    at, _ = a_desk(accept_orders="manual")
    nursery.start_soon(take, at, an_order(1, 100))
    await trio.testing.wait_all_tasks_blocked()
    seen = sole(at)
    at.reject(seen, "no")
    await trio.testing.wait_all_tasks_blocked()
    at.forget(bytes([1]) * 16)
    nursery.start_soon(take, at, an_order(1, 1_000))
    await trio.testing.wait_all_tasks_blocked()
    assert sole(at) != seen
    with pytest.raises(NotFound):
        at.accept(seen, NOTHING)


async def test_news_are_what_came_or_went(autojump_clock: Jumping, nursery: trio.Nursery) -> None:
    at, _ = a_desk(accept_orders="manual")
    await at.news(None, 0)
    assert trio.current_time() == 0
    await at.news(None, 30)  # nothing waits
    assert trio.current_time() == 30

    async def later() -> None:
        await trio.sleep(5)
        await take(at, an_order(1, 100))

    nursery.start_soon(later)
    await at.news(None, 30)
    assert (trio.current_time(), len(at.waiting)) == (35, 1)
    await at.news(None, 30)  # it waits still
    assert trio.current_time() == 35
    seen = at.number
    await at.news(seen - 1, 30)  # what came since
    assert trio.current_time() == 35
    await at.news(seen, 30)
    assert trio.current_time() == 65
    await at.news(seen, 30)  # nobody answered: it went
    assert (trio.current_time(), at.waiting) == (35 + ANSWER_WITHIN[Kind.ORDER], {})
