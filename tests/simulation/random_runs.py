"""Runs with several takers and positions, in which users, prices, chain, oracle and faults do as the seed says."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping

import trio
from attrs import define

from node.config import RolloverTable, TakerConfig
from node.oracle.server import Behaviour, Mode
from node.position.state import Position, State
from protocols.contract.terms import Side
from tests.simulation.faults import Fault, Faults, Step, faults_of
from tests.simulation.run import Outcome, play
from tests.simulation.scenarios import Story
from tests.simulation.world import HOUR, TAKERS, Player

HOURS = (0.5, 2.5), (0.5, 2.5), (0.5, 2.5), (2.0, 9.0)
"""How long users are busy, from and to: most runs are short, so that there can be many."""
CLOSING = 1.0, 1.0, 0.8, 0.5
"""The part of what is open in the end that its users close; the rest comes to its expiry."""
PAUSE = 0.02, 0.8
"""Hours between two things that happen."""
SYMBOLS = "BTCUSD", "BTCUSD", "BTCUSD", "ETHUSD"
QUANTITIES: Mapping[str, range] = {"BTCUSD": range(500, 3_000, 100), "ETHUSD": range(10, 60)}
SKEW = 1.0
"""Seconds by which a clock may be wrong: a minute of the calendar."""
DEEPEST = 6
"""Blocks that a reorganisation replaces at most."""
TROUBLE = 0.0, 0.04, 0.08, 0.15
"""How likely each step meets a fault."""


def random_run(seed: int) -> Outcome:
    draw = random.Random(f"random run {seed}")
    trouble = draw.choice(TROUBLE)

    def fault(step: Step) -> Fault | None:
        return draw.choice(faults_of(step)) if draw.random() < trouble else None

    async def tell(story: Story) -> None:
        await _Users(story, draw).live()

    return play("random", seed, tell, Faults(draw=fault))


@define
class _Users:
    story: Story
    draw: random.Random

    async def live(self) -> None:
        """Some hours of trade; then nothing fails any more, and some close what they have."""
        world = self.story.world
        spend, roll = self.draw.random() < 0.5, self.draw.random() < 0.5
        takers = TAKERS[: self.draw.choice((1, 1, 2, 3))]
        for player in (
            world.add("maker", spend=spend),
            *(world.add(name, "maker", spend=spend, roll=roll) for name in takers),
        ):
            player.skew = self.draw.uniform(-SKEW, SKEW)
        until = world.now() + self.draw.uniform(*self.draw.choice(HOURS)) * HOUR
        closing = self.draw.choice(CLOSING)
        await self._order()
        while world.now() < until:
            await trio.sleep(self.draw.uniform(*PAUSE) * HOUR)
            await self._something()
        world.faults.end()
        world.feed_stopped_at, world.floor = None, 0
        world.oracle.behaviour = Behaviour()
        for name in takers:
            _stop_rolling(world.players[name])
        await trio.sleep(HOUR)
        for taker, position in self._open():
            if self.draw.random() < closing:
                await self.story.close(taker, position.id)

    async def _something(self) -> None:
        happenings: dict[Callable[[], Awaitable[None]], int] = {
            self._order: 8,
            self._move: 8,
            self._crash: 3,
            self._cut: 3,
            self._close: 4,
            self._force_close: 2,
            self._roll_over: 4,
            self._reorganise: 2,
            self._stop_feed: 1,
            self._oracle: 1,
            self._fees: 1,
        }
        (happening,) = self.draw.choices(list(happenings), list(happenings.values()))
        await happening()

    # --- users

    async def _order(self) -> None:
        symbol, side = self.draw.choice(SYMBOLS), self.draw.choice((Side.LONG, Side.SHORT))
        taker = self.draw.choice(self._takers())
        quantity, leverage = self.draw.choice(QUANTITIES[symbol]), self.draw.choice((1, 2, 5))
        offer = await self.story.offer(self.story.maker, side, symbol)
        if offer is not None:
            await self.story.order(taker, offer, quantity, leverage)

    async def _close(self) -> None:
        if found := self._open():
            taker, position = self.draw.choice(found)
            await self.story.close(taker, position.id)

    async def _roll_over(self) -> None:
        if found := self._open():
            taker, position = self.draw.choice(found)
            await self.story.roll_over(taker, position.id)

    async def _force_close(self) -> None:
        if found := self._open():
            taker, position = self.draw.choice(found)
            await self.story.force_close(self.draw.choice((taker, self.story.maker)), position.id)

    def _takers(self) -> list[Player]:
        return [player for name, player in self.story.world.players.items() if name != "maker"]

    def _open(self) -> list[tuple[Player, Position]]:
        return [
            (taker, position)
            for taker in self._takers()
            if taker.up
            for position in taker.positions()
            if position.state in (State.OPEN, State.ROLLING_OVER)
        ]

    # --- the world

    async def _move(self) -> None:
        """The price, mostly a little, sometimes so far that somebody is liquidated."""
        world, symbol = self.story.world, self.draw.choice(SYMBOLS)
        step = self.draw.choice((0.003, 0.01, 0.03, 0.3))
        price = world.price(symbol) * (1 + self.draw.uniform(-step, step))
        world.set_price(max(100, min(500_000, int(price))), symbol)

    async def _crash(self) -> None:
        player = self.draw.choice(list(self.story.world.players.values()))
        if player.life is not None:
            player.life.crash()

    async def _cut(self) -> None:
        world = self.story.world
        for link, *owners in list(world.network.links):
            if all(owner is not None for owner in owners) or self.draw.random() < 0.2:
                link.cut()

    async def _reorganise(self) -> None:
        world = self.story.world
        depth = min(self.draw.randint(1, DEEPEST), world.chain.height - world.first_height)
        if depth > 0:
            world.reorganise(depth)

    async def _stop_feed(self) -> None:
        world = self.story.world
        world.feed_stopped_at = None if world.feed_stopped_at is not None else world.now()

    async def _oracle(self) -> None:
        """As it should be again, or late, silent, or, seldom, with another price for whom it told one."""
        oracle = self.story.world.oracle
        if oracle.behaviour.mode is not Mode.NORMAL:
            oracle.behaviour = Behaviour()
            return
        late = Behaviour(Mode.LATE, late=self.draw.randint(600, 3 * 3600))
        silent, contradicting = Behaviour(Mode.SILENT), Behaviour(Mode.CONTRADICT)
        (oracle.behaviour,) = self.draw.choices((late, silent, contradicting), (6, 6, 1))

    async def _fees(self) -> None:
        world = self.story.world
        world.fee_rate = self.draw.choice((2, 3, 5, 8))
        world.floor = self.draw.choice((0, world.fee_rate))


def _stop_rolling(taker: Player) -> None:
    assert isinstance(taker.config, TakerConfig)
    by_hand = RolloverTable(auto=False)
    taker.config = taker.config.model_copy(update={"rollover": by_hand})
    if taker.life is not None:
        taker.taker.schedule.table = by_hand
