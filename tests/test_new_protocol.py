"""A protocol that the node has never heard of: written here, registered in one line, spoken at once."""

from __future__ import annotations

import pytest
import trio.testing
from attrs import frozen

from node.network.conversation import Host, answering, speak
from node.network.errors import UnknownProtocol
from protocols import identify
from protocols.codec import Codec, Message, Protocol
from protocols.dialogue import Ask, Dialogue, Send, receive
from protocols.errors import Declined, Refused
from protocols.identify import Identity, PeerRole
from tests.endpoints import joined

# --- what would be protocols/haggle.py: messages, the path, both roles ------------------------------------------------


@frozen
class Bid(Message):
    price: int


@frozen
class Deal(Message):
    price: int


@frozen
class TooLow(Message):
    more_than: int


PROTOCOL = Protocol("/cfd/haggle/1", Codec(Bid, Deal, TooLow, limit=4096))


@frozen
class Limit(Ask[int]):
    """The lowest price that the seller takes."""


async def buyer(first: int, highest: int) -> int:
    """Bid more until it is enough. Returns the price."""
    bid = first
    while True:
        await Send(Bid(bid))
        answer = await receive(Deal, TooLow, within=10)
        if isinstance(answer, Deal):
            return answer.price
        if bid >= highest:
            raise Declined("too_dear", f"more than {highest} is too much")
        bid = min(highest, 2 * bid)


async def seller() -> int:
    while True:
        bid = await receive(Bid, within=10)
        if bid.price >= await Limit():
            await Send(Deal(bid.price))
            return bid.price
        await Send(TooLow(bid.price))


# --- and its life in a node -------------------------------------------------------------------------------------------


async def limit(_: Limit) -> int:
    return 70


def seller_and_host(_: object) -> tuple[Dialogue[object], Host]:
    return seller(), Host(answers={Limit: limit})


async def test_a_protocol_registered_at_run_time_is_spoken_on_a_connection_that_is_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with joined() as pair:

        def who(_: object) -> tuple[Dialogue[object], Host]:
            return identify.listener(Identity("x", "1", pair.maker.paths, "regtest", PeerRole.MAKER)), Host()

        async def spoken() -> tuple[str, ...]:
            return (await speak(pair.at_taker, identify.PROTOCOL, identify.opener("regtest"), Host())).protocols

        pair.maker.handle(identify.PROTOCOL.path, answering(identify.PROTOCOL, who))
        with pytest.raises(UnknownProtocol) as unknown:
            await speak(pair.at_taker, PROTOCOL, buyer(10, 100), Host())
        assert unknown.value.spoken == (identify.PROTOCOL.path,)
        assert PROTOCOL.path not in await spoken()

        pair.maker.handle(PROTOCOL.path, answering(PROTOCOL, seller_and_host))  # the one line

        assert PROTOCOL.path in await spoken()
        assert await speak(pair.at_taker, PROTOCOL, buyer(10, 100), Host()) == 80

        # and the other way round: either end of a connection opens substreams
        pair.taker.handle(PROTOCOL.path, answering(PROTOCOL, seller_and_host))
        assert await speak(pair.at_maker, PROTOCOL, buyer(90, 100), Host()) == 90


async def test_its_refusals_are_those_of_every_protocol(autojump_clock: trio.testing.MockClock) -> None:
    told: list[Refused] = []

    async def patient_seller() -> None:
        try:
            await seller()
        except Refused as refused:
            told.append(refused)
            raise

    handler = answering(PROTOCOL, lambda _: (patient_seller(), Host(answers={Limit: limit})))
    async with joined({PROTOCOL.path: handler}) as pair:
        with pytest.raises(Declined, match="too much"):
            await speak(pair.at_taker, PROTOCOL, buyer(1, 50), Host())
        await trio.testing.wait_all_tasks_blocked()
        assert [refused.code for refused in told] == ["too_dear"]
        assert pair.maker.crashes == 0
