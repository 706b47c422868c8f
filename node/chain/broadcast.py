"""Transactions that must reach the chain, handed in again and again until nobody wants it any more."""

from collections.abc import Mapping
from typing import NoReturn

import structlog
import trio
from attrs import frozen

from node.chain.electrum import BroadcastRejected, ElectrumClient
from node.chain.latest import Latest
from node.chain.session import ServerLost
from node.clock import Clock
from node.health import UNREPORTED, Report
from protocols.errors import WorldError

EVERY = 30.0
"""Seconds after which everything is handed in again, new block or not."""

_log = structlog.get_logger(__name__)


@frozen
class Attempt:
    """What came of handing in a transaction the last time. `reason` is None when a server has it."""

    at: float
    """Wall clock, seconds since 1970."""
    reason: str | None

    @property
    def accepted(self) -> bool:
        return self.reason is None


class Broadcaster:
    """Keeps transactions per owner. It outlives connections; `run` is its life on one of them.

    A refusal stops nothing: a CET is refused until its lock ran out, a commit until the lock confirmed, and both are
    right to be handed in again. Who keeps a transaction says when it is no longer needed."""

    def __init__(self, clock: Clock) -> None:
        self.wanted = Latest(0)
        """Counts changes of what is kept."""
        self._clock = clock
        self._kept: dict[bytes, Mapping[bytes, bytes]] = {}
        self._packages: set[bytes] = set()
        """Owners whose transactions go out together."""
        self._status: dict[bytes, Attempt] = {}
        self._due: set[bytes] = set()
        self._bell = trio.Event()

    def keep(self, owner: bytes, transactions: Mapping[bytes, bytes], *, package: bool = False) -> None:
        """From now on `owner` wants these transactions (id → bytes, parents before children) and no others; an empty
        mapping ends it. New ones go out at once; as a package, if they are one (a child and its parents) and the
        server takes packages, else one by one."""
        before = self._kept.pop(owner, {})
        self._packages.discard(owner)
        if transactions:
            self._kept[owner] = dict(transactions)
            if package:
                self._packages.add(owner)
        if transactions != before:
            self.wanted.set(self.wanted.value + 1)
        if transactions.keys() - before.keys():
            self._due.add(owner)
            self._bell.set()
        for txid in before.keys() - transactions.keys():
            if not any(txid in kept for kept in self._kept.values()):
                self._status.pop(txid, None)

    def kept(self, owner: bytes) -> Mapping[bytes, bytes]:
        """What `owner` wants broadcast now."""
        return dict(self._kept.get(owner, {}))

    def status(self) -> Mapping[bytes, Attempt]:
        """The last attempt of every transaction that is kept and was tried."""
        return dict(self._status)

    async def run(
        self,
        client: ElectrumClient,
        *,
        report: Report = UNREPORTED,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Hand everything in now, on every new tip and every 30 s, until the connection ends: `ServerLost`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hand_in_due, client)
            task_status.started()
            tips = client.tips()
            try:
                while True:
                    with trio.move_on_after(EVERY):
                        await anext(tips)
                    report.beat()
                    self._due.update(self._kept)
                    self._bell.set()
            except ServerLost:
                nursery.cancel_scope.cancel()
        raise client.lost()

    async def _hand_in_due(self, client: ElectrumClient) -> None:
        """One task per owner that is due, so that a slow answer holds up nobody else's transactions."""
        busy: set[bytes] = set()

        async def hand_in(owner: bytes) -> None:
            try:
                await self._hand_in(client, owner)
            finally:
                busy.discard(owner)
                self._bell.set()

        async with trio.open_nursery() as nursery:
            while True:
                for owner in sorted(self._due - busy):  # so that a run can be repeated
                    self._due.discard(owner)
                    busy.add(owner)
                    nursery.start_soon(hand_in, owner)
                await self._bell.wait()
                self._bell = trio.Event()

    async def _hand_in(self, client: ElectrumClient, owner: bytes) -> None:
        kept = self._kept.get(owner, {})
        if owner in self._packages and client.takes_packages:
            refused: Mapping[bytes, str] = {}
            try:
                refused = await client.broadcast_package(list(kept.values()))
            except ServerLost:
                return
            except WorldError as error:
                refused = dict.fromkeys(kept, _reason(error))
            for txid in kept:
                self._note(owner, txid, refused.get(txid))
            return
        for txid, raw in kept.items():
            if txid not in self._kept.get(owner, {}):
                continue  # not wanted any more since we began
            reason: str | None = None
            try:
                await client.broadcast(raw)
            except ServerLost:
                return
            except WorldError as error:
                reason = _reason(error)
            self._note(owner, txid, reason)

    def _note(self, owner: bytes, txid: bytes, reason: str | None) -> None:
        if txid not in self._kept.get(owner, {}):
            return
        before = self._status.get(txid)
        self._status[txid] = Attempt(self._clock.now(), reason)
        if before is None or before.reason != reason:
            _log.info("transaction_handed_in", txid=txid[::-1].hex(), accepted=reason is None, reason=reason)


def _reason(error: WorldError) -> str:
    return error.reason if isinstance(error, BroadcastRejected) else error.sentence
