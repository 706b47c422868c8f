"""What users do in a run: each scenario is a script, played while faults strike, before everybody is left alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import Factory, define, evolve, frozen

from node.errors import Conflict, Disconnected, NotFound
from node.oracle.server import Behaviour, Mode
from node.position.book import Positions
from node.position.commands import force_close
from node.position.state import Position, State
from protocols.contract.symbols import SYMBOLS
from protocols.contract.terms import REGTEST_TIMELOCKS, Side
from protocols.errors import LocalError, WorldError
from protocols.offers import ID_LENGTH, Offer
from tests.setups import OFFER
from tests.simulation.world import EPOCH, HOUR, Player, World

PATIENCE = 300.0
"""Seconds in which something that nobody disturbs comes about."""
ASKED = "closed by the user alone"
LIQUIDATING = 30_000
"""USD for a bitcoin, at which whoever is long has lost everything."""


@define
class Story:
    """The world, and what users did in it."""

    world: World
    force_closed: list[tuple[str, bytes]] = Factory(list)
    """Who wanted which position force closed."""
    oracle_failed: bool = False
    """Whether it attests late, or not at all."""

    def player(self, name: str) -> Player:
        return self.world.players[name]

    @property
    def maker(self) -> Player:
        return self.player("maker")

    @property
    def taker(self) -> Player:
        return self.player("taker")

    # What users do

    async def offer(self, maker: Player, side: Side = Side.SHORT, symbol: str = "BTCUSD") -> Offer | None:
        """A fresh one on the maker's board; None while the maker is away."""
        if not await self.until(lambda: maker.up):
            return None
        node, price, lot = maker.maker, self.world.price(symbol), SYMBOLS[symbol].lot
        offer = evolve(
            OFFER,
            id=node.core.setup.entropy(ID_LENGTH),
            symbol=symbol,
            side=side,
            price=str(price),
            fee_rate=await node.core.setup.fee_rate(),
            lot=lot,
            min_quantity=lot,
            oracle=node.core.setup.oracle_keys,
            timelocks=REGTEST_TIMELOCKS,
            created=int(node.core.clock.now()),
        )
        node.board.put(offer)
        return offer

    async def order(self, taker: Player, offer: Offer, quantity: int = 1_000, leverage: int = 2) -> bytes | None:
        """The order's id, once it is on record; None if it cannot be placed."""

        def sees() -> bool:
            if not taker.up:
                return False
            links = [link for link in taker.taker.links.values() if link.health.up]
            for link in links:
                with link.lent() as lent:
                    if offer in lent.offers:
                        return True
            return False

        if not await self.until(sees):
            return None
        try:
            return await taker.taker.place(None, offer.id, quantity, leverage)
        except (WorldError, Conflict, NotFound):
            return None  # a fault was faster

    async def force_close(self, player: Player, order_id: bytes) -> None:
        if not await self.until(lambda: player.up and self.position(player, order_id) is not None):
            return
        self.force_closed.append((player.name, order_id))
        while True:
            assert player.life is not None
            try:
                await player.life.node.core.positions.call(Positions.execute, order_id, force_close(ASKED))
            except (Disconnected, WorldError):
                await trio.sleep(1)  # a user tries again
            except LocalError:
                return
            else:
                return

    async def close(self, taker: Player, order_id: bytes) -> None:
        if not await self.until(lambda: taker.up and taker.taker.settlements.health.up):
            return
        node = taker.taker
        try:
            with node.settlements.lent() as nursery:
                await nursery.start(node.settler.close, order_id, None)
        except (WorldError, LocalError):
            return  # a fault was faster

    async def roll_over(self, taker: Player, order_id: bytes) -> None:
        if not await self.until(lambda: taker.up and any(link.health.up for link in taker.taker.links.values())):
            return
        try:
            taker.taker.roll_over(order_id)
        except (WorldError, LocalError):
            return

    # What comes of it

    def position(self, player: Player, order_id: bytes) -> Position | None:
        if not player.up:
            return None
        return next((each for each in player.positions() if each.id == order_id), None)

    def in_state(self, player: Player, order_id: bytes, *states: State) -> bool:
        position = self.position(player, order_id)
        return position is not None and position.state in states

    async def until(self, condition: Callable[[], bool], within: float = PATIENCE) -> bool:
        """Whether it came true within so many seconds."""
        deadline = trio.current_time() + within
        while not condition():
            if trio.current_time() >= deadline:
                return False
            await trio.sleep(1)
        return True

    async def hour(self, hours: float) -> None:
        """Until so many hours of the calendar after the run's beginning."""
        await trio.sleep(max(0.0, EPOCH + hours * HOUR - self.world.now()))

    async def opened(self, order_id: bytes | None) -> bool:
        """Whether both have the position open."""
        if order_id is None:
            return False

        def settled() -> bool:
            found = [self.position(player, order_id) for player in (self.maker, self.taker)]
            return all(each is not None and (each.ended or each.state is State.OPEN) for each in found)

        await self.until(settled)
        return all(self.in_state(player, order_id, State.OPEN) for player in (self.maker, self.taker))


