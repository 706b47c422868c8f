"""A node that plays by the rules but where its plot says otherwise.

It sends other messages, at moments of its choice hands in transactions that its own record would not allow, or keeps
silent about what it should say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import trio
from attrs import define, evolve, field, frozen

from node.position.due import due
from node.position.state import Attempt as Contract
from node.position.state import Position
from node.wallet.bip86 import CHANGE, RECEIVE
from protocols.contract import schnorr
from protocols.contract.sighash import TxOut, signature_hash
from protocols.contract.signing import complete_commit
from protocols.contract.transactions import FINAL, LOCK_VERSION, completed, unsigned
from tests.lies import Change, Plain
from tests.simulation.faults import Faults, Step
from tests.simulation.run import Outcome, play
from tests.simulation.scenarios import Story
from tests.simulation.world import HOUR, Player, account_of


@frozen
class Trick:
    """What is done to a message of this kind that is about to leave."""

    kind: str
    act: Callable[[Plain], Plain | None]
    which: int | None
    """Of the messages of this kind, from 0; None: every one."""


@define(eq=False)
class Liar:
    """A node that deceives: a `Deceit` of the wire, and what it can do besides its messages."""

    story: Story
    player: Player
    tricks: list[Trick] = field(factory=list)
    lied: int = 0
    """How often."""
    sent: dict[str, list[Plain]] = field(factory=dict)
    """Every message so far, by kind."""
    _counts: Counter[str] = field(factory=Counter)

    def __call__(self, step: Step, plain: Plain) -> Plain | None:
        kind = str(plain["type"])
        number = self._counts[kind]
        self._counts[kind] += 1
        self.sent.setdefault(kind, []).append({**plain})
        bent = None
        for trick in self.tricks:
            if trick.kind == kind and trick.which in (None, number):
                self.lied += 1
                bent = trick.act(plain) or bent
        return bent

    # In messages

    def bend(self, kind: str, change: Change, which: int | None = None) -> None:
        """Have a change made to messages of a kind."""

        def act(plain: Plain) -> Plain:
            change(plain)
            return plain

        self.tricks.append(Trick(kind, act, which))

    def replay(self, kind: str, which: int) -> None:
        """Instead of a later message of this kind, have the first one sent once more."""
        self.tricks.append(Trick(kind, lambda _: self.sent[kind][0], which))

    def when(self, kind: str, do: Callable[[], object], which: int = 0) -> None:
        """Have something done just before a message leaves."""

        def act(_: Plain) -> None:
            do()

        self.tricks.append(Trick(kind, act, which))

    def cut(self) -> None:
        """The connection; what was about to leave is lost."""
        for link, *owners in self.story.world.network.links:
            if {getattr(owner, "name", None) for owner in owners} == {"maker", "taker"}:
                link.cut()

    # On the chain

    @property
    def position(self) -> Position:
        """Its only one."""
        (position,) = self.player.positions()
        return position

    def commit(self, index: int) -> bytes:
        """The complete commit of a contract, whatever the record says of publishing it."""
        position, life = self.position, self.player.life
        assert life is not None
        contract: Contract = position.attempts[index]
        assert contract.commit_signature is not None
        keys = position.keys(index, life.node.core.setup.seed)
        return complete_commit(position.plan(index), position.role, keys, contract.commit_signature)

    def hand_in(self, raw: bytes) -> None:
        self.lied += 1
        world = self.story.world
        world.mempool.submit(raw)
        world.handed_in(self.player.name, raw.hex())

    def publish(self, index: int) -> None:
        self.hand_in(self.commit(index))

    def lock(self) -> bytes:
        """Complete: the liar has both sides' witnesses."""
        (raw,) = due(self.position, bytes(64), None).values()
        return raw

    def spend_inputs(self) -> None:
        """Those that it promised to the lock, back to itself, for a fee that leaves the lock no chance."""
        coins = self.position.attempts[0].own.inputs
        account = account_of(self.player.name)
        places = {account.script(chain, at): (chain, at) for chain in (RECEIVE, CHANGE) for at in range(30)}
        value, spent = sum(coin.value for coin in coins), [TxOut(coin.value, coin.script) for coin in coins]
        back = TxOut(value - 5_000, account.script(RECEIVE, 0))
        tx = unsigned(LOCK_VERSION, [(coin.txid, coin.vout, FINAL) for coin in coins], [back])
        hashes = [signature_hash(tx, at, spent) for at in range(len(coins))]
        secrets = [account.secret(*places[coin.script]) for coin in coins]
        self.hand_in(completed(tx, [[schnorr.sign(*each)] for each in zip(secrets, hashes, strict=True)]))

    def keep_back(self) -> None:
        """From now on its node hands nothing in by itself."""
        self.lied += 1
        life = self.player.life
        assert life is not None
        setattr(life.node.core.broadcaster, "keep", lambda *_, **__: None)  # noqa: B010  # of this one only


Plot = Callable[[Liar, bytes], Awaitable[None]]
"""What the liar does with an open position, and what everybody else does meanwhile."""


@frozen
class Hostile:
    """One hostile peer, from the beginning to what came of it."""

    name: str
    who: str
    plot: Plot
    ends: str
    """Part of what is said of how the position ended."""
    spend: bool = False
    """Whether commits are spent together."""
    opened: bool = True
    """Whether there is an open position before the plot begins."""

    def __str__(self) -> str:
        return f"{self.who}: {self.name}"

    def run(self, seed: int = 0) -> Outcome:
        liars: list[Liar] = []

        async def tell(story: Story) -> None:
            world = story.world
            world.faults.open = False
            world.add("maker", spend=self.spend)
            world.add("taker", "maker", spend=self.spend)
            order_id = b""
            if self.opened:
                order_id = await ordered(story)
                assert await story.opened(order_id), "nobody disturbed this"
            liar = Liar(story, story.player(self.who))
            liars.append(liar)
            world.faults.deceits[self.who] = liar
            await self.plot(liar, order_id)

        outcome = play(str(self), seed, tell, Faults())
        wrong = list(outcome.violations)
        if not liars[0].lied:
            wrong.append("nobody lied")
        if self.ends not in outcome.summary:
            wrong.append(f"it ended otherwise than by {self.ends!r}: {outcome.summary}")
        return evolve(outcome, violations=tuple(wrong))


# --- what users do meanwhile ------------------------------------------------------------------------------------------


async def ordered(story: Story) -> bytes:
    offer = await story.offer(story.maker)
    assert offer is not None
    order_id = await story.order(story.taker, offer)
    assert order_id is not None
    return order_id


async def order(story: Story) -> None:
    await story.opened(await ordered(story))


async def roll(story: Story, order_id: bytes, hour: float = 2.2) -> None:
    """At that hour; a minute for it."""
    await story.hour(hour)
    await story.roll_over(story.taker, order_id)
    await trio.sleep(HOUR)


async def expiry(story: Story) -> None:
    await story.hour(25.5)
