"""An event store with a long history: positions that were opened, rolled over day after day, and are still open.

The plans are valid: real points, terms, announcements and lock transactions with both sides' signatures. What nobody
looks at while a contract is open, the signatures of contracts and CETs, is noise of the right length.

    make_history(path, positions=1_000, events=100_000)

A bench whose chain is to know the locks first makes `contracts` out of coins of its own (of `COIN_KEY`), has the chain
take their `lock`s, and passes both on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from random import Random

import trio
from attrs import evolve, field, frozen
from btclib_secp256k1 import keys as curve

from node.eventstore.interface import Blob, EventStore, NewEvent
from node.eventstore.sqlite import run_store
from node.position import snapshots
from node.position.events import (
    CODEC,
    STREAM,
    AttemptStarted,
    CommitSignatureGiven,
    ContractSigned,
    Event,
    Following,
    LockConfirmed,
    LockSigned,
    OrderPlaced,
    RevocationReceived,
    Revoking,
    RolloverBegun,
    RolloverFailed,
    RolloverHeld,
    RolloverSigned,
    SetupStarted,
    Witnesses,
    points_of,
    signatures_blob,
)
from node.position.evolve import replay
from node.position.state import Placed
from protocols.contract import schnorr
from protocols.contract.funding import FundingInput
from protocols.contract.keys import AttemptKeys, attempt_keys
from protocols.contract.oracle import OLIVIA, Announcement, parse_announcement
from protocols.contract.rolling import rolled_terms
from protocols.contract.schedule import HOUR, contract_events
from protocols.contract.scripts import p2tr
from protocols.contract.sighash import signature_hash
from protocols.contract.terms import REGTEST_TIMELOCKS, Role, Side, Terms
from protocols.contract.transactions import ContractPlan, ContractTransactions, Party, completed
from protocols.offers import Offer, OracleKeys

DAY = 24 * HOUR
EVENTS_OF_A_SETUP, EVENTS_OF_A_ROLLOVER = 7, 5
SIGNATURES = 30_000
"""Bytes of the peer's refund and CET signatures of one contract."""
COIN = 1_000_000
"""Satoshis of a side's coin: enough for its margin and the fees."""


def _secret(*parts: object) -> bytes:
    return sha256(repr(parts).encode()).digest()


def _x_only(secret: bytes) -> bytes:
    return curve.pubkey_from_prvkey(secret)[1:]


COIN_KEY = _secret("the key of all coins")
COIN_SCRIPT = p2tr(_x_only(COIN_KEY))
ANNOUNCEMENT_KEY, ATTESTATION_KEY = _secret("announces"), _secret("attests")
ORACLE = OracleKeys(OLIVIA.name, _x_only(ANNOUNCEMENT_KEY), _x_only(ATTESTATION_KEY))
SEED = _secret("own seed", 0) + _secret("own seed", 1)
"""Our node's; 64 bytes."""
PEER_SEED = _secret("peer's seed", 0) + _secret("peer's seed", 1)
PEER = _x_only(_secret("the peer"))
"""The peer's identity."""

Announce = Callable[[str], bytes]
"""What the oracle answers about an event, by its id."""


@lru_cache(maxsize=1 << 14)
def announce(event: str) -> bytes:
    """By an oracle of this module's own."""
    nonces = [_secret("nonce", event, digit) for digit in range(20)]
    return OLIVIA.announce(event, nonces, ATTESTATION_KEY, ANNOUNCEMENT_KEY)


@frozen
class Oracle:
    """Whose events the contracts name."""

    keys: OracleKeys = ORACLE
    announce: Announce = announce

    def announcements(self, symbol: str, now: int) -> tuple[Announcement, ...]:
        return tuple(self._announcement(event) for event in contract_events(symbol, now, OLIVIA))

    @lru_cache(maxsize=1 << 14)  # noqa: B019  # as long as the bench
    def _announcement(self, event: str) -> Announcement:
        keys = self.keys
        return parse_announcement(
            self.announce(event),
            announcement_key=keys.announcement_key,
            attestation_key=keys.attestation_key,
            scheme=keys.scheme,
        )


@frozen
class Contract:
    """The contract of a setup, made on its first day."""

    offer: Offer
    role: Role
    plan: ContractPlan
    salt: bytes = field(repr=False)
    """Ours."""
    peer_salt: bytes = field(repr=False)
    opened: int
    """Seconds since 1970."""
    rollovers: int
    own_witnesses: Witnesses
    peer_witnesses: Witnesses
    lock: bytes = field(repr=False)
    """Both sides' signatures are in it."""
    lock_txid: bytes


