"""Peers that want more than is theirs: whatever one of them does, the other's checks hold when all is quiet."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import trio

from node.network.conversation import Host, inline, speak
from node.position.state import State
from node.regtest.policy import Rejected
from node.rollover import RolloverNode
from protocols import settlement
from protocols.contract import adaptor
from protocols.contract.keys import negated
from protocols.contract_setup import Attempt
from protocols.errors import CodedError
from protocols.rollover import Standing
from tests.lies import Change, drop, edit, flip, flipped, put, same
from tests.simulation.liars import Hostile, Liar, Plot, Trick, expiry, order, ordered, roll
from tests.simulation.world import HOUR, Player

# --- plots ------------------------------------------------------------------------------------------------------------


def _lies_in_setup(kind: str, change: Change) -> Plot:
    async def plot(liar: Liar, _: bytes) -> None:
        liar.bend(kind, change)
        await order(liar.story)
        await trio.sleep(HOUR)

    return plot


def _lies_in_rollover(kind: str, change: Change) -> Plot:
    async def plot(liar: Liar, order_id: bytes) -> None:
        liar.bend(kind, change)
        await roll(liar.story, order_id)
        await expiry(liar.story)

    return plot


def _lies_and_leaves(kind: str, change: Change) -> Plot:
    """What it lied about is what the other side needs once it is alone, for better or worse."""

    async def plot(liar: Liar, order_id: bytes) -> None:
        liar.bend(kind, change)
        await roll(liar.story, order_id)
        assert liar.player.life is not None
        liar.player.life.end()
        liar.story.world.set_price(60_000 if liar.player.name == "maker" else 50_000)
        await expiry(liar.story)

    return plot


def _every(signatures: list[bytes]) -> list[bytes]:
    """One bit of each CET's signature."""
    size = adaptor.SIZE
    return [
        b"".join(flipped(joined[at : at + size], 40) for at in range(0, len(joined), size)) for joined in signatures
    ]


def _lies_in_close(kind: str, change: Change) -> Plot:
    async def plot(liar: Liar, order_id: bytes) -> None:
        liar.bend(kind, change)
        await liar.story.close(liar.story.taker, order_id)
        await trio.sleep(HOUR)

    return plot


def _lies_in_spend(kind: str, change: Change) -> Plot:
    async def plot(liar: Liar, _: bytes) -> None:
        liar.bend(kind, change)
        await expiry(liar.story)

    return plot


async def _spends_its_inputs(liar: Liar, _: bytes) -> None:
    """As soon as it has our signatures, or as its own leave."""
    kind = "taker_lock" if liar.player.name == "taker" else "maker_lock"
    liar.when(kind, liar.spend_inputs)
    if kind == "maker_lock":
        liar.keep_back()
    await order(liar.story)
    await trio.sleep(HOUR)


async def _replaces_the_lock(liar: Liar, _: bytes) -> None:
    """Both signed, and a mempool has it, until it has what pays more."""
    await ordered(liar.story)
    mempool = liar.story.world.mempool
    await liar.story.until(lambda: bool(mempool.entries))
    liar.spend_inputs()
    await trio.sleep(3 * HOUR)


async def _holds_the_lock_back(after: float, liar: Liar, _: bytes) -> None:
    """The maker has all witnesses: it publishes when the price has moved its way, or never."""
    liar.keep_back()
    liar.when("maker_lock", liar.cut)
    await ordered(liar.story)
    await trio.sleep(20)
    liar.story.world.set_price(50_000)
    await trio.sleep(after)
    try:
        liar.hand_in(liar.lock())
    except (Rejected, ValueError):
        return  # too late: its inputs' other half is spent
    await expiry(liar.story)


def _old_commit(moment: str, which: int = 0, *, late: float = 0.0, away: float = 0.0, restart: bool = False) -> Plot:
    """Contract 0 is published: at once when a message leaves, or `late` seconds after the rollover, while the other one
    is `away` for so long, or just before it restarts."""

    async def plot(liar: Liar, order_id: bytes) -> None:
        story, honest = liar.story, _other(liar)
        if moment:
            liar.when(moment, partial(liar.publish, 0), which)
        await roll(story, order_id)
        if not moment:
            await trio.sleep(late)
            if away:
                assert honest.life is not None
                honest.life.end()
            liar.publish(0)
            if away:
                await trio.sleep(away)
                honest.begin()
            if restart:
                assert honest.life is not None
                await trio.sleep(1)
                honest.life.crash()
        await trio.sleep(2 * HOUR)

    return plot


