"""Two traders with keys and coins of their own, and a contract setup between them in memory."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

from attrs import evolve, field, frozen
from btclib_secp256k1 import keys as curve

from protocols.contract import schnorr
from protocols.contract.funding import FundingInput, funding_needed
from protocols.contract.keys import Points, attempt_keys
from protocols.contract.oracle import OLIVIA, Announcement, parse_announcement
from protocols.contract.scripts import p2tr
from protocols.contract.sighash import signature_hash
from protocols.contract.terms import REGTEST_TIMELOCKS, Role, Side
from protocols.contract.transactions import ContractPlan, ContractTransactions
from protocols.contract_setup import (
    PROTOCOL,
    Attempt,
    CheckCoins,
    CheckFeeRate,
    Decide,
    FetchAnnouncements,
    FindOffer,
    Fund,
    Funding,
    KnownPoints,
    Now,
    Order,
    SignLock,
    maker,
    taker,
)
from protocols.offers import Offer, OracleKeys
from protocols.testing import End, Pair

NOW = 1_790_000_000
ATTESTATION_SECRET, ANNOUNCEMENT_SECRET = bytes([7]) * 32, bytes([8]) * 32


def secret(*parts: object) -> bytes:
    """A private key that follows from its name."""
    return hashlib.sha256(repr(parts).encode()).digest()


def x_only(private: bytes) -> bytes:
    return curve.pubkey_from_prvkey(private)[1:]


ORACLE = OracleKeys(OLIVIA.name, x_only(ANNOUNCEMENT_SECRET), x_only(ATTESTATION_SECRET))


def nonces(event_id: str) -> list[bytes]:
    _, time = OLIVIA.parse_event(event_id)
    return [secret("nonce", time, digit) for digit in range(20)]


@lru_cache(maxsize=256)
def announcement(event_id: str) -> Announcement:
    raw = OLIVIA.announce(event_id, nonces(event_id), ATTESTATION_SECRET, ANNOUNCEMENT_SECRET)
    return parse_announcement(
        raw,
        announcement_key=ORACLE.announcement_key,
        attestation_key=ORACLE.attestation_key,
        scheme=ORACLE.scheme,
    )


OFFER = Offer(
    id=bytes(range(16)),
    side=Side.SHORT,
    price="54000",
    min_quantity=100,
    max_quantity=10_000,
    lot=100,
    leverages=(1, 2, 5),
    maker_leverage=1,
    opening_fee=500,
    funding_rate="0.001",
    fee_rate=2,
    timelocks=REGTEST_TIMELOCKS,
    oracle=ORACLE,
    tolerance_near="0.05",  # coarse, so that contracts are small and tests quick
    tolerance_far="0.1",
    created=NOW,
)


def order(**changes: Any) -> Order:
    return evolve(Order(bytes([9]) * 16, OFFER, 3_500, 5), **changes)


@frozen
class Trader:
    """A key for coins, a seed for contracts."""

    name: str
    coin_key: bytes = field(repr=False)
    seed: bytes = field(repr=False)

    @classmethod
    def named(cls, name: str) -> Trader:
        return cls(name, secret(name, "coin"), secret(name, "a") + secret(name, "b"))

    def script(self, purpose: str) -> bytes:
        return p2tr(x_only(secret(self.name, purpose)))

    def coin(self, value: int = 20_000_000) -> FundingInput:
        return FundingInput(secret(self.name, "txid"), 1, value, p2tr(x_only(self.coin_key)))

    def funding(self, **changes: Any) -> Funding:
        return evolve(Funding((self.coin(),), self.script("change"), self.script("payout")), **changes)

    def attempt(self, order_id: bytes, salt: bytes | None = None) -> Attempt:
        salt = salt or secret(self.name, "salt", order_id)
        return Attempt(salt, attempt_keys(self.seed, setup_salt=salt, salt=salt, order_id=order_id, index=0))

    def sign_lock(self, plan: ContractPlan) -> tuple[tuple[bytes, ...], ...]:
        transactions = ContractTransactions(plan)
        prevouts = transactions.lock_prevouts
        own = p2tr(x_only(self.coin_key))
        return tuple(
            (schnorr.sign(self.coin_key, signature_hash(transactions.lock, index, prevouts)),)
            for index, spent in enumerate(prevouts)
            if spent.script == own
        )

    def answers(self, offer: Offer | None = OFFER) -> dict[Any, Any]:
        """What this trader's node would say to each question, if all is well."""

        def known(_: KnownPoints) -> frozenset[bytes]:
            return frozenset()

        def fund(ask: Fund) -> Funding:
            funding = self.funding()
            needed = funding_needed(ask.role, ask.terms, funding.payout_script, ask.peer_payout)
            assert sum(coin.value for coin in funding.inputs) > needed
            return funding

        return {
            Now: lambda _: NOW,
            FindOffer: lambda ask: offer if offer and ask.offer_id == offer.id else None,
            Decide: lambda _: None,
            CheckFeeRate: lambda _: None,
            FetchAnnouncements: lambda ask: tuple(announcement(each) for each in ask.event_ids),
            Fund: fund,
            KnownPoints: known,
            CheckCoins: lambda _: None,
            SignLock: lambda ask: self.sign_lock(ask.plan),
        }


MAKER, TAKER = Trader.named("maker"), Trader.named("taker")


def setup_pair(placed: Order | None = None, **changes: Any) -> Pair:
    """A setup about to begin; `taker_answers` and `maker_answers` replace single answers."""
    placed = placed or order()
    taking = End(
        "taker",
        taker(placed, TAKER.attempt(placed.order_id)),
        answers={**TAKER.answers(), **changes.get("taker_answers", {})},
    )
    making = End(
        "maker",
        maker(MAKER.attempt),
        answers={**MAKER.answers(), **changes.get("maker_answers", {})},
    )
    return Pair(PROTOCOL.codec, taking, making)


def points_of(trader: Trader, order_id: bytes) -> Points:
    return trader.attempt(order_id).keys.points


__all__ = ["MAKER", "NOW", "OFFER", "TAKER", "Role", "Trader", "announcement", "order", "setup_pair"]