def contracts(
    positions: int = 1_000,
    events: int = 100_000,
    *,
    now: int,
    role: Role = Role.TAKER,
    seed: bytes = SEED,
    peer: bytes = PEER,
    oracle: Oracle | None = None,
    coins: Sequence[tuple[FundingInput, FundingInput]] | None = None,
    scripts: Callable[[int], tuple[bytes, bytes]] | None = None,
) -> list[Contract]:
    """So many, each rolled over as often as makes `events` of all. `coins`: ours and the peer's of each, of `COIN`
    satoshis to `COIN_SCRIPT`; `scripts`: where our change and payout of each go; made up unless given."""
    oracle = oracle or Oracle()
    rolled = max(0, events // positions - EVENTS_OF_A_SETUP) // EVENTS_OF_A_ROLLOVER
    opened = now - rolled * DAY
    offer = _offer(oracle.keys, opened)
    made = []
    for number in range(positions):
        order_id = _secret("order", number)[:16]
        salts = _secret("salt", number, 0), _secret("peer's salt", number, 0)
        own_coin, peer_coin = coins[number] if coins is not None else (_coin(number, "own"), _coin(number, "peer"))
        own = _party(_keys(seed, salts[0], salts[0], order_id, 0), own_coin, number, "own")
        if scripts is not None:
            change, payout = scripts(number)
            own = evolve(own, change_script=change, payout_script=payout)
        others = _party(_keys(PEER_SEED, salts[1], salts[1], order_id, 0), peer_coin, number, "peer")
        maker, taker = (own, others) if role is Role.MAKER else (others, own)
        announced = oracle.announcements(offer.symbol, opened)
        plan = ContractPlan(order_id, 0, offer.terms(200, 2), maker, taker, announced)
        made.append(_signed(offer, role, plan, salts, opened=opened, rolled=rolled))
    return made


def _signed(
    offer: Offer, role: Role, plan: ContractPlan, salts: tuple[bytes, bytes], *, opened: int, rolled: int
) -> Contract:
    transactions = ContractTransactions(plan)
    lock, prevouts = transactions.lock, transactions.lock_prevouts
    witnesses: Witnesses = tuple(
        (schnorr.sign(COIN_KEY, signature_hash(lock, index, prevouts)),) for index in range(len(prevouts))
    )
    makers = witnesses[: len(plan.maker.inputs)], witnesses[len(plan.maker.inputs) :]
    own, peers = makers if role is Role.MAKER else makers[::-1]
    raw = completed(lock, witnesses)
    return Contract(offer, role, plan, *salts, opened, rolled, own, peers, raw, transactions.lock_txid)


def events_of(
    contract: Contract, placed: Placed, *, peer: bytes = PEER, seed: bytes = SEED, oracle: Oracle | None = None
) -> Iterator[Event]:
    """All that happened to a position, in order."""
    oracle = oracle or Oracle()
    plan, role, offer = contract.plan, contract.role, contract.offer
    noise = Random(plan.order_id.hex())
    own, other = plan.party(role), plan.party(role.other)
    yield OrderPlaced(role, peer, offer, plan.terms.quantity, plan.terms.taker_leverage)
    yield SetupStarted(plan.terms, tuple(each.raw for each in plan.announcements))
    yield AttemptStarted(0, contract.salt, own, None)
    yield CommitSignatureGiven(0, other)
    yield ContractSigned(0, noise.randbytes(65), contract.own_witnesses, None)
    yield LockSigned(contract.peer_witnesses)
    yield LockConfirmed(placed.txid, placed.height, placed.block)
    terms, before = plan.terms, _keys(PEER_SEED, contract.peer_salt, contract.peer_salt, plan.order_id, 0)
    for index in range(1, contract.rollovers + 1):
        salt, peer_salt = _secret("salt", plan.order_id, index), _secret("peer's salt", plan.order_id, index)
        keys = _keys(seed, contract.salt, salt, plan.order_id, index)
        peer_keys = _keys(PEER_SEED, contract.peer_salt, peer_salt, plan.order_id, index)
        terms = _rolled(terms, noise)
        announced = oracle.announcements(offer.symbol, contract.opened + index * DAY)
        raws = tuple(each.raw for each in announced)
        following = Following(terms, raws, offer.funding_rate, peer_keys.points)
        commit_txid = noise.randbytes(32)
        if index == contract.rollovers:
            parties = evolve(own, points=keys.points), evolve(other, points=peer_keys.points)
            maker, taker = parties if role is Role.MAKER else parties[::-1]
            last = ContractPlan(plan.order_id, index, terms, maker, taker, announced)
            commit_txid = ContractTransactions(last).commit_txid
        yield RolloverBegun(index, salt, keys.points, None if role is Role.TAKER else following)
        yield RolloverHeld(
            index, keys.points, following if role is Role.TAKER else None, noise.randbytes(65), commit_txid
        )
        yield RolloverSigned(index, noise.randbytes(65))
        yield Revoking(index - 1)
        yield RevocationReceived(index - 1, before.revoke)
        before = peer_keys


def make_history(
    path: Path,
    positions: int = 1_000,
    events: int = 100_000,
    *,
    made: Sequence[Contract] | None = None,
    placed: Mapping[bytes, Placed] | None = None,
    peer: bytes = PEER,
    seed: bytes = SEED,
    oracle: Oracle | None = None,
    now: int | None = None,
    kept: bool = True,
) -> int:
    """Write a new event store in the file `path`; returns how many events it holds.

    `made`: contracts to go on with; `placed`: by transaction id where the chain has their locks; `kept`: whether with
    snapshots, as a node that ran for a while leaves it.
    """
    now = int(time.time()) if now is None else now
    given = contracts(positions, events, now=now, seed=seed, peer=peer, oracle=oracle) if made is None else made
    written = 0

    async def write() -> None:
        nonlocal written
        async with trio.open_nursery() as nursery:
            store: EventStore = await nursery.start(run_store, path)
            for contract in given:
                at = Placed(contract.lock_txid, 1, bytes(32)) if placed is None else placed[contract.lock_txid]
                history = list(events_of(contract, at, peer=peer, seed=seed, oracle=oracle))
                history += _idle(events // positions - len(history))
                recorded = await store.append(_stream(contract), 0, [_recorded(contract, each) for each in history])
                written += len(history)
                if kept:
                    position = replay(contract.plan.order_id, history, [each.recorded_at for each in recorded])
                    data = snapshots.encode(position, points_of(history))
                    await store.keep_snapshot(_stream(contract), position.version, snapshots.FORM, data)
            nursery.cancel_scope.cancel()

    trio.run(write)
    return written


def _stream(contract: Contract) -> str:
    return STREAM + contract.plan.order_id.hex()


def _recorded(contract: Contract, event: Event) -> NewEvent:
    """With the signatures that are still needed: those of the contract that stands."""
    made = CODEC.encode(event)
    if isinstance(event, CommitSignatureGiven | RolloverHeld) and event.index == contract.rollovers:
        signatures = Random(contract.plan.order_id.hex()).randbytes(SIGNATURES)
        return evolve(made, blobs=(Blob(signatures_blob(event.index), signatures),))
    return made


def _idle(count: int) -> list[Event]:
    """What happens most days: the maker was away when it was time to roll over."""
    return [RolloverFailed("peer_gone", f"the maker was away ({number})") for number in range(count)]


def _keys(seed: bytes, setup_salt: bytes, salt: bytes, order_id: bytes, index: int) -> AttemptKeys:
    return attempt_keys(seed, setup_salt=setup_salt, salt=salt, order_id=order_id, index=index)


def _coin(number: int, whose: str) -> FundingInput:
    return FundingInput(_secret("coin", whose, number), 0, COIN, COIN_SCRIPT)


def _party(keys: AttemptKeys, coin: FundingInput, number: int, whose: str) -> Party:
    change, payout = (p2tr(_x_only(_secret(what, whose, number))) for what in ("change", "payout"))
    return Party(keys.points, (coin,), change, payout)


def _rolled(terms: Terms, noise: Random) -> Terms:
    rate = noise.choice(["0.0001", "-0.0001", "0"])
    return rolled_terms(terms, rate=rate, price=str(noise.randrange(52_000, 56_000)), hours=24)


def _offer(oracle: OracleKeys, created: int) -> Offer:
    return Offer(
        id=_secret("offer")[:16],
        side=Side.SHORT,
        price="54000",
        min_quantity=100,
        max_quantity=10_000,
        lot=100,
        leverages=(1, 2, 5),
        maker_leverage=1,
        opening_fee=500,
        funding_rate="0.0001",
        fee_rate=2,
        timelocks=REGTEST_TIMELOCKS,
        oracle=oracle,
        tolerance_near="0.005",
        tolerance_far="0.05",
        created=created,
    )
