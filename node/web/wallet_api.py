"""The wallet in the API: what is in it, where to pay to, and sending from it. Amounts in satoshis."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from bitcoin.core import CTransaction
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from node.core import Core
from node.errors import Conflict
from node.projections import Projections
from node.sending import HIGHEST_RATE, Sender, Sending
from node.wallet.address import to_address
from node.wallet.interface import Wallet
from node.web.paging import After, Limit, page_of
from node.web.statement import Ledger
from protocols.contract.funding import OutPoint
from protocols.errors import LocalError


class SendIn(BaseModel):
    """Coins to send."""

    model_config = ConfigDict(extra="forbid", strict=True)

    address: str = Field(max_length=200, description="where to, of this node's network")
    amount_sat: Annotated[int, Field(ge=1, le=21 * 10**14)] | Literal["all"] = Field(
        description="satoshis, or `all` that is free but what the wallet keeps to raise fees with"
    )
    fee_rate: int | None = Field(default=None, ge=1, le=HIGHEST_RATE, description="sat/vB; by the chain unless given")
    preview: bool = Field(default=False, description="only say what it would take")


def wallet_router(core: Core, projections: Projections) -> APIRouter:
    router = APIRouter(prefix="/api/v1")
    ledger = Ledger(core, projections)

    @router.get("/wallet")
    async def wallet() -> dict[str, Any]:
        """The balance in satoshis, with the moment that it is of; the last known one while a part is down."""
        return projections.wallet_view(await projections.money.read())

    @router.post("/wallet/addresses", status_code=201)
    async def new_address() -> dict[str, str]:
        """A fresh address to pay to."""
        return {"address": await core.wallet.call(Wallet.new_address)}

    @router.get("/wallet/coins")
    async def coins(limit: Limit = None, after: After = None) -> dict[str, Any]:
        """Every unspent output, unconfirmed ones too; `held_by` tells what has it: a `position`, a `setup` that is
        under way, or a `payment` that the chain does not have yet. With `limit`, so many of them; `next` is the `after`
        of the page after, null on the last one."""
        known = await projections.money.read()
        found = sorted(known.value.coins, key=lambda coin: coin.outpoint)
        chosen, following = page_of(found, lambda coin: str(coin.outpoint), limit, after)
        reserved = frozenset[OutPoint]()
        if core.positions.health.up:
            with core.positions.lent() as positions:
                reserved = positions.reserved()
        holders = dict.fromkeys(core.setup.holds.all(), "setup")
        holders |= dict.fromkeys(core.setup.holds.payments(), "payment") | dict.fromkeys(reserved, "position")
        return {
            "coins": [
                {
                    "outpoint": str(coin.outpoint),
                    "txid": coin.txid[::-1].hex(),
                    "vout": coin.vout,
                    "value": coin.value,
                    "address": to_address(coin.script, core.config.network),
                    "confirmations": coin.confirmations,
                    "spendable": coin.spendable,
                    "held_by": holders.get(coin.outpoint),
                }
                for coin in chosen
            ],
            "next": following,
            **known.age(core.clock.now()),
        }

    @router.get("/wallet/transactions")
    async def transactions(
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
        before: Annotated[
            str | None, Query(pattern="^[0-9a-f]{64}$", description="the `next` of the page before")
        ] = None,
    ) -> dict[str, Any]:
        """The wallet's transactions, the newest first: unconfirmed ones, then by height; the last known ones while a
        part is down. `amount` is what each brought the wallet; `of` names the position that it belongs to, and as
        what."""
        return await ledger.page(before, limit)

    @router.post("/wallet/send")
    async def send(said: SendIn) -> dict[str, Any]:
        """Sign and broadcast, from confirmed coins that nothing holds. With an `Idempotency-Key`, asking again sends
        nothing more. What is answered with 200 is on disk, and handed in again and again until the chain has it, over
        restarts too; `waits` says why the chain server does not have it yet. Any problem: nothing was sent."""
        sender = Sender(core)
        try:
            if said.preview:
                return _sending_view(await sender.preview(said.address, said.amount_sat, said.fee_rate), said.address)
            sending, raw, waits = await sender.send(said.address, said.amount_sat, said.fee_rate)
        except LocalError as error:
            if error.code in ("insufficient_funds", "kept_for_fees"):
                raise Conflict(error.code, error.sentence) from error
            raise
        txid = CTransaction.deserialize(raw).GetTxid()[::-1].hex()
        return {**_sending_view(sending, said.address), "txid": txid, "raw": raw.hex(), "waits": waits}

    return router


def _sending_view(sending: Sending, address: str) -> dict[str, Any]:
    """`raw` may be handed in elsewhere, too."""
    return {
        "address": address,
        "amount": sending.amount,
        "fee": sending.fee,
        "fee_rate": sending.fee_rate,
        "change": sending.change,
        "inputs": [str(coin.outpoint) for coin in sending.inputs],
        "txid": None,
        "raw": None,
        "waits": None,
    }
