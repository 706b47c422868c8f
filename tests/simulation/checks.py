"""What must hold when everybody was left alone and all is quiet. Each check returns sentences, none if all is well.

What they look at is the chain and what is on the nodes' disks, gathered once (`Found`), so that a test can doctor it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from attrs import field, frozen
from bitcoin.core import CTransaction

from node.eventstore.interface import Recorded
from node.eventstore.memory import MemoryBackend
from node.position import snapshots
from node.position.events import CODEC, STREAM, CommitPublishing, Event, PunishSigned, Revoking
from node.position.evolve import replay
from node.position.state import Position, State
from node.wallet.bip86 import CHANGE, RECEIVE
from protocols.contract.funding import OutPoint
from protocols.contract.keys import Points
from protocols.contract.outcomes import covering
from protocols.contract.scripts import ANCHOR_SCRIPT
from protocols.contract.terms import Role
from protocols.contract.transactions import ContractTransactions, outpoints, vsize
from tests.simulation.scenarios import ASKED, Story
from tests.simulation.world import COIN, COINS, Player, World, account_of

HIGHEST_RATE = 100
"""Satoshis per virtual byte that nothing in a run needs to pay, but for a punishment."""
LOOKAHEAD = 60


@frozen
class Seat:
    """One node's record of its positions, from its disk."""

    name: str
    honest: bool
    positions: Mapping[bytes, Position]
    events: Mapping[bytes, tuple[tuple[Event, float], ...]] = field(repr=False)
    reserved: frozenset[OutPoint] = frozenset()
    """Coins that the node holds for positions."""
    running: bool = True


@frozen
class Found:
    """All that is left after a run."""

    transactions: Mapping[bytes, CTransaction] = field(repr=False)
    """All confirmed ones."""
    spenders: Mapping[OutPoint, bytes] = field(repr=False)
    unspent: Mapping[OutPoint, tuple[int, bytes]] = field(repr=False)
    """Value and script."""
    wallets: Mapping[bytes, str] = field(repr=False)
    """Whose wallet a script is in."""
    first: frozenset[OutPoint] = field(repr=False)
    """The coins that everybody began with."""
    seats: tuple[Seat, ...]
    attested: Mapping[tuple[str, int], frozenset[int]] = field(repr=False)
    """By symbol and time, what the oracle ever said."""
    broadcasts: tuple[tuple[float, str, bytes], ...] = field(repr=False)
    force_closed: frozenset[tuple[str, bytes]] = frozenset()
    reorganised: bool = False
    oracle_failed: bool = False
    """Whether it attested late, or not at all."""

    def positions(self) -> Iterator[tuple[Seat, Position]]:
        for seat in self.seats:
            for position in seat.positions.values():
                yield seat, position


def gather(story: Story) -> Found:
    world = story.world
    wallets = {
        account_of(name).script(chain, index): name
        for name, player in world.players.items()
        for chain in (RECEIVE, CHANGE)
        for index in range(player.revealed[chain] + LOOKAHEAD)
    }
    first = frozenset(
        outpoint for outpoint, coin in world.first_coins.items() if wallets.get(coin.output.script) is not None
    )
    return Found(
        transactions={txid: CTransaction.deserialize(each.raw) for txid, each in world.index.transactions.items()},
        spenders=dict(world.index.spenders),
        unspent={outpoint: (coin.output.value, coin.output.script) for outpoint, coin in world.index.coins.items()},
        wallets=wallets,
        first=first,
        seats=tuple(_seat(story, player) for player in world.players.values()),
        attested=_attested(world),
        broadcasts=tuple(world.broadcasts),
        force_closed=frozenset(story.force_closed),
        reorganised=world.reorganised,
        oracle_failed=story.oracle_failed,
    )


def _attested(world: World) -> dict[tuple[str, int], frozenset[int]]:
    said = {event: frozenset([price]) for event, price in world.attested.prices.items()}
    for event, price in world.oracle.contradicted.items():
        said[event] = said.get(event, frozenset()) | {price}
    return said


