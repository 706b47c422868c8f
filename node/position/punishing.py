"""Takes everything in a revoked commit, at once, and for more and more of it as its lock nears (money safety rule 6).

The cheat can claim when the lock of its CETs is over; until then what is in the commit is ours alone to spend. It is
one input of ours to one output of ours, so a higher fee is simply another signature.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio
from attrs import field, frozen
from bitcoin.core import CTransaction

from node.chain.electrum import ElectrumClient
from node.health import UNREPORTED, Report, wait_beating
from node.position.book import Positions
from node.position.closing import punish
from node.position.due import spends
from node.position.state import Position
from node.supervision import Service
from protocols.contract import signing
from protocols.contract.funding import COMMIT_VSIZE, PUNISH_BASE_VSIZE, output_vsize
from protocols.contract.numbers import DUST
from protocols.contract.transactions import txid
from protocols.errors import LocalError, WorldError

LOOK_EVERY = 30.0
"""Seconds between two looks when nothing else asks for one."""
HIGHEST_RATE = 10_000
"""Sat/vB; what pays more is refused by the default of Bitcoin Core's `sendrawtransaction`."""

_log = structlog.get_logger(__name__)


def punish_fee(position: Position, estimate: int, tip: int) -> int:
    """What punishing pays at this tip, in satoshis: the estimate (sat/vB) until half of the lock is over, and from
    there on a share of all that is at stake, which is the whole of it when the lock is over. While the commit is in no
    block, it also pays what that lacks."""
    transactions, size = position.transactions(), _size(position)
    lock = transactions.plan.terms.timelocks.liquidation
    most = transactions.commit_value - DUST
    if position.commit is None:
        passed, lacking = 0, max(estimate - transactions.plan.terms.fee_rate, 0) * COMMIT_VSIZE
    else:
        passed, lacking = tip - position.commit.height + 1, 0
    share = min(max(2 * passed - lock, 0), lock)
    return min(max(estimate * size + lacking, most * share // lock), most, HIGHEST_RATE * size)


def fee_to_sign(position: Position, estimate: int, tip: int) -> int | None:
    """Of the punishment that is to be signed now, in satoshis; None if the one on record will do."""
    fee, known, seen = punish_fee(position, estimate, tip), position.punish, position.commit_seen
    if known is None or seen is None or not spends(known.raw, seen.txid):  # of several revoked the latest is out
        return fee
    # a replacement pays for its own relay besides (BIP125, rule 4)
    return fee if fee >= _fee(position, known.raw) + _size(position) else None


@frozen
class Punisher:
    """A service: looks at every new tip, at every change of a position, and every 30 s."""

    positions: Service[Positions]
    chain: Service[ElectrumClient]
    fee_rate: Callable[[], Awaitable[int]]
    """Sat/vB."""
    seed: bytes = field(repr=False)
    """64 bytes."""
    report: Report = UNREPORTED

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.positions.lent() as positions, self.chain.lent() as client:
            bell = trio.Event()

            async def ring_at_tips() -> None:
                async for _ in client.tips():
                    bell.set()

            async def ring_at_changes() -> None:
                async for _ in positions.changed.changes():
                    bell.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ring_at_tips)
                nursery.start_soon(ring_at_changes)
                task_status.started()
                while True:
                    bell = trio.Event()
                    if problems := await self._look(positions, client.tip.height):
                        self.report.degraded("; ".join(problems))
                    else:
                        self.report.recovered()
                    await wait_beating(bell, self.report, LOOK_EVERY)

    async def _look(self, positions: Positions, tip: int) -> list[str]:
        problems: list[str] = []
        for position in positions.all():
            if position.cheated and not position.ended:
                self.report.beat()
                try:
                    await self._punish(positions, position, tip)
                except (LocalError, WorldError) as error:
                    problems.append(f"position {position.id.hex()}: {error.sentence}")
        return problems

    async def _punish(self, positions: Positions, position: Position, tip: int) -> None:
        fee = fee_to_sign(position, await self.fee_rate(), tip)
        if fee is None:
            return
        raw = punishing(position, self.seed, fee)
        identifier = txid(CTransaction.deserialize(raw))
        await positions.execute(position.id, punish(identifier, raw))
        _log.warning("a revoked commit is punished", order=position.id.hex(), punish=identifier[::-1].hex(), fee=fee)


def punishing(position: Position, seed: bytes, fee: int) -> bytes:
    """The complete transaction that takes the revoked commit that is out, for `fee` satoshis.

    Raises `LocalError` when the commit's witness does not tell the peer's secret.
    """
    seen = position.commit_seen
    assert seen is not None, "there is nothing to punish"
    attempt, plan, keys = position.attempts[seen.index], position.plan(), position.keys(seen.index, seed)
    own = attempt.own_commit_signature or signing.sign_commit(plan, position.role, keys.fund)
    try:
        secret = signing.recover_publish_secret(plan, position.role, seen.raw, own)
    except ValueError as error:
        raise LocalError("no_secret", f"the revoked commit tells no secret: {error}") from None
    if secret is None:
        raise LocalError("no_secret", "the revoked commit was not published with our signature for the peer")
    return signing.punish(
        plan,
        position.role,
        keys.fund,
        publish_secret=secret,
        revoke_secret=position.peer_secrets[seen.index],
        script=plan.party(position.role).payout_script,
        fee=fee,
    )


def _size(position: Position) -> int:
    return PUNISH_BASE_VSIZE + output_vsize(position.plan().party(position.role).payout_script)


def _fee(position: Position, raw: bytes) -> int:
    fee: int = position.transactions().commit_value - CTransaction.deserialize(raw).vout[0].nValue
    return fee
