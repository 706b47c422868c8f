"""What a contract setup needs of its node, in either role: the answers to its questions, and what becomes of it."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
import trio
from attrs import Factory, define, field, frozen

from node.backup.service import Backup
from node.chain.electrum import ElectrumClient
from node.chain.inputs import check_inputs
from node.clock import Clock
from node.config import FeeRateTable
from node.network.conversation import Host
from node.oracle.client import OracleClient, ask_of_each
from node.position.book import Positions
from node.position.commands import fail_setup
from node.supervision import Service
from node.wallet.holds import CoinHolds
from node.wallet.interface import Wallet
from node.workers import in_worker_process
from protocols.contract.funding import FundingInput, change_value, funding_needed
from protocols.contract.keys import attempt_keys
from protocols.contract.oracle import Announcement
from protocols.contract.outcomes import covering
from protocols.contract.signing import transactions_of
from protocols.contract.terms import Role
from protocols.contract.transactions import ContractPlan
from protocols.contract_setup import (
    Attempt,
    CheckCoins,
    CheckFeeRate,
    FetchAnnouncements,
    Fund,
    Funding,
    KnownPoints,
    Now,
    SignLock,
)
from protocols.dialogue import Ask
from protocols.errors import CodedError, Declined, LocalError, RemoteProtocolError, WorldError
from protocols.offers import OracleKeys

Answers = Mapping[type[Ask[Any]], Callable[[Any], Awaitable[Any]]]
Refusal = type[LocalError] | type[Declined]
"""The node's own user is told why, or the peer is."""

SIX_BLOCKS = 6
KEPT_FOR_FEES = 20_000
"""Satoshis that the wallet keeps for each position, to raise the fees of its transactions with."""
RECORD_WITHIN = 10.0
"""Seconds in which a setup that is being ended may still write that it failed."""

log = structlog.get_logger("setup")


@define
class Setup:
    """One setup under way; the maker learns its order id on the way."""

    peer: bytes
    order_id: bytes | None = None


