"""scripts/probe_maker ADDRESS: who is there, what does it offer, how far is it; by the public API alone.

An identity made for the occasion dials the maker, runs the opener's role of three protocols, each on a substream of
its own, and answers their questions by a host of a few lines. So may any program that speaks with a maker.
"""

import argparse
import math
import os
import sys
import time
from statistics import median
from typing import TypeVar

import trio

from node.network.address import Identity, PeerAddress
from node.network.connection import Connection
from node.network.conversation import Host, speak
from node.network.endpoint import Endpoint
from node.network.errors import UnknownProtocol
from protocols import identify, offers, ping
from protocols.dialogue import receive
from protocols.errors import CodedError, LocalError
from protocols.offers import Offer, OffersArrived
from protocols.ping import Answered, NextNonce

T = TypeVar("T")

OFFERS_WITHIN = 5.0
"""Seconds in which a maker should have sent its first set."""


async def who() -> identify.Identity:
    """`identify.opener`, whatever network the peer is on."""
    return await receive(identify.Identity, within=5)


async def offered(connection: Connection) -> tuple[Offer, ...] | None:
    """The maker's present offers; None if it sent none in time."""
    found: tuple[Offer, ...] | None = None
    with trio.move_on_after(OFFERS_WITHIN) as patience:

        async def take(ask: OffersArrived) -> None:
            nonlocal found
            found = ask.offers
            patience.cancel()

        await speak(connection, offers.PROTOCOL, offers.taker(), Host(answers={OffersArrived: take}))
    return found


async def round_trips(connection: Connection, count: int) -> list[float]:
    """Seconds that each of so many pings took, all on one substream."""
    left, sent_at, took = count, math.nan, list[float]()

    async def next_nonce(_: NextNonce) -> bytes | None:
        nonlocal left, sent_at
        left -= 1
        sent_at = trio.current_time()
        return os.urandom(ping.SIZE) if left >= 0 else None

    async def answered(_: Answered) -> None:
        took.append(trio.current_time() - sent_at)
        print(f"ping    {len(took)}: {milliseconds(took[-1])}")

    host = Host(answers={NextNonce: next_nonce, Answered: answered})
    await speak(connection, ping.PROTOCOL, ping.opener(), host)
    return took


async def probe(address: PeerAddress, pings: int) -> None:
    """Print what there is to see. Raises CodedError when the maker cannot be reached or misbehaves."""
    async with Endpoint(Identity(os.urandom(32))).running() as endpoint:
        started = trio.current_time()
        connection = await endpoint.dial(address)
        print(f"dialled {address.peer.short} at {address.host}:{address.port}: {since(started)}, its key is verified")
        identity = await speak(connection, identify.PROTOCOL, who(), Host())
        print(f"is      {identity.agent} {identity.version}, {identity.role.value} on {identity.network}")
        for path in identity.protocols:
            print(f"speaks  {path}")
        try:
            show(await offered(connection))
        except UnknownProtocol:
            print("offers  nothing: it does not speak of offers")
        took = await round_trips(connection, pings)
        if took:
            middle, most = milliseconds(median(took)), milliseconds(max(took))
            print(f"ping    {len(took)} round trips: median {middle}, longest {most}")


def show(found: tuple[Offer, ...] | None) -> None:
    if found is None:
        print(f"offers  nothing was said within {OFFERS_WITHIN:g} s")
    elif not found:
        print("offers  none at present")
    for offer in found or ():
        leverages = ", ".join(f"×{leverage}" for leverage in offer.leverages)
        print(
            f"offers  {offer.symbol}: the maker is {offer.side.value} at {offer.price}, "
            f"{offer.min_quantity} to {offer.max_quantity} contracts in lots of {offer.lot}, leverage {leverages}, "
            f"opening fee {offer.opening_fee} sat, funding rate {offer.funding_rate} per 24 h, "
            f"{offer.fee_rate} sat/vB, {time.time() - offer.created:.0f} s old, id {offer.id.hex()}"
        )


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def since(start: float) -> str:
    return milliseconds(trio.current_time() - start)


def first(error: BaseException) -> BaseException:
    """What a nursery's group is about."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> int:
    """Exit status: 0 seen, 1 it cannot be reached or misbehaves, 2 wrong arguments."""
    parser = argparse.ArgumentParser(prog="scripts/probe_maker", description="Look at a maker from outside.")
    parser.add_argument("address", metavar="ADDRESS", help="<64 hex digits>@host:port, as `cfdnode address` prints it")
    parser.add_argument("--pings", metavar="N", type=int, default=5, help="round trips to measure (default 5)")
    arguments = parser.parse_args()
    try:
        address = PeerAddress.parse(arguments.address)
    except LocalError as error:
        print(f"scripts/probe_maker: {error.sentence}", file=sys.stderr)
        return 2
    try:
        trio.run(probe, address, arguments.pings)
    except Exception as group:
        cause = first(group)
        if not isinstance(cause, CodedError):
            raise
        print(f"scripts/probe_maker: {cause.sentence}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