@frozen
class Scenario:
    name: str
    prepare: Callable[[Story], Awaitable[bytes | None]]
    """Without faults; may give an order id to what follows."""
    play: Callable[[Story, bytes | None], Awaitable[None]]
    """While faults strike."""
    spend: bool = False
    """Whether commits are spent together."""
    roll: bool = False
    """Whether positions roll over by themselves."""
    paths: tuple[str, ...] = ()
    """The protocols that it is about: the matrix strikes at their messages."""
    soon: bool = False
    """Whether what is open two hours later is liquidated: other scenarios are about what only the last hour brings."""


async def _nothing(_: Story) -> None:
    return None


async def _open(story: Story) -> bytes:
    offer = await story.offer(story.maker)
    assert offer is not None
    order_id = await story.order(story.taker, offer)
    assert order_id is not None
    assert await story.opened(order_id), "nobody disturbed this"
    return order_id


async def _set_up(story: Story, _: bytes | None) -> None:
    offer = await story.offer(story.maker)
    if offer is not None:
        await story.opened(await story.order(story.taker, offer))


async def _open_to_expiry(story: Story) -> bytes:
    order_id = await _open(story)
    await story.hour(24.8)
    return order_id


async def _open_for_two_hours(story: Story) -> bytes:
    order_id = await _open(story)
    await story.hour(2.2)
    return order_id


async def _expire(story: Story, order_id: bytes | None) -> None:
    await _end(story, order_id)


async def _end(story: Story, order_id: bytes | None) -> None:
    """Until it has ended for both."""
    assert order_id is not None

    def ended() -> bool:
        found = [story.position(player, order_id) for player in (story.maker, story.taker)]
        return all(each is not None and each.ended for each in found)

    await story.until(ended, 12 * HOUR)


async def _liquidate(story: Story, order_id: bytes | None) -> None:
    story.world.set_price(LIQUIDATING)
    await story.hour(story.world.clock.calendar() / 3600 - EPOCH / 3600 + 1.2)
    story.world.set_price(54_000)
    await _end(story, order_id)


async def _force_close_by_taker(story: Story, order_id: bytes | None) -> None:
    assert order_id is not None
    await story.force_close(story.taker, order_id)
    await story.hour(3)


async def _force_close_by_maker(story: Story, order_id: bytes | None) -> None:
    assert order_id is not None
    await story.force_close(story.maker, order_id)
    await story.hour(3)


async def _fall_silent(story: Story) -> bytes:
    order_id = await _open(story)
    story.world.oracle.behaviour = Behaviour(Mode.SILENT)
    story.oracle_failed = True
    await story.force_close(story.maker, order_id)
    await story.hour(36)
    return order_id


async def _attested_late(story: Story, order_id: bytes | None) -> None:
    """Five hours late: the commit is out before."""
    assert order_id is not None
    story.world.oracle.behaviour = Behaviour(Mode.LATE, late=5 * 3600)
    await story.force_close(story.taker, order_id)
    await _end(story, order_id)


async def _attested_twice(story: Story, order_id: bytes | None) -> None:
    """The maker asks first and is told the price, the taker another one."""
    assert order_id is not None
    story.taker.switch_off()
    await story.hour(24.95)
    story.world.oracle.behaviour = Behaviour(Mode.CONTRADICT, price=48_000)
    story.taker.begin()
    await _end(story, order_id)