async def _ends_before_it_revokes(liar: Liar, order_id: bytes) -> None:
    """Contract 0 is published, and then revoked all the same: the revocation counts, whenever it came."""
    liar.when("revocation", partial(liar.publish, 0))
    await roll(liar.story, order_id)
    await expiry(liar.story)


def _instead_of(kind: str) -> Plot:
    """Contract 0 is published, and nothing is said any more: as long as it was not revoked, it pays."""

    async def plot(liar: Liar, order_id: bytes) -> None:
        liar.when(kind, partial(liar.publish, 0))
        liar.tricks.append(Trick(kind, lambda _: liar.cut(), None))
        await roll(liar.story, order_id)
        await expiry(liar.story)

    return plot


async def _revokes_with_nothing(liar: Liar, order_id: bytes) -> None:
    """What it sends for its revocation punishes nothing; then it publishes."""
    liar.bend("revocation", flip("secret"))
    await roll(liar.story, order_id)
    liar.publish(0)
    await expiry(liar.story)


def _silent_from(kind: str) -> Plot:
    """The ransom: whoever has the other's commit signature lets it wait."""

    async def plot(liar: Liar, order_id: bytes) -> None:
        liar.tricks.append(Trick(kind, lambda _: liar.cut(), None))
        await roll(liar.story, order_id)
        await expiry(liar.story)

    return plot


async def _drops_its_terms(liar: Liar, order_id: bytes) -> None:
    """So that another attempt follows, which has points of its own."""
    liar.when("rollover_terms", liar.cut)
    await roll(liar.story, order_id)
    await roll(liar.story, order_id, 4.2)
    await expiry(liar.story)


async def _other_terms_when_resumed(liar: Liar, order_id: bytes) -> None:
    """The maker's commit is lost on its way; what the taker resumes gets other terms."""
    liar.when("maker_commit", liar.cut)
    liar.bend("rollover_terms", put(funding_rate="0.0049"), 1)
    liar.bend("rollover_terms", put(funding_rate="0.0049"), 2)
    await roll(liar.story, order_id)
    await liar.story.hour(8)


async def _another_attempt(liar: Liar, order_id: bytes) -> None:
    """The taker's signatures are with the maker; it "forgets", and proposes with other points."""
    liar.when("maker_commit", liar.cut)
    for which in (1, 2):
        liar.bend("propose_rollover", edit("publish", negated), which)
    liar.when("revocation", liar.cut)
    await roll(liar.story, order_id)
    await liar.story.hour(8)


class _Repeating(RolloverNode):
    """Has the points of contract 0 once more."""

    def begin(self, found: Standing) -> Attempt:
        position = self._position(found.plan.order_id)
        assert position is not None
        return Attempt(position.attempts[0].salt, position.keys(0, self.setup.seed))


async def _points_once_more(liar: Liar, order_id: bytes) -> None:
    """With signatures that are valid: it has the keys."""
    liar.lied += 1
    if liar.player.name == "maker":
        node = liar.player.maker.rollover
        liar.player.maker.rollover = _Repeating(node.setup, node.feeds)
    else:
        schedule = liar.player.taker.schedule
        schedule.node = _Repeating(schedule.node.setup, schedule.node.feeds)
    await roll(liar.story, order_id)
    await expiry(liar.story)


def _replays(kind: str) -> Plot:
    """In a second rollover a message of the first."""

    async def plot(liar: Liar, order_id: bytes) -> None:
        await roll(liar.story, order_id)
        liar.replay(kind, 1)
        await roll(liar.story, order_id, 5.2)
        await liar.story.hour(30)

    return plot


async def _keeps_the_close(liar: Liar, order_id: bytes) -> None:
    """The maker has both signatures, says nothing, and waits for an hour what the price will do."""
    liar.keep_back()
    liar.tricks.append(Trick("maker_partial", lambda _: liar.cut(), None))
    await liar.story.close(liar.story.taker, order_id)
    await trio.sleep(700)
    close = liar.position.close_raw
    assert close is not None
    with suppress(Rejected):
        liar.hand_in(close)
    await trio.sleep(HOUR)


async def _closes_at_another_price(liar: Liar, order_id: bytes) -> None:
    """The maker signed one close, and broadcasts it; then the price moves, and the taker wants that one instead."""
    story, node = liar.story, liar.player.taker
    await story.close(story.taker, order_id)
    await story.until(lambda: story.in_state(story.maker, order_id, State.CLOSING))
    story.world.set_price(60_000)
    position = liar.position
    contract = settlement.Contract(position.plan(), position.keys(0, node.core.setup.seed).fund)

    async def yes(_: object) -> None:
        await trio.lowlevel.checkpoint()

    dialogue = settlement.taker_close(contract, "60000", node.core.setup.entropy)
    host = Host(answers={settlement.CheckClose: yes}, persist=yes, compute=inline)
    liar.lied += 1
    with suppress(CodedError, Rejected):
        liar.hand_in(await speak(node.connections[position.peer], settlement.PROTOCOL, dialogue, host))
    await trio.sleep(HOUR)


