"""Payments out of the wallet until the chain has them: on disk before they leave, and handed in again and again.

A mempool may drop a payment, and a chain server go away with it; but its receiver counts on it, and its coins must not
look free after the next start.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import structlog
import trio
from attrs import define, frozen
from bitcoin.core import CTransaction
from bitcoin.core.serialize import SerializationError

from node.chain.broadcast import Broadcaster
from node.chain.electrum import ElectrumClient
from node.clock import Clock
from node.files import write_private
from node.health import UNREPORTED, Report
from node.supervision import Service
from node.wallet.holds import CoinHolds
from protocols.contract.transactions import outpoints
from protocols.errors import WorldError

SETTLED = 6
"""Confirmations after which a payment is done."""
GIVEN_UP = 14 * 24 * 3600.0
"""Seconds after which one that the chain server refuses is given up: something else has spent its coins."""
LOOK_EVERY = 60.0
_SUFFIX = ".json"
_REMEDY = "see to the data directory's disk; it is tried again by itself"

_log = structlog.get_logger("wallet")


@frozen
class _Payment:
    raw: bytes
    script: bytes
    """Of its first coin, ours: in its history the payment shows."""
    since: float
    """Wall clock, seconds since 1970."""

    @property
    def tx(self) -> CTransaction:
        return CTransaction.deserialize(self.raw)

    @property
    def txid(self) -> bytes:
        return bytes(self.tx.GetTxid())


@define(eq=False)
class Payments:
    """Outlives the lives of its service, as what the broadcaster keeps for it does."""

    folder: Path
    chain: Service[ElectrumClient]
    broadcaster: Broadcaster
    holds: CoinHolds
    clock: Clock
    _kept: dict[bytes, _Payment] | None = None
    """By id; None until they were read."""

    async def keep(self, raw: bytes, script: bytes) -> bytes:
        """Write a signed payment down, hold its coins, hand it in from now on; returns its id. `script` is that of its
        first coin. Raises WorldError (payments_unreadable, disk): then nothing has left."""
        if self._kept is None:
            raise WorldError("payments_unreadable", "the payments that are under way are not read yet; ask again")
        payment = _Payment(raw, script, self.clock.now())
        said = {"raw": raw.hex(), "script": script.hex(), "since": payment.since}
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(write_private, self._file(payment.txid), json.dumps(said))
            except OSError as error:
                raise WorldError("disk", f"{self._file(payment.txid)}: {error.strerror}; nothing was sent") from error
        self._begin(payment)
        return payment.txid

    async def drop(self, txid: bytes) -> None:
        """It is done, or nobody takes it: its coins are free unless the chain says otherwise."""
        assert self._kept is not None
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(partial(self._file(txid).unlink, missing_ok=True))
            except OSError as error:
                raise WorldError("disk", f"{self._file(txid)}: {error.strerror}") from error
        self._kept.pop(txid, None)
        self.broadcaster.keep(_owner(txid), {})
        self.holds.paid(txid)

    async def run(
        self, *, report: Report = UNREPORTED, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Read what earlier lives paid, then see to it that the chain has it."""
        damaged: list[str] = []
        if self._kept is None:
            try:
                found, damaged = await trio.to_thread.run_sync(self._read)
            except OSError as error:
                raise WorldError("disk", f"{self.folder}: {error.strerror}") from error
            self._kept = {}
            for payment in found:
                self._begin(payment)
        task_status.started()
        if damaged:
            report.degraded(f"payments cannot be read: {'; '.join(damaged)}", "look at the files, and move them away")
        while True:
            for payment in list(self._kept.values()):
                report.beat()
                await self._look(payment, report)
            report.beat()
            await trio.sleep(min(LOOK_EVERY, report.beat_every))

    def _begin(self, payment: _Payment) -> None:
        assert self._kept is not None
        self._kept[payment.txid] = payment
        self.holds.pay(payment.txid, frozenset(outpoints(payment.tx)))
        self.broadcaster.keep(_owner(payment.txid), {payment.txid: payment.raw})

    async def _look(self, payment: _Payment, report: Report) -> None:
        if not self.chain.health.up:
            return
        try:
            history = dict(await self.chain.call(ElectrumClient.history, payment.script, {payment.txid}))
            with self.chain.lent() as client:
                depth = client.tip.height - history.get(payment.txid, 0) + 1
        except WorldError as error:
            _log.info("a payment cannot be looked for", txid=payment.txid[::-1].hex(), reason=error.sentence)
            return
        attempt = self.broadcaster.status().get(payment.txid)
        settled = history.get(payment.txid, 0) > 0 and depth >= SETTLED
        refused = attempt is not None and not attempt.accepted and payment.txid not in history
        given_up = refused and self.clock.now() - payment.since > GIVEN_UP
        if given_up and attempt is not None:
            _log.warning("a payment is given up", txid=payment.txid[::-1].hex(), reason=attempt.reason)
        if settled or given_up:
            try:
                await self.drop(payment.txid)
            except WorldError as error:
                report.degraded(error.sentence, _REMEDY)

    def _file(self, txid: bytes) -> Path:
        return self.folder / f"{txid[::-1].hex()}{_SUFFIX}"

    def _read(self) -> tuple[list[_Payment], list[str]]:
        """Those on disk, and what is wrong with files that are none."""
        found, damaged = [], []
        for name in sorted(os.listdir(self.folder)) if self.folder.exists() else []:
            if not name.endswith(_SUFFIX):
                continue  # one that was never written whole
            try:
                said = json.loads((self.folder / name).read_text("ascii"))
                payment = _Payment(bytes.fromhex(said["raw"]), bytes.fromhex(said["script"]), float(said["since"]))
                if self._file(payment.txid).name != name:
                    raise ValueError("it holds another transaction")
            except (ValueError, KeyError, TypeError, SerializationError) as error:
                damaged.append(f"{self.folder / name}: {type(error).__name__}: {error}")
            else:
                found.append(payment)
        return found, damaged


def _owner(txid: bytes) -> bytes:
    """As the broadcaster knows it."""
    return b"payment " + txid