@frozen
class SetupNode:
    """The services that a setup asks, and the seed that its keys follow from."""

    clock: Clock
    oracle_keys: OracleKeys
    fee_rates: FeeRateTable
    positions: Service[Positions]
    chain: Service[ElectrumClient]
    wallet: Service[Wallet]
    oracle: Service[OracleClient]
    seed: bytes = field(repr=False)
    backup: Service[Backup] | None = None
    holds: CoinHolds = Factory(CoinHolds)
    entropy: Callable[[int], bytes] = secrets.token_bytes
    compute: Callable[[Callable[..., Any], tuple[object, ...]], Awaitable[Any]] = in_worker_process
    """Where dialogues have heavy functions run."""
    points_asked: set[bytes] = field(factory=set, repr=False)
    """The x of every point that a peer named since the node started."""

    def attempt(self, order_id: bytes) -> Attempt:
        """A setup's salt, drawn anew, and its keys."""
        salt = self.entropy(32)
        return Attempt(salt, attempt_keys(self.seed, setup_salt=salt, salt=salt, order_id=order_id, index=0))

    def host(self, role: Role, peer: bytes, more: Answers | None = None) -> Host:
        """The host of a setup with `peer`; `more` are the answers that differ by role."""

        async def sign_lock(ask: SignLock) -> tuple[tuple[bytes, ...], ...]:
            return await self._sign_lock(role, ask)

        async def persist(fact: Any) -> None:
            await self.positions.call(Positions.remember, fact, peer)

        answers: Answers = {
            CheckFeeRate: self._check_fee_rate,
            Fund: self._fund,
            CheckCoins: self._check_coins,
            SignLock: sign_lock,
        }
        return Host(answers={**self.answers, **answers, **(more or {})}, persist=persist, compute=self.compute)

    @property
    def answers(self) -> Answers:
        """To what a rollover asks as well."""
        return {Now: self._now, FetchAnnouncements: self._announcements, KnownPoints: self._known_points}

    async def carry_out(self, setup: Setup, conversation: Awaitable[ContractPlan]) -> None:
        """Await a setup's conversation, and see to it that its failure is on record however it ends."""
        failure: CodedError | None = LocalError("interrupted", "the setup was interrupted")
        try:
            plan = await conversation
            failure = None
            log.info("contract signed", order=plan.order_id.hex(), peer=setup.peer[:8].hex())
        except CodedError as error:
            failure = error
            order = setup.order_id.hex() if setup.order_id else None
            log.info("setup ended", order=order, peer=setup.peer[:8].hex(), code=error.code, reason=error.sentence)
        finally:
            if setup.order_id is not None:
                if failure is not None:
                    with trio.move_on_after(RECORD_WITHIN, shield=True):
                        await self._failed(setup.order_id, failure)
                self.holds.release(setup.order_id)

    async def _failed(self, order_id: bytes, error: CodedError) -> None:
        """Nothing is recorded once our lock signatures left: then the lock is watched instead.

        Nor can it be while the store is away; the positions are gone through when it is back (`run_positions`).
        """
        try:
            await self.positions.call(Positions.record, order_id, fail_setup(error.code, error.sentence))
        except LocalError as refusal:
            if refusal.code != "already_signed":
                raise
        except WorldError as down:
            log.warning("a failed setup is not on record yet", order=order_id.hex(), reason=down.sentence)

    def check_ready(self) -> None:
        """Raises WorldError naming the first service that a setup needs and that is not up, or the oracle that does not
        answer, or that no backup can be written; LocalError when the oracle has contradicted itself."""
        with self.positions.lent() as positions:
            positions.check_writable()
        for service in (self.chain, self.wallet):
            with service.lent():
                pass
        self.check_oracle()
        self.check_answering()
        self.check_backup()

    def check_oracle(self) -> None:
        """Disconnected, or LocalError once the oracle has contradicted itself: nothing new is trusted to it then."""
        with self.oracle.lent() as oracle:
            oracle.check_trusted()

    def check_answering(self) -> None:
        """WorldError while the oracle does not answer: nothing new is begun then, and what is under way goes on."""
        with self.oracle.lent() as oracle:
            oracle.check_answering()

    def check_backup(self) -> None:
        """WorldError while no backup can be written: nothing would be signed then, so nothing is begun."""
        if self.backup is not None:
            with self.backup.lent() as backup:
                backup.check_writable()

    async def check_undecided(self, plan: ContractPlan, refusal: Refusal = LocalError, *, late: int = 0) -> None:
        """Refuse to sign for a contract that pays out already: the peer may have held us up until it knew.

        Events that are past and not attested are waited for, that is refused too, for `late` seconds of the calendar.
        """
        for event, announcement in enumerate(plan.announcements):
            since = self.clock.calendar() - announcement.time
            if since < 0:
                return
            attestation = await self.oracle.call(OracleClient.attestation, announcement)
            if attestation is None:
                if since < late:
                    raise refusal("not_attested", f"event {announcement.id} is past and not attested yet")
            elif covering(transactions_of(plan).outcomes, event, attestation.price):
                raise refusal("decided", f"event {announcement.id} is attested, and contract {plan.index} pays out")

    async def fee_rate(self) -> int:
        """Whole sat/vB for six blocks within the configured bounds; the default when the chain cannot say."""
        rates = self.fee_rates
        try:
            estimate = await self.chain.call(ElectrumClient.estimate_fee, SIX_BLOCKS)
        except WorldError:
            estimate = None
        return rates.default if estimate is None else min(max(estimate, rates.lowest), rates.highest)

    def kept_for_fees(self, order_id: bytes | None = None) -> int:
        """What the wallet keeps for the positions that are open or being set up, and that of `order_id` too."""
        with self.positions.lent() as positions:
            live = {position.id for position in positions.all() if position.attempts and not position.ended}
        asking = set() if order_id is None else {order_id}
        return KEPT_FOR_FEES * len(live | self.holds.holders | asking)

    # --- answers ------------------------------------------------------------------------------------------------------

    async def _now(self, _: Now) -> int:
        return self.clock.calendar()

    async def _check_fee_rate(self, ask: CheckFeeRate) -> None:
        own = await self.fee_rate()
        if not own <= 2 * ask.fee_rate <= 6 * own:
            raise RemoteProtocolError(
                "bad_fee_rate",
                f"fee_rate is {ask.fee_rate} sat/vB, allowed is half to three times our own estimate, {own}",
            )

    async def _announcements(self, ask: FetchAnnouncements) -> tuple[Announcement, ...]:
        if ask.oracle != self.oracle_keys:
            raise LocalError("other_oracle", "the offer names another oracle than this node's configuration")
        self.check_oracle()
        return await ask_of_each(self.oracle, OracleClient.announcement, ask.event_ids)

    async def _fund(self, ask: Fund) -> Funding:
        """A taker learns that the maker cannot pay now, and no more than that."""
        try:
            return await self._choose_coins(ask)
        except LocalError as error:
            if ask.role is Role.TAKER or error.code not in ("insufficient_funds", "kept_for_fees"):
                raise
            log.warning("an order cannot be served", order=ask.order_id.hex(), reason=error.sentence)
            sentence = "the maker has no free coins for this at present; try again after the next block"
            raise Declined("no_free_coins", sentence) from error

    async def _choose_coins(self, ask: Fund) -> Funding:
        payout = await self.wallet.call(Wallet.new_script)
        needed = funding_needed(ask.role, ask.terms, payout, ask.peer_payout)
        async with self.holds.lock:
            with self.positions.lent() as positions:
                reserved = positions.reserved() | self.holds.all()
            chosen = await self.wallet.call(Wallet.fund, needed, ask.terms.fee_rate, reserved)
            change = change_value(chosen.inputs, needed, ask.terms.fee_rate, chosen.change_script)
            spent = reserved | {coin.outpoint for coin in chosen.inputs}
            coins = await self.wallet.call(Wallet.coins)
            left = change + sum(coin.value for coin in coins if coin.spendable and coin.outpoint not in spent)
            kept = self.kept_for_fees(ask.order_id)
            if left < kept:
                raise LocalError(
                    "kept_for_fees",
                    f"the wallet would have {left} sat left that it may spend, and keeps {kept} sat to raise fees "
                    f"with: {KEPT_FOR_FEES} for each position, this one included",
                )
            self.holds.hold(ask.order_id, frozenset(coin.outpoint for coin in chosen.inputs))
        return Funding(chosen.inputs, chosen.change_script, payout)

    async def _known_points(self, ask: KnownPoints) -> frozenset[bytes]:
        known = await self.positions.call(Positions.known_points, ask.points)
        # Setups under way may have named a point that no event names yet.
        asked = frozenset(point for _, point in ask.points.each())
        known |= frozenset(point for point in asked if point[1:] in self.points_asked)
        self.points_asked.update(point[1:] for point in asked)
        return known

    async def _check_coins(self, ask: CheckCoins) -> None:
        for name, scripts in (("inputs", [coin.script for coin in ask.inputs]), ("scripts", ask.scripts)):
            for script in scripts:
                if await self.wallet.call(Wallet.is_mine, script):
                    raise RemoteProtocolError("not_yours", f"{name}: {script.hex()} is a script of this node's wallet")
        await self._check_inputs(ask.inputs)

    async def _check_inputs(self, inputs: tuple[FundingInput, ...]) -> None:
        await self.chain.call(check_inputs, inputs)

    def _check_unpromised(self, role: Role, plan: ContractPlan) -> None:
        """Refuse coins that the peer brings into another lock too: each that fails costs us what giving it up costs."""
        with self.positions.lent() as positions:
            promised = {
                coin
                for position in positions.all()
                if position.id != plan.order_id and not position.ended
                for attempt in position.attempts
                if attempt.peer is not None
                for coin in attempt.peer.inputs
            }
        for coin in plan.party(role.other).inputs:
            if coin in promised:
                raise RemoteProtocolError(
                    "bad_input", f"input {coin.outpoint} is promised to another lock with this node"
                )

    async def _sign_lock(self, role: Role, ask: SignLock) -> tuple[tuple[bytes, ...], ...]:
        self.check_oracle()
        self._check_unpromised(role, ask.plan)
        await self.check_undecided(ask.plan)
        transactions = transactions_of(ask.plan)
        witnesses = await self.wallet.call(Wallet.sign, transactions.lock.serialize(), transactions.lock_prevouts)
        first = 0 if role is Role.MAKER else len(ask.plan.maker.inputs)
        own = range(first, first + len(ask.plan.party(role).inputs))
        if set(witnesses) != set(own):
            raise LocalError("not_our_coin", f"the wallet signed inputs {sorted(witnesses)} of the lock, not {own}")
        return tuple(witnesses[index] for index in own)