async def _asks_for_another_close(liar: Liar, order_id: bytes) -> None:
    """The maker has the taker's signature of one close, and gets no other one out of it."""
    story = liar.story
    liar.keep_back()
    liar.tricks.append(Trick("maker_partial", lambda _: liar.cut(), None))
    await story.close(story.taker, order_id)
    await trio.sleep(5)
    story.world.set_price(50_000)
    liar.bend("accept_close", flip("close_txid"), 1)
    await story.close(story.taker, order_id)
    await trio.sleep(2 * HOUR)


def _other(liar: Liar) -> Player:
    return liar.story.taker if liar.player.name == "maker" else liar.story.maker


# --- all of them ------------------------------------------------------------------------------------------------------

NO_CONTRACT, BY_CET, PUNISHED = "no contract", "settled by cet", "punished by punish"

IN_SETUP = tuple(
    Hostile(name, who, _lies_in_setup(kind, change), NO_CONTRACT, opened=False)
    for who, name, kind, change in (
        ("taker", "a wrong refund signature", "taker_contract", flip("refund_signature", 40)),
        ("taker", "a wrong CET signature", "taker_contract", flip("cet_signatures", 40)),
        ("taker", "an input of another value", "taker_contract", edit("inputs", lambda i: [{**i[0], "value": 10**9}])),
        ("taker", "an input that does not exist", "taker_contract", edit("inputs", lambda i: [{**i[0], "vout": 9}])),
        ("taker", "a point twice", "taker_contract", same("revoke", "publish", negated)),
        ("taker", "a wrong commit signature", "taker_lock", flip("commit_signature", 40)),
        ("taker", "a witness that is none", "taker_lock", flip("witnesses", 40)),
        ("maker", "another fee rate", "accepted", put(fee_rate=9)),
        ("maker", "an input of another value", "accepted", edit("inputs", lambda i: [{**i[0], "value": 10**9}])),
        ("maker", "a wrong refund signature", "maker_contract", flip("refund_signature", 40)),
        ("maker", "a wrong CET signature", "maker_contract", flip("cet_signatures", 40)),
        ("maker", "a wrong commit signature", "maker_contract", flip("commit_signature", 40)),
    )
)

BEFORE_IT_LEAVES = tuple(
    Hostile(f"{name}, and leaves", who, _lies_and_leaves(kind, change), BY_CET)
    for who, name, kind, change in (
        ("maker", "wrong CET signatures", "rollover_terms", edit("cet_signatures", _every)),
        ("maker", "a wrong commit signature", "maker_commit", flip("commit_signature", 40)),
        ("taker", "wrong CET signatures", "taker_signatures", edit("cet_signatures", _every)),
        ("taker", "a wrong commit signature", "taker_signatures", flip("commit_signature", 40)),
    )
)

IN_ROLLOVER = tuple(
    Hostile(name, who, _lies_in_rollover(kind, change), BY_CET)
    for who, name, kind, change in (
        ("maker", "a wrong CET signature for the next contract", "rollover_terms", flip("cet_signatures", 40)),
        ("maker", "a wrong refund signature for the next contract", "rollover_terms", flip("refund_signature", 40)),
        ("maker", "a rate beyond the bound", "rollover_terms", put(funding_rate="0.9")),
        ("maker", "more funding than is due", "rollover_terms", edit("funding_to_maker", lambda sat: sat + 1_000)),
        ("maker", "an account that nobody agreed on", "rollover_terms", edit("maker_account", lambda sat: sat + 1_000)),
        ("maker", "a price far from the market", "rollover_terms", put(price="70000")),
        ("maker", "our own point as its", "rollover_terms", drop("publish")),
        ("maker", "a wrong commit signature for the next contract", "maker_commit", flip("commit_signature", 40)),
        ("taker", "a wrong CET signature for the next contract", "taker_signatures", flip("cet_signatures", 40)),
        ("taker", "a wrong commit signature for the next contract", "taker_signatures", flip("commit_signature", 40)),
        ("taker", "a revocation that is none", "revocation", flip("secret")),
        ("maker", "a revocation that is none", "revocation", flip("secret")),
    )
)