def _seat(story: Story, player: Player) -> Seat:
    events: dict[bytes, list[tuple[Event, float]]] = {}
    disk = player.platters
    archived = [disk.load_archived(each.stream) for each in disk.archived(STREAM, None, 10**9)]
    for recorded in (*disk.read(0, 10**9), *(each for stream in archived for each in stream)):
        if recorded.stream.startswith(STREAM):
            events.setdefault(bytes.fromhex(recorded.stream.removeprefix(STREAM)), []).append(_decoded(recorded, disk))
    positions = {
        order_id: replay(order_id, [event for event, _ in each], [at for _, at in each])
        for order_id, each in events.items()
    }
    for position in positions.values():
        snapshot = snapshots.decode(snapshots.encode(position, ()))
        assert snapshot.position(disk.contents(snapshot.needs)) == position, "a snapshot tells something else"
    reserved: frozenset[OutPoint] = frozenset()
    if player.up:
        assert player.life is not None
        core = player.life.node.core
        with core.positions.lent() as book:
            reserved = book.reserved() | core.setup.holds.all()
    honest = player.name not in story.world.faults.deceits
    tuples = {order_id: tuple(each) for order_id, each in events.items()}
    return Seat(player.name, honest, positions, tuples, reserved, player.up)


def _decoded(recorded: Recorded, disk: MemoryBackend) -> tuple[Event, float]:
    return CODEC.decode(recorded, disk.contents(CODEC.needs(recorded))), recorded.recorded_at


# --- the checks -------------------------------------------------------------------------------------------------------


def money_is_conserved(found: Found) -> list[str]:
    """All that comes of the first coins is in somebody's wallet or an anchor, and no fee is larger than it may be."""
    wrong: list[str] = []
    punishing = {
        event.txid
        for seat in found.seats
        for events in seat.events.values()
        for event, _ in events
        if isinstance(event, PunishSigned)
    }
    ours = set(found.first)
    value = fees = 0
    for txid, tx in found.transactions.items():  # in the chain's order: parents first
        spent = [each for each in outpoints(tx) if each in ours]
        if not spent:
            continue
        came = sum(_output(found, each)[0] for each in outpoints(tx))
        fee = came - sum(each.nValue for each in tx.vout)
        fees += fee
        if fee > HIGHEST_RATE * vsize(tx) and txid not in punishing:
            wrong.append(f"transaction {_id(txid)} pays {fee} sat of fees")
        ours |= {OutPoint(txid, vout) for vout in range(len(tx.vout))}
    for outpoint in sorted(ours):
        if outpoint in found.unspent:
            satoshis, script = found.unspent[outpoint]
            value += satoshis
            if script not in found.wallets and script != ANCHOR_SCRIPT:
                wrong.append(f"{satoshis} sat at {_id(outpoint.txid)}:{outpoint.vout} are nobody's")
    began = sum(_output(found, each)[0] for each in found.first)
    if value + fees != began:
        wrong.append(f"{began} sat in the beginning, {value} sat and {fees} sat of fees in the end")
    if began != len(found.seats) * COINS * COIN:
        wrong.append(f"{began} sat in the beginning, not what everybody was given")
    return wrong


def everybody_got_what_is_due(found: Found) -> list[str]:
    """Each honest side is paid at least what the contract that it holds entitles it to."""
    wrong: list[str] = []
    for seat, position in found.positions():
        if not seat.honest or not position.attempts or position.attempts[0].peer is None:
            continue  # what it signed, it signed after that was on record
        lock = position.transactions(0)
        if lock.lock_txid not in found.transactions:
            continue
        where = f"{seat.name}, position {position.id.hex()[:8]}"
        if position.lock is None:
            wrong.append(f"{where}: the lock is in the chain and the node does not know ({position.state.value})")
            continue
        txid = found.spenders.get(OutPoint(lock.lock_txid, 0))
        if txid is None:
            continue  # stuck, which another check tells
        problem = _underpaid(found, position, found.transactions[txid], txid)
        if problem is not None:
            wrong.append(f"{where}: {problem}")
    return wrong


