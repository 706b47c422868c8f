"""What became of the scripts that somebody follows: their transactions, in the mempool or at a height.

A `Monitor` outlives connections. `run` is its life on one of them; while there is none, followers wait, and what they
have is as old as it is. Every script is asked for once, however many follow it.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import NoReturn, Self

import structlog
import trio
from attrs import Factory, define, field, frozen
from bitcoin.core import CTransaction

from node.chain.electrum import ElectrumClient, parse_transaction, script_hash
from node.chain.session import ServerLost
from node.health import UNREPORTED, Beating, Report
from protocols.contract.scripts import ANCHOR_SCRIPT
from protocols.errors import WorldError

RETRY = 10.0
"""Seconds after which a history that the server refused is asked for again."""

_log = structlog.get_logger(__name__)


@frozen
class Seen:
    """A transaction that the chain server showed. The witness is the server's word; all else hashes to the id, and a
    height is proven."""

    txid: bytes
    raw: bytes = field(repr=False)
    height: int | None = None
    """None in the mempool."""
    block_hash: bytes | None = None

    @cached_property
    def tx(self) -> CTransaction:
        return parse_transaction(self.raw)


@frozen
class View:
    """Everything about the followed scripts at one tip. A reorganisation shows as just another view."""

    tip_height: int
    tip_hash: bytes
    transactions: Mapping[bytes, Seen]

    def spender(self, txid: bytes, vout: int) -> Seen | None:
        """The transaction that spends this output, the confirmed one if the server shows two."""
        return next(iter(self.spenders(txid, vout)), None)

    def spenders(self, txid: bytes, vout: int) -> list[Seen]:
        """All transactions that spend this output, a confirmed one first: a server may show several."""
        spenders = [
            seen
            for seen in self.transactions.values()
            if any(spent.prevout.hash == txid and spent.prevout.n == vout for spent in seen.tx.vin)
        ]
        return sorted(spenders, key=lambda seen: seen.height is None)

    def confirmations(self, txid: bytes) -> int:
        """1 in the tip; 0 in the mempool or nowhere."""
        seen = self.transactions.get(txid)
        return 0 if seen is None or seen.height is None else self.tip_height - seen.height + 1


class Monitor:
    """Follows scripts on whatever connection there is."""

    def __init__(self) -> None:
        self._scripts: dict[bytes, _Script] = {}
        self._client: ElectrumClient | None = None
        self._nursery: trio.Nursery | None = None

    def follow(self, scripts: Iterable[bytes]) -> "Following":
        """A view now and after every change of a script's history or of the tip, the newest only::

            with monitor.follow([lock_script, commit_script]) as views:
                async for view in views: ...

        Never the anchor's script, which the whole world shares."""
        following = Following(self, tuple(sorted(set(scripts))))  # in an order that can be repeated
        if ANCHOR_SCRIPT in following.scripts:
            raise ValueError("the anchor's script is everybody's: nobody can follow it")
        for script in following.scripts:
            state = self._scripts.setdefault(script, _Script(script, self._refresh))
            state.followings.append(following)
            self._refresh(state)
        return following

    async def run(
        self,
        client: ElectrumClient,
        *,
        report: Report = UNREPORTED,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Follow on this connection until it ends: `ServerLost`."""
        async with trio.open_nursery() as nursery:
            self._client, self._nursery = client, nursery
            try:
                for state in self._scripts.values():
                    state.subscribed, state.stale = False, True
                    self._refresh(state)
                task_status.started()
                async for _ in Beating(report, client.tips()):
                    self._look_again(client)
            except ServerLost:
                nursery.cancel_scope.cancel()
            finally:
                self._client = self._nursery = None
        raise client.lost()

    def _look_again(self, client: ElectrumClient) -> None:
        """After a new tip: whatever is not in our headers any more must be asked for, and everybody has a new view."""
        for state in self._scripts.values():
            if state.seen is not None and not _in_chain(client, state.seen):
                state.stale = True
                self._refresh(state)
            state.ring()

    def _refresh(self, state: "_Script") -> None:
        if self._client is not None and self._nursery is not None and state.stale and not state.asking:
            state.asking = True
            self._nursery.start_soon(self._ask, self._client, state)

    async def _ask(self, client: ElectrumClient, state: "_Script") -> None:
        """Subscribe first, then fetch, and again for every change meanwhile: nothing falls in between."""
        try:
            while state.stale and state.followings:
                state.stale = False
                try:
                    if not state.subscribed:
                        await client.subscribe(script_hash(state.script), state.changed)
                        state.subscribed = True
                    state.seen = await self._fetch(client, state.script)
                    state.stale = state.stale or not _in_chain(client, state.seen)
                except ServerLost:
                    return
                except WorldError as error:
                    _log.warning("history_refused", script=state.script.hex(), error=str(error))
                    state.stale = True
                    await trio.sleep(RETRY)
        finally:
            state.asking = False
        state.ring()

    async def _fetch(self, client: ElectrumClient, script: bytes) -> dict[bytes, Seen]:
        history = await client.history(script)
        blocks = {height: client.headers.hash(height) for _, height in history if height}
        return {
            txid: Seen(txid, await client.transaction(txid), height or None, blocks.get(height))
            for txid, height in history
        }

    def _view(self, scripts: Iterable[bytes]) -> View | None:
        """None while anything is still being asked."""
        if self._client is None:
            return None
        transactions: dict[bytes, Seen] = {}
        for script in scripts:
            state = self._scripts[script]
            if state.seen is None or state.stale or state.asking or not _in_chain(self._client, state.seen):
                return None
            transactions |= state.seen
        tip = self._client.tip
        return View(tip.height, tip.hash, transactions)

    def _leave(self, following: "Following") -> None:
        for script in following.scripts:
            state = self._scripts[script]
            state.followings.remove(following)
            if not state.followings:
                del self._scripts[script]
                if self._client is not None:
                    self._client.unsubscribe(script_hash(script), state.changed)


@define(eq=False)
class _Script:
    script: bytes
    refresh: "Callable[[_Script], None]"
    followings: "list[Following]" = Factory(list)
    seen: dict[bytes, Seen] | None = None
    """None until a server told."""
    subscribed: bool = False
    stale: bool = True
    asking: bool = False

    def changed(self, _: str | None) -> None:
        self.stale = True
        self.refresh(self)

    def ring(self) -> None:
        for following in self.followings:
            following.ring()


class Following:
    """The views of some scripts, in a ``with`` block."""

    def __init__(self, monitor: Monitor, scripts: tuple[bytes, ...]) -> None:
        self.scripts = scripts
        self._monitor = monitor
        self._last: View | None = None
        self._bell = trio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._monitor._leave(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> View:
        await trio.lowlevel.checkpoint()
        while (view := self._monitor._view(self.scripts)) is None or view == self._last:
            self._bell = trio.Event()
            await self._bell.wait()
        self._last = view
        return view

    def ring(self) -> None:
        self._bell.set()


def _in_chain(client: ElectrumClient, seen: Mapping[bytes, Seen]) -> bool:
    """Whether every block that a transaction was seen in is still one of ours."""
    return all(one.height is None or client.headers.hash(one.height) == one.block_hash for one in seen.values())