AT_THE_END = (
    Hostile("a wrong partial signature", "taker", _lies_in_close("taker_partial", flip("signature")), BY_CET),
    Hostile(
        "a wrong partial signature", "maker", _lies_in_close("maker_partial", flip("signature")), "closed by close"
    ),
    Hostile("another close", "maker", _lies_in_close("accept_close", flip("close_txid")), BY_CET),
    Hostile("keeps the close for an hour", "maker", _keeps_the_close, BY_CET),
    Hostile("wants a close at another price", "taker", _closes_at_another_price, "closed by close"),
    Hostile("wants another close signed", "maker", _asks_for_another_close, BY_CET),
    Hostile("a wrong signature of a spend", "taker", _lies_in_spend("propose_spend", flip("signature")), BY_CET, True),
    Hostile(
        "a wrong signature of a spend", "maker", _lies_in_spend("accept_spend", flip("signature")), "settled", True
    ),
)

WITH_THE_LOCK = (
    Hostile("spends its inputs elsewhere", "taker", _spends_its_inputs, NO_CONTRACT, opened=False),
    Hostile("replaces the lock", "taker", _replaces_the_lock, "lock given up", opened=False),
    Hostile("replaces the lock", "maker", _replaces_the_lock, "lock given up", opened=False),
    Hostile("spends its inputs elsewhere", "maker", _spends_its_inputs, "lock given up", opened=False),
    Hostile(
        "publishes the lock too late", "maker", partial(_holds_the_lock_back, 200.0), "lock given up", opened=False
    ),
    Hostile("publishes the lock late", "maker", partial(_holds_the_lock_back, 50.0), BY_CET, opened=False),
    Hostile(
        "a witness that is none", "maker", _lies_in_setup("maker_lock", flip("witnesses", 40)), BY_CET, opened=False
    ),
)

WITH_OLD_COMMITS = (
    Hostile("publishes what it revoked, at once", "taker", _old_commit("", late=0.0), PUNISHED),
    Hostile("publishes what it revoked, at once", "maker", _old_commit("", late=0.0), PUNISHED),
    Hostile("publishes what it revoked, hours later", "taker", _old_commit("", late=5 * HOUR), PUNISHED),
    Hostile("publishes what it revoked, as we restart", "maker", _old_commit("", restart=True), PUNISHED),
    Hostile("publishes what it revoked, as we restart", "taker", _old_commit("", restart=True), PUNISHED),
    Hostile("publishes what it revoked, while we are away", "taker", _old_commit("", away=1.5 * HOUR), PUNISHED),
    Hostile("publishes what it revoked, while we are away", "maker", _old_commit("", away=1.5 * HOUR), PUNISHED),
    Hostile("publishes and then revokes", "taker", _ends_before_it_revokes, PUNISHED),
    Hostile("publishes and then revokes", "maker", _ends_before_it_revokes, PUNISHED),
    Hostile("a revocation that is none, and publishes", "taker", _revokes_with_nothing, BY_CET),
    Hostile("publishes the old one as it signs the new one", "maker", _old_commit("maker_commit"), PUNISHED),
    Hostile("publishes the old one instead of revoking it", "taker", _instead_of("revocation"), BY_CET),
    Hostile("publishes the old one instead of revoking it", "maker", _instead_of("revocation"), BY_CET),
)

IN_SECOND_TRIES = (
    Hostile("drops its terms once", "maker", _drops_its_terms, BY_CET),
    Hostile("silent once it has our commit signature", "maker", _silent_from("maker_commit"), BY_CET),
    Hostile("silent once it has our commit signature", "taker", _silent_from("revocation"), BY_CET),
    Hostile("silent once it has our revocation", "maker", _silent_from("revocation"), BY_CET),
    Hostile("resumes with other terms", "maker", _other_terms_when_resumed, BY_CET),
    Hostile("another attempt after its signatures", "taker", _another_attempt, BY_CET),
    Hostile("the points of an earlier contract", "maker", _points_once_more, BY_CET),
    Hostile("the points of an earlier contract", "taker", _points_once_more, BY_CET),
    Hostile("replays a proposal", "taker", _replays("propose_rollover"), BY_CET),
    Hostile("replays its signatures", "taker", _replays("taker_signatures"), BY_CET),
    Hostile("replays its terms", "maker", _replays("rollover_terms"), BY_CET),
    Hostile("replays its commit signature", "maker", _replays("maker_commit"), BY_CET),
    Hostile("replays a revocation", "taker", _replays("revocation"), BY_CET),
    Hostile("replays a revocation", "maker", _replays("revocation"), BY_CET),
)

HOSTILE = {
    str(each): each
    for each in (
        *IN_SETUP,
        *IN_ROLLOVER,
        *BEFORE_IT_LEAVES,
        *AT_THE_END,
        *WITH_THE_LOCK,
        *WITH_OLD_COMMITS,
        *IN_SECOND_TRIES,
    )
}