def _underpaid(found: Found, position: Position, spender: CTransaction, txid: bytes) -> str | None:
    role = position.role
    script = position.attempts[0].own.payout_script
    commits = {position.commit_txid(each): each for each in position.attempts if each.peer is not None}
    if txid not in commits:
        if position.closing is None or position.closing.txid != txid:
            return f"{_id(txid)} spent the lock, to which it never agreed"
        due = _payout(position.transactions(position.attempts[-1].index), role, position.closing.price)
        got = _paid(spender, script)
        return None if got >= due else f"the close paid {got} sat, due are {due}"
    attempt = commits[txid]
    ending = found.spenders.get(OutPoint(txid, 0))
    if ending is None:
        return None  # stuck
    got = _paid(found.transactions[ending], script)
    transactions = position.transactions(attempt.index)
    allowed = _due(found, position, transactions)
    if attempt.index < len(position.peer_secrets):
        if transactions.commit_value - got <= transactions.commit_value // 2:
            return None
        return f"the peer published contract {attempt.index}, which it had revoked, and only {got} sat were taken"
    if not allowed:
        return f"{_id(ending)} paid {got} sat, and nothing is due yet"
    least = min(allowed)
    return None if got >= least else f"contract {attempt.index} paid {got} sat, due are {least}"


def _due(found: Found, position: Position, transactions: ContractTransactions) -> list[int]:
    """What the contract may pay to this side, by what the oracle said: one amount, if the oracle was as it should."""
    script = position.attempts[0].own.payout_script
    due: list[int] = []
    for event, announcement in enumerate(transactions.plan.announcements):
        prices = found.attested.get((transactions.plan.terms.symbol, announcement.time), frozenset())
        for price in sorted(prices):
            outcome = covering(transactions.outcomes, event, price)
            if outcome is not None:
                outputs = transactions.outputs(outcome.long)
                due.append(sum(each.value for each in outputs if each.script == script))
        if due and all(covering(transactions.outcomes, event, price) is not None for price in prices):
            break
    if found.oracle_failed or not due:
        due.append(_paid(transactions.refund, script))
    return due


def nothing_is_stuck(found: Found) -> list[str]:
    wrong = [f"{seat.name} does not come up again" for seat in found.seats if seat.honest and not seat.running]
    for seat, position in found.positions():
        if seat.honest and not position.ended:
            wrong.append(f"{seat.name}, position {position.id.hex()[:8]}: stuck, {position.state.value}")
    return wrong


def force_closes_are_called_for(found: Found) -> list[str]:
    """Whoever publishes a commit has a reason that is true."""
    wrong: list[str] = []
    for seat in found.seats:
        for order_id, events in seat.events.items() if seat.honest else ():
            for number, (event, at) in enumerate(events):
                if not isinstance(event, CommitPublishing):
                    continue
                before = replay(order_id, [each for each, _ in events[:number]], [when for _, when in events[:number]])
                if not _called_for(found, seat, before, event, at):
                    wrong.append(f"{seat.name}, position {order_id.hex()[:8]}: published its commit: {event.reason}")
    return wrong


def _called_for(found: Found, seat: Seat, position: Position, event: CommitPublishing, at: float) -> bool:
    if event.reason == ASKED:
        return (seat.name, position.id) in found.force_closed
    if event.reason.startswith("the oracle attested "):
        return any(
            covering(position.transactions(index).outcomes, number, price) is not None
            for index in {event.index}
            for number, announcement in enumerate(position.plan(index).announcements)
            for price in found.attested.get((position.plan(index).terms.symbol, announcement.time), ())
        )
    if event.reason == "the peer's commit is in no mempool and no block any more":
        return found.reorganised
    if "was not finished" in event.reason:
        return position.state is State.ROLLING_OVER
    if event.reason.startswith("nothing spent the lock within"):
        return position.closing is not None and at - position.closing_since >= 600
    return False


def no_coins_are_reserved(found: Found) -> list[str]:
    return [f"{seat.name} holds {len(seat.reserved)} coins" for seat in found.seats if seat.honest and seat.reserved]