async def _reorganise_lock(story: Story, order_id: bytes | None) -> None:
    """The lock leaves the chain and comes back, twice; then the peer is gone."""
    assert order_id is not None
    for depth in (2, 4):
        story.world.reorganise(depth)
        await trio.sleep(HOUR)
    await story.force_close(story.taker, order_id)
    await story.hour(4)
    story.world.set_price(LIQUIDATING)
    await _end(story, order_id)


async def _reorganise_commit(story: Story, order_id: bytes | None) -> None:
    assert order_id is not None
    await story.force_close(story.maker, order_id)
    await story.until(lambda: (found := story.position(story.maker, order_id)) is not None and found.commit is not None)
    story.world.reorganise(3)
    story.world.set_price(LIQUIDATING)
    await _end(story, order_id)


async def _reorganise_ending(story: Story, order_id: bytes | None) -> None:
    assert order_id is not None

    def paid() -> bool:
        found = story.position(story.maker, order_id)
        return found is not None and found.ending is not None and found.commit is not None

    story.world.set_price(LIQUIDATING)
    await story.until(paid, 12 * HOUR)
    story.world.mine()
    story.world.mine()
    story.world.reorganise(2)
    await _end(story, order_id)
    story.world.reorganise(6)
    await _end(story, order_id)


async def _lose_the_maker(story: Story, order_id: bytes | None) -> None:
    """It is away for longer than the contract lasts; the taker helps itself."""
    assert order_id is not None
    story.maker.switch_off()
    await story.force_close(story.taker, order_id)
    await story.hour(40)
    story.maker.begin()


async def _lose_the_taker(story: Story, order_id: bytes | None) -> None:
    """It is away from before expiry until all is over."""
    story.taker.switch_off()
    await story.hour(40)
    story.taker.begin()


async def _quotes_stop(story: Story, order_id: bytes | None) -> None:
    """Nothing is closed at a stale quote; once there are quotes, it is."""
    assert order_id is not None
    story.world.feed_stopped_at = story.world.now()
    await trio.sleep(4 * HOUR)
    await story.close(story.taker, order_id)
    assert story.in_state(story.taker, order_id, State.OPEN)
    story.world.feed_stopped_at = None
    await story.close(story.taker, order_id)
    await _end(story, order_id)


async def _roll_over(story: Story, order_id: bytes | None) -> None:
    assert order_id is not None
    await story.roll_over(story.taker, order_id)

    def rolled() -> bool:
        found = [story.position(player, order_id) for player in (story.maker, story.taker)]
        return all(
            each is not None and (each.ended or (each.own_revoked == 1 and len(each.peer_secrets) == 1))
            for each in found
        )

    await story.until(rolled)


async def _close(story: Story, order_id: bytes | None) -> None:
    assert order_id is not None
    await story.close(story.taker, order_id)
    await _end(story, order_id)


SETUP, ROLLOVER, SETTLEMENT = "/cfd/contract_setup/1", "/cfd/rollover/1", "/cfd/settlement/1"

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("contract_setup", _nothing, _set_up, paths=(SETUP,), soon=True),
        Scenario("expiry", _open_to_expiry, _expire),
        Scenario("liquidation", _open, _liquidate),
        Scenario("force_close_by_taker", _open, _force_close_by_taker, soon=True),
        Scenario("force_close_by_maker", _open, _force_close_by_maker, soon=True),
        Scenario("refund", _fall_silent, _end),
        Scenario("rollover", _open_for_two_hours, _roll_over, paths=(ROLLOVER,), soon=True),
        Scenario("close", _open, _close, paths=(SETTLEMENT,), soon=True),
        Scenario("cooperative_spend", _open_to_expiry, _expire, spend=True, paths=(SETTLEMENT,)),
        Scenario("attested_late", _open_to_expiry, _attested_late),
        Scenario("attested_twice", _open_to_expiry, _attested_twice),
        Scenario("reorganised_lock", _open, _reorganise_lock),
        Scenario("reorganised_commit", _open, _reorganise_commit),
        Scenario("reorganised_ending", _open, _reorganise_ending),
        Scenario("maker_away", _open, _lose_the_maker),
        Scenario("taker_away", _open_to_expiry, _lose_the_taker),
        Scenario("quotes_stop", _open, _quotes_stop, soon=True),
    )
}
