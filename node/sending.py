"""Coins of the wallet sent to an address: which, at what fee, signed and handed in.

Amounts are satoshis, fee rates sat/vB. Spent are confirmed coins that no position and no setup has; what the wallet
keeps to raise the fees of positions stays in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import structlog
import trio
from attrs import frozen

from node.chain.electrum import BroadcastRejected, ElectrumClient
from node.core import Core
from node.errors import FieldError
from node.wallet.address import to_script
from node.wallet.interface import Wallet
from node.wallet.selection import InsufficientFunds
from protocols.contract.funding import FundingInput, input_weight
from protocols.contract.scripts import p2tr
from protocols.contract.sighash import TxOut
from protocols.contract.transactions import completed, txid, unsigned
from protocols.errors import LocalError, WorldError

DUST = 546
"""Satoshis; the most that any kind of output needs to be relayed."""
HIGHEST_RATE = 1_000
MOST_INPUTS = 200
FRAME_WEIGHT = 42
"""Version, marker, counts, lock time."""
VERSION, SEQUENCE = 2, 0xFFFFFFFD
"""It may be replaced by one that pays more."""
SYNC_WITHIN = 30.0
_CHANGE = p2tr(bytes(32))

log = structlog.get_logger("wallet")


@frozen
class Sending:
    """What is to be sent: to `amount` and `fee` and `change` the inputs add up."""

    inputs: tuple[FundingInput, ...]
    script: bytes
    amount: int
    fee: int
    fee_rate: int
    change: int
    """0: there is no change output."""


def choose(
    coins: Sequence[FundingInput], script: bytes, amount: int | Literal["all"], fee_rate: int, kept: int = 0
) -> Sending:
    """What sending `amount` from these coins takes; with ``all``, whatever they hold but `kept`, which comes back.

    The largest coins first. Raises `InsufficientFunds`, FieldError for an amount that nobody relays, LocalError
    (kept_for_fees) if less than `kept` would be left.
    """
    if amount != "all" and amount < DUST:
        raise FieldError("amount_sat", f"amount_sat: {amount} is too little to be relayed, allowed is {DUST} or more")
    total = sum(coin.value for coin in coins)
    if amount == "all":
        chosen = sorted(coins, key=lambda coin: -coin.value)[:MOST_INPUTS]
        rest = total - sum(coin.value for coin in chosen)  # what stays in the wallet anyway
        change = max(kept - rest, DUST) if kept > rest else 0
        fee = _fee(fee_rate, chosen, [script, _CHANGE] if change else [script])
        sent = total - rest - fee - change
        if sent < DUST:
            raise InsufficientFunds(total, fee + change + rest + DUST)
        return Sending(tuple(chosen), script, sent, fee, fee_rate, change)
    chosen = []
    for coin in sorted(coins, key=lambda coin: -coin.value)[:MOST_INPUTS]:
        chosen.append(coin)
        have, fee = sum(each.value for each in chosen), _fee(fee_rate, chosen, [script])
        if have < amount + fee:
            continue
        with_change = _fee(fee_rate, chosen, [script, _CHANGE])
        change = have - amount - with_change
        if change < DUST:
            change, with_change = 0, have - amount
        if total - amount - with_change < kept:
            raise LocalError(
                "kept_for_fees",
                f"the wallet would have {total - amount - with_change} sat left, and keeps {kept} sat to raise the fees"
                " of its positions with",
            )
        return Sending(tuple(chosen), script, amount, with_change, fee_rate, change)
    raise InsufficientFunds(total, amount + _fee(fee_rate, chosen, [script]))


def _fee(rate: int, inputs: Sequence[FundingInput], scripts: Sequence[bytes]) -> int:
    weight = FRAME_WEIGHT + sum(input_weight(coin.script) for coin in inputs)
    return -(-rate * (weight + sum(4 * (9 + len(script)) for script in scripts)) // 4)


@frozen
class Sender:
    """Sends from the wallet of a node."""

    core: Core

    async def preview(self, address: str, amount: int | Literal["all"], fee_rate: int | None) -> Sending:
        """What `send` would do now. Raises LocalError naming the field, WorldError when a service is away."""
        script = self._script(address)
        rate = await self.core.setup.fee_rate() if fee_rate is None else fee_rate
        coins = await self.core.wallet.call(Wallet.coins)
        with self.core.positions.lent() as positions:
            held = positions.reserved() | self.core.setup.holds.all()
        free = [coin.input for coin in coins if coin.spendable and coin.outpoint not in held]
        return choose(free, script, amount, rate, self.core.setup.kept_for_fees())

    async def send(
        self, address: str, amount: int | Literal["all"], fee_rate: int | None
    ) -> tuple[Sending, bytes, str | None]:
        """Sign, write down, hand in; returns what is sent, its transaction, and why the chain server does not have it
        yet (None if it has): then it is handed in again by itself (`node.payments`). The chain server's refusal is a
        WorldError (broadcast_rejected): as with every error, nothing was sent."""
        setup, payments = self.core.setup, self.core.payments
        with self.core.chain.lent():
            pass
        async with setup.holds.lock:
            sending = await self.preview(address, amount, fee_rate)
            holder = setup.entropy(16)
            setup.holds.hold(holder, frozenset(coin.outpoint for coin in sending.inputs))
        try:
            raw = await self._signed(sending)
            paid = await payments.keep(raw, sending.inputs[0].script)
        finally:
            setup.holds.release(holder)  # the payment has them now, or nobody
        waits: str | None = None
        try:
            await self.core.chain.call(ElectrumClient.broadcast, raw)
        except BroadcastRejected:
            await payments.drop(paid)
            raise
        except WorldError as error:
            waits = error.sentence
            log.warning("sent as soon as the chain server is back", reason=waits)
        else:
            log.info("sent", amount=sending.amount, fee=sending.fee, change=sending.change)
            await self._seen()
        return sending, raw, waits

    async def _seen(self) -> None:
        """Have the wallet look, for what is shown next."""
        try:
            with trio.move_on_after(SYNC_WITHIN):
                await self.core.wallet.call(Wallet.sync)
        except WorldError as error:
            log.warning("the wallet does not see what was sent yet", reason=error.sentence)

    async def _signed(self, sending: Sending) -> bytes:
        outputs = [TxOut(sending.amount, sending.script)]
        if sending.change:
            outputs.append(TxOut(sending.change, await self.core.wallet.call(Wallet.new_script)))
        tx = unsigned(VERSION, [(coin.txid, coin.vout, SEQUENCE) for coin in sending.inputs], outputs)
        spent = [TxOut(coin.value, coin.script) for coin in sending.inputs]
        witnesses = await self.core.wallet.call(Wallet.sign, tx.serialize(), spent)
        assert set(witnesses) == set(range(len(sending.inputs))), "all inputs are ours"
        raw = completed(tx, [witnesses[index] for index in range(len(sending.inputs))])
        log.info("sending", txid=txid(tx)[::-1].hex())
        return raw

    def _script(self, address: str) -> bytes:
        try:
            return to_script(address, self.core.config.network)
        except LocalError as error:
            raise FieldError("address", error.sentence) from error
