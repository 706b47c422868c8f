"""What the API answers, for its description: satoshis, decimal strings, hex, seconds since 1970.

The routes build their answers themselves; tests/test_web_fuzz.py holds real answers against these models.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from node.web.answer_types import Aged, At, Hex, Price, Sat, Side, Trouble
from node.web.position_answers import PageOfPositions, PositionAnswer


class Cause(BaseModel):
    text: str
    count: int
    first: At
    last: At


class Repair(BaseModel):
    name: str
    title: str
    consequence: str


class ServiceAnswer(BaseModel):
    name: str
    state: str
    since: At
    reason: str
    remedy: str = Field(description="what the user can do; empty for a healthy one")
    next_try: At | None
    failures: int
    bugs: int
    last_error: str
    data_at: At | None
    data_age: float | None
    last_success: At | None
    causes: list[Cause]
    repairs: list[Repair]
    needs: list[str]
    actions: list[str]


class HealthAnswer(BaseModel):
    healthy: bool
    time: At
    warnings: list[str]
    services: list[ServiceAnswer]


class ClockAnswer(BaseModel):
    offset: float | None = Field(description="seconds that others' clocks are ahead of ours; null: nobody knows")
    by: dict[str, float] = Field(description="the same by each that tells the time")


class NodeAnswer(BaseModel):
    version: str
    network: str
    role: Literal["maker", "taker"]
    identity: Hex
    explorer: str | None = Field(description="what a transaction's id is appended to, for a link")
    symbols: list[str]
    versions: dict[str, str | int]
    time: At
    calendar: int = Field(description="the oracle's time, whole seconds since 1970")
    hour: float = Field(description="seconds that an hour of the oracle's time takes")
    clock: ClockAnswer


class LogAnswer(BaseModel):
    lines: list[dict[str, str]] = Field(description="`at`, `level`, `logger`, `event` and what else was said")


class QuoteAnswer(BaseModel):
    symbol: str
    bid: Price | None
    ask: Price | None
    at: At | None
    received_at: At | None
    age: float | None
    stale: bool
    stale_at: At | None
    reason: str | None


class CandleAnswer(BaseModel):
    time: int
    open: Price
    high: Price
    low: Price
    close: Price


class HistoryOfPrices(BaseModel):
    symbol: str
    resolution: str
    seconds: int
    candles: list[CandleAnswer]


class WalletAnswer(Aged):
    confirmed: Sat
    pending: Sat
    reserved: Sat
    margin_locked: Sat
    kept_for_fees: Sat | None
    height: int
    coins: int


class AddressAnswer(BaseModel):
    address: str


class CoinAnswer(BaseModel):
    outpoint: str
    txid: Hex
    vout: int
    value: Sat
    address: str
    confirmations: int
    spendable: bool
    held_by: Literal["position", "setup", "payment"] | None


class CoinsAnswer(Aged):
    coins: list[CoinAnswer]
    next: str | None


class UseAnswer(BaseModel):
    order_id: Hex
    kind: str = Field(description="as in the position's `transactions`: lock, commit, cet, close …")


class WalletTransactionAnswer(BaseModel):
    txid: Hex
    received: Sat = Field(description="by outputs of the wallet")
    spent: Sat = Field(description="of outputs of the wallet")
    amount: Sat = Field(description="received less spent")
    fee: Sat | None = Field(description="all of it, whoever pays it; null when not all inputs are known")
    confirmations: int = Field(description="0 while unconfirmed")
    height: int | None
    time: At | None = Field(description="of its block")
    of: UseAnswer | None = Field(description="the position that it belongs to, unless that left the archive's newest")


class StatementAnswer(Aged):
    transactions: list[WalletTransactionAnswer]
    next: Hex | None = Field(description="`before` of the next page")


class SendAnswer(BaseModel):
    address: str
    amount: Sat
    fee: Sat
    fee_rate: int
    change: Sat
    inputs: list[str]
    txid: Hex | None = Field(description="null of a preview")
    raw: Hex | None
    waits: str | None = Field(description="why the chain server does not have it yet; it is handed in again")


class OfferAnswer(BaseModel):
    id: Hex
    symbol: str
    maker_side: Side
    taker_side: Side
    price: Price
    min_quantity: int
    max_quantity: int
    lot: int
    leverages: list[int]
    maker_leverage: int
    opening_fee: Sat
    funding_rate: str
    fee_rate: int
    timelocks: dict[str, int]
    oracle: str
    tolerance_near: str
    tolerance_far: str
    created: int
    stale_at: At


class TakersOffer(OfferAnswer):
    maker: Hex
    as_of: At
    age: float
    stale: bool
    reason: str | None


class Funding(BaseModel):
    rate: str
    per_day: Sat = Field(description="positive: paid to us")
    hours: int


class Fees(BaseModel):
    rate: int
    lock: Sat
    commit: Sat
    cet: Sat
    total: Sat
    coins: int


class PreviewAnswer(BaseModel):
    offer_id: Hex
    maker: Hex
    stale_at: At
    symbol: str
    side: Side
    quantity: int
    leverage: int
    price: Price
    margin: Sat
    maker_margin: Sat
    pool: Sat
    opening_fee: Sat = Field(description="negative: we pay it")
    funding: Funding
    account: Sat
    fees: Fees
    total: Sat = Field(description="what leaves the wallet: margin and on-chain fees")
    liquidation_price: Price | None
    maker_liquidation_price: Price | None
    break_even: Price | None = Field(description="from where on the payout is the margin")
    break_even_after_fees: Price | None
    curve: list[tuple[Price, Sat]] = Field(description="our payout by price")
    payout_steps: dict[str, Sat]
    expires_in: int
    problem: Trouble | None


class PlacedAnswer(BaseModel):
    order_id: Hex
    position: str


class CloseAnswer(BaseModel):
    """What a close now would be, in satoshis, or the problem."""

    price: Price | None
    limit: Price | None
    problem: Trouble | None
    as_of: At | None
    age: float | None


class ProposedAnswer(PlacedAnswer):
    price: Price
    limit: Price


class MakerLinkAnswer(BaseModel):
    identity: Hex
    state: str
    reason: str
    addresses: list[str] = Field(description="in the order in which they are dialled")
    address: str | None = Field(default=None, description="at which it was reached")
    agent: str | None = None
    protocols: list[str] = []
    latency: float | None = Field(default=None, description="seconds")


class PeerAnswer(BaseModel):
    identity: Hex
    dialled: bool = Field(description="by us")
    latency: float | None


class BackupAnswer(BaseModel):
    place: str
    positions: int
    size: int
    newest: At | None
    strange: dict[str, str]


class WrittenAnswer(BaseModel):
    path: str
    positions: int
    size: int


class ContradictionAnswer(BaseModel):
    event: str
    time: int = Field(description="of the event, on the oracle's calendar")
    attestation_key: Hex
    first: tuple[int, int] = Field(description="lowest and highest price that it may have said")
    second: tuple[int, int]
    sentence: str
    proof: str = Field(description="path of the proof")


class OracleAnswer(Aged):
    url: str
    scheme: str
    announcement_key: Hex
    attestation_key: Hex
    contradicted: bool
    remedy: str | None
    contradictions: list[ContradictionAnswer]


class QuotedAnswer(BaseModel):
    symbol: str
    maker_side: Side
    spread: str
    offer: OfferAnswer | None
    reason: str | None


class MakerAnswer(Aged):
    address: str
    exposure: dict[str, int]
    max_exposure: dict[str, int]
    quoted: list[QuotedAnswer]
    withdrawn: dict[str, str]


class RequestAnswer(BaseModel):
    id: Hex
    kind: Literal["order", "rollover", "close"]
    order_id: Hex
    counterparty: Hex
    symbol: str
    side: Side
    quantity: int
    leverage: int
    price: Price | None
    funding_rate: str | None
    since: At
    answer_by: At
    offer: OfferAnswer


class RequestsAnswer(BaseModel):
    number: int
    requests: list[RequestAnswer]


class PolicyAnswer(BaseModel):
    accept_orders: str
    accept_rollovers: str
    accept_closes: str
    max_quantity: dict[str, int]
    max_exposure: dict[str, int]
    changed: list[str] = Field(description="what the configuration says otherwise")


class RateAnswer(BaseModel):
    funding_rate: str | None
    since: At | None
    stale_at: At | None
    stale: bool


ANSWERS: dict[tuple[str, str], Any] = {
    ("get", "health"): HealthAnswer,
    ("get", "services/{name}"): ServiceAnswer,
    ("post", "services/{name}/repairs/{repair}"): ServiceAnswer,
    ("post", "services/{name}/{action}"): ServiceAnswer,
    ("get", "node"): NodeAnswer,
    ("get", "log"): LogAnswer,
    ("get", "peers"): list[PeerAnswer],
    ("get", "prices"): dict[str, QuoteAnswer],
    ("get", "prices/{symbol}/history"): HistoryOfPrices,
    ("get", "wallet"): WalletAnswer,
    ("post", "wallet/addresses"): AddressAnswer,
    ("get", "wallet/coins"): CoinsAnswer,
    ("get", "wallet/transactions"): StatementAnswer,
    ("post", "wallet/send"): SendAnswer,
    ("get", "positions"): list[PositionAnswer],
    ("get", "positions/history"): PageOfPositions,
    ("get", "positions/{order_id}"): PositionAnswer,
    ("post", "positions/{order_id}/force-close"): PositionAnswer,
    ("post", "positions/{order_id}/override"): PositionAnswer,
    ("get", "positions/{order_id}/close"): CloseAnswer,
    ("post", "positions/{order_id}/close"): ProposedAnswer,
    ("post", "positions/{order_id}/rollover"): PlacedAnswer,
    ("get", "makers"): list[MakerLinkAnswer],
    ("post", "makers"): MakerLinkAnswer,
    ("post", "orders"): PlacedAnswer,
    ("post", "orders/preview"): PreviewAnswer,
    ("get", "backup"): BackupAnswer,
    ("post", "backup"): WrittenAnswer,
    ("get", "oracle"): OracleAnswer,
    ("get", "maker"): MakerAnswer,
    ("get", "offers"): list[TakersOffer] | list[OfferAnswer],
    ("post", "offers"): OfferAnswer | QuotedAnswer,
    ("delete", "offers/{offer_id}"): OfferAnswer,
    ("delete", "quoted/{symbol}/{side}"): QuotedAnswer,
    ("get", "requests"): RequestsAnswer,
    ("get", "orders"): list[RequestAnswer],
    **{
        ("post", f"{kind}/{{{name}}}/{word}"): RequestAnswer
        for kind, name in (("requests", "request_id"), ("orders", "order_id"))
        for word in ("accept", "reject")
    },
    **{(method, "policy"): PolicyAnswer for method in ("get", "patch", "delete")},
    ("get", "rates"): dict[str, RateAnswer],
    **{(method, "rates/{symbol}"): RateAnswer for method in ("put", "delete")},
}
"""By method and path of a route below ``/api/v1``."""