def no_point_is_used_twice(found: Found) -> list[str]:
    """No two attempts share a point, but for a position's fund points."""
    wrong: list[str] = []
    for seat in found.seats:
        if not seat.honest:
            continue
        named: list[tuple[bytes, str, bytes]] = []
        for order_id, events in seat.events.items():
            for event, _ in events:
                for points in _own_points(event):
                    named += [(order_id, name, point[1:]) for name, point in points.each()]
        distinct = sorted(set(named))
        for (order, name, point), (other, other_name, same) in combinations(sorted(distinct, key=lambda n: n[2]), 2):
            if point == same and not (order == other and name == other_name == "fund"):
                wrong.append(f"{seat.name}: {name} of {order.hex()[:8]} is {other_name} of {other.hex()[:8]}")
        counts = [each for each in named if each[1] != "fund"]
        for order_id, name, point in {each for each in counts if counts.count(each) > 1}:
            wrong.append(f"{seat.name}: {name} {point.hex()[:8]} of {order_id.hex()[:8]} serves two attempts")
    return wrong


def _own_points(event: Event) -> list[Points]:
    """Of events that begin an attempt."""
    own = getattr(event, "own", None) if type(event).__name__ in ("AttemptStarted", "RolloverBegun") else None
    points = getattr(own, "points", own)
    return [points] if isinstance(points, Points) else []


def nobody_published_what_it_revoked(found: Found) -> list[str]:
    wrong: list[str] = []
    for seat, position in found.positions():
        if not seat.honest:
            continue
        revoked = {event.index: at for event, at in seat.events[position.id] if isinstance(event, Revoking)}
        for attempt in position.attempts:
            if attempt.peer is None or attempt.index not in revoked:
                continue
            commit = position.commit_txid(attempt)
            # whoever punishes may bring in the commit with what punishes it
            by = next((name for _, name, txid in found.broadcasts if txid == commit), None)
            for at, name, txid in found.broadcasts:
                if name == seat.name == by and txid == commit and at >= revoked[attempt.index]:
                    wrong.append(
                        f"{name}, position {position.id.hex()[:8]}: published contract {attempt.index}, revoked"
                    )
    return wrong


CHECKS = (
    money_is_conserved,
    everybody_got_what_is_due,
    nothing_is_stuck,
    force_closes_are_called_for,
    no_coins_are_reserved,
    no_point_is_used_twice,
    nobody_published_what_it_revoked,
)


def judge(found: Found) -> list[str]:
    """What is wrong; empty if nothing."""
    return [f"{check.__name__}: {sentence}" for check in CHECKS for sentence in check(found)]


def summary(found: Found) -> str:
    """How positions ended, for counting."""
    ended: dict[bytes, list[str]] = {}
    for _, position in found.positions():
        ended.setdefault(position.id, []).append(_ending(position))
    if not ended:
        return "no position"
    return ", ".join(sorted(" / ".join(dict.fromkeys(sorted(each))) for each in ended.values()))


def _ending(position: Position) -> str:
    if position.state in (State.REJECTED, State.SETUP_FAILED) and position.refusal is not None:
        return "lock given up" if position.refusal[0] == "lock_abandoned" else "no contract"
    kind = f" by {position.ending.kind.value}" if position.ending is not None else ""
    return f"{position.state.value}{kind}"


def _output(found: Found, outpoint: OutPoint) -> tuple[int, bytes]:
    output = found.transactions[outpoint.txid].vout[outpoint.vout]
    return output.nValue, bytes(output.scriptPubKey)


def _paid(tx: CTransaction, script: bytes) -> int:
    return sum(output.nValue for output in tx.vout if bytes(output.scriptPubKey) == script)


def _payout(transactions: ContractTransactions, role: Role, price: str) -> int:
    from protocols.contract.numbers import parse_price
    from protocols.contract.payout import Payout

    return Payout(transactions.plan.terms).of(role, parse_price(price))


def _id(txid: bytes) -> str:
    return txid[::-1].hex()[:12]
