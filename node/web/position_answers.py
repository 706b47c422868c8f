"""What the API answers of a position, for its description (`answers`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from node.web.answer_types import At, Hex, Price, Sat, Side, Trouble


class TransactionAnswer(BaseModel):
    kind: str
    txid: Hex
    height: int | None


class NextAnswer(BaseModel):
    sentence: str
    at: At | None


class ValueAnswer(BaseModel):
    price: Price
    as_of: At
    pnl: Sat
    account: Sat
    payout: Sat
    fees_back: Sat
    paid: Sat


class Paid(BaseModel):
    kind: str
    txid: Hex
    maker_payout: Sat
    taker_payout: Sat
    payout: Sat
    final: bool
    height: int | None


class TimelocksAnswer(BaseModel):
    liquidation: int
    settlement: int
    refund: int


class TermsAnswer(BaseModel):
    """All that the payouts follow from."""

    symbol: str
    quantity: int
    price: Price
    maker_side: Side
    maker_leverage: int
    taker_leverage: int
    maker_account: Sat
    fee_rate: int = Field(description="sat/vB")
    timelocks: TimelocksAnswer = Field(description="blocks behind the commit")
    reference: Price
    tolerance_near: str = Field(description="largest step of the payout near the reference, as a part of the pool")
    tolerance_far: str


class BroadcastAnswer(BaseModel):
    at: At
    refused: str | None = Field(description="why no server takes it; null: one has it")


class ContractAnswer(BaseModel):
    """The contract that stands."""

    index: int = Field(description="rollovers before it")
    expiry: int = Field(description="on the oracle's calendar, seconds since 1970")
    event: str = Field(description="the oracle's, that settles it")
    oracle: str = Field(description="its scheme")
    cets: int
    terms: TermsAnswer
    lock_txid: Hex
    lock_height: int | None
    commit_txid: Hex
    commit_height: int | None
    commit_reason: str | None = Field(description="why we publish the commit; null: we do not")
    broadcasts: dict[Literal["lock", "commit", "close", "spend"], BroadcastAnswer]


class EstimateAnswer(BaseModel):
    """What the taker is paid for a rollover now (negative: pays)."""

    funding_rate: Price
    hours: int
    funding: Sat


class RolloverAnswer(BaseModel):
    """The last names are a taker's alone, which decides when."""

    contracts: int
    funding_rate: Price | None
    under_way: int | None = Field(description="index of the contract that a rollover under way would make")
    own_revoked: int = Field(description="contracts whose commit we have revoked")
    peer_revoked: int
    refusal: Trouble | None
    from_: int | None = Field(default=None, alias="from", description="on the oracle's calendar")
    until: int | None = Field(default=None, description="on the oracle's calendar")
    next_try: At | None = None
    reason: str | None = Field(default=None, description="why it is not tried now")
    estimate: EstimateAnswer | None = None


class ClosingAnswer(BaseModel):
    """A close that was proposed, and how far it came."""

    stage: Literal["asked", "refused", "half signed", "signed"]
    price: Price
    limit: Price | None
    pays: Sat
    commit_at: At | None = Field(description="when the commit goes out if nothing has spent the lock until then")
    signed_at: At | None
    txid: Hex | None
    refusal: Trouble | None


class SettlementAnswer(BaseModel):
    """What the contract says for the attested price."""

    event: str
    price: int | None
    prices: tuple[int, int] = Field(description="the lowest and the highest that pay the same")
    maker_payout: Sat
    taker_payout: Sat
    liquidated: Side | None
    cet_txid: Hex
    spend_txid: Hex | None


class PositionBase(BaseModel):
    order_id: Hex
    state: str
    placed_at: At
    changed_at: At
    role: Literal["maker", "taker"]
    counterparty: Hex
    symbol: str
    side: Side
    quantity: int
    price: Price
    taker_leverage: int
    margin: Sat | None = None
    pool: Sat | None = None
    account: Sat | None = None
    liquidation_price: int | None = None
    refusal: Trouble | None
    contract: ContractAnswer | None
    rollover: RolloverAnswer | None
    closing: ClosingAnswer | None
    settlement: SettlementAnswer | None
    paid: Paid | None
    recovered: bool = Field(description="its record may be older than what was signed: it publishes nothing by itself")
    overridden: bool = Field(default=False, description="the user has its commit published all the same")


class PositionAnswer(PositionBase):
    next: NextAnswer | None = Field(default=None, description="what happens next; not of an archived one")
    transactions: list[TransactionAnswer] = []
    value: ValueAnswer | None = Field(default=None, description="what closing at the last quote would bring")
    oracle_contradicted: bool | None = None
    as_of: At | None = Field(default=None, description="of when this is; the same and what follows: not in the feed")
    age: float | None = None
    stale: bool | None = None
    reason: str | None = Field(default=None, description="why it is the last known one")


class ArchivedAnswer(PositionBase):
    archived_at: At


class PageOfPositions(BaseModel):
    positions: list[ArchivedAnswer]
    next: int | None = Field(description="`before` of the next page")
