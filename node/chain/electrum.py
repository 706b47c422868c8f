"""The node's one client of an Electrum server, protocol 1.4 to 1.6: headers, histories, transactions, broadcasts, fees.

A server may withhold what it knows, which only a second server can tell; it cannot invent. Headers are linked and
carry work, a confirmed transaction comes with its proof in one of them, a transaction's bytes hash to its id. A server
caught at anything else loses the connection, and the next one in the list is asked.

`run_electrum` is one connection's life, from dialling to loss; beginning again is the supervisor's business.
Everything else of `node.chain` takes the `ElectrumClient` that it starts.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from decimal import ROUND_CEILING, Decimal
from typing import NoReturn

import trio
from bitcoin.core import CTransaction
from bitcoin.core.serialize import SerializationError

from node.chain.chainsync import ChainSync, Moved, Tip
from node.chain.compare import Comparison
from node.chain.headers import Headers, header_hash, merkle_root
from node.chain.latest import Changes
from node.chain.servers import ServerAddress, Servers
from node.chain.session import ServerError, ServerLost, Session, printable
from node.clock import Clock
from node.health import UNREPORTED, Report
from node.networks import Network, chain_named
from protocols.errors import WorldError

AGENT = "cfdnode"
PROTOCOL = ("1.4", "1.6")
"""The oldest and the newest version that is spoken: 1.6 brought packages."""
PACKAGES = (1, 6)
GREETING_TIMEOUT = 30.0
PING_EVERY = 60.0
PATIENCE = 180.0
"""Seconds in which a connection that works brings a sign of life: a ping's answer, or its end."""
CACHE_BYTES = 16 * 2**20
ATTEMPTS = 6
"""How often a history is asked again when a block moved underneath it."""

Notify = Callable[[str | None], object]
"""Called with a script's new status, a hash of its history or None for an empty one. Must not raise."""

# What servers answer to a transaction that they have already: bitcoind's words, old and new.
_KNOWN = (
    "txn-already-in-mempool",
    "txn-same-nonwitness-data-in-mempool",  # the peer's copy of a commit: other witness, same transaction
    "txn-already-known",
    "already in mempool",
    "already in block chain",
    "already in utxo set",
)


class BroadcastRejected(WorldError):
    """The server did not take a transaction; `reason` is its own text."""

    def __init__(self, reason: str) -> None:
        super().__init__("broadcast_rejected", f"the transaction was not accepted: {reason}")
        self.reason = reason


class NoPackages(WorldError):
    """The server's protocol is older than packages."""

    def __init__(self, server: str) -> None:
        super().__init__("no_packages", f"electrum server {server} takes no packages: its protocol is older than 1.6")


def script_hash(script: bytes) -> str:
    """How the Electrum protocol names a script: its SHA-256, reversed, in hex."""
    return hashlib.sha256(script).digest()[::-1].hex()


def _known(refusal: str) -> bool:
    return any(words in refusal.lower() for words in _KNOWN)


def _version(text: str) -> tuple[int, ...]:
    """A version of the protocol, to be compared; one that cannot be read is older than all."""
    return tuple(map(int, text.split("."))) if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){0,3}", text) else ()


def parse_transaction(raw: bytes) -> CTransaction:
    """The transaction that `raw` is, to the byte; ValueError if it is none."""
    try:
        tx = CTransaction.deserialize(raw)
    except (SerializationError, ValueError) as error:
        raise ValueError(f"not a transaction: {error}") from error
    if tx.serialize() != raw:
        raise ValueError("not a transaction in its canonical form")
    return tx


class ElectrumClient:
    """One connection. Every call raises `ServerLost` once it is over, and `WorldError` for what the server refused or
    did not answer in 30 s. Ids of transactions and blocks are in internal byte order."""

    def __init__(
        self,
        server: str,
        stream: trio.abc.Stream,
        network: Network,
        *,
        clock: Clock,
        ended: Callable[[], object],
        report: Report = UNREPORTED,
    ) -> None:
        self.server = server
        """The server's address, for people."""
        self.heard_at = clock.now()
        """When the server was last heard of, on the wall clock: the age of everything that it said."""
        self.takes_packages = False
        """Whether `broadcast_package` can be used, by the protocol agreed on."""
        self._network = network
        self._clock = clock
        self._ended = ended
        self._report = report
        self._session = Session(server, stream, notified=self._notified, heard=self._heard, ended=self._over)
        self._chain = ChainSync(self._session, network)
        self.headers = self._chain.headers
        self._subscribers: dict[str, list[Notify]] = {}
        self._transactions: OrderedDict[bytes, bytes] = OrderedDict()
        self._cached = 0
        self._proofs: dict[tuple[bytes, int], bytes] = {}

    # What the node asks.

    @property
    def tip(self) -> Tip:
        return self._chain.tip.value

    def tips(self) -> Changes[Tip]:
        """The tip now, and the newest one after each change: ``async for tip in client.tips()``."""
        return self._chain.tip.changes()

    async def newest_tip(self) -> Tip:
        """The tip after asking the server; `tip` may be one announcement behind other answers."""
        await self._chain.catch_up()
        return self.tip

    async def reach_down_to(self, other: Headers) -> None:
        """Have in `headers` the last header that this chain and `other` have in common, if `other` holds one. Raises
        `ServerLost`: one whose headers do not lead down there is left."""
        if self.headers.fork(other) is None and self.headers.height >= other.base:
            try:
                await self._chain.reach(other.base)
            except Moved:
                raise self._session.lied(f"shows no headers down to height {other.base}") from None

    async def request(self, method: str, *params: object) -> object:
        """Any method of the protocol, with its answer unchecked."""
        return await self._session.request(method, *params)

    async def history(self, script: bytes, prove: Collection[bytes] | None = None) -> list[tuple[bytes, int]]:
        """The transactions that pay to `script` or spend from it: (id, height), confirmed ones first; height 0 is the
        mempool. When this returns, the confirmed ones (of those in `prove`, if given) are proven to be in `headers` at
        their heights."""
        for attempt in range(ATTEMPTS):
            entries = await self._history(script)
            claims = [(txid, at) for txid, at in entries if at > 0 and (prove is None or txid in prove)]
            try:
                for claim in claims:
                    await self._prove(*claim)
            except Moved:
                pass
            else:
                if all(self._holds(*claim) for claim in claims):
                    return entries
            await trio.sleep(0.05 * 2**attempt)
            await self._chain.catch_up()
        raise self._session.lied(f"does not prove the history of script hash {script_hash(script)}")

    async def transaction(self, txid: bytes) -> bytes:
        """The transaction's bytes; `ServerError` if the server has none of this id. The id covers everything but the
        witness, which stands on the server's word until a signature in it is verified."""
        raw = self._transactions.get(txid)
        if raw is not None:
            self._transactions.move_to_end(txid)
            return raw
        raw = self._session.unhex(
            await self.request("blockchain.transaction.get", txid[::-1].hex(), False), "transaction"
        )
        try:
            tx = parse_transaction(raw)
        except ValueError as error:
            raise self._session.lied(f"sent something for transaction {txid[::-1].hex()} that is {error}") from None
        # 64 bytes could as well be two hashes of a Merkle tree: then a proof proves nothing.
        if tx.GetTxid() != txid or len(CTransaction(tx.vin, tx.vout, tx.nLockTime, tx.nVersion).serialize()) == 64:
            raise self._session.lied(f"sent another transaction instead of {txid[::-1].hex()}")
        self._remember(txid, raw)
        return raw

    async def unspent(self, script: bytes) -> dict[tuple[bytes, int], int]:
        """The unspent outputs with `script`, by the server's word: (transaction id, index) → satoshi. An output that a
        transaction in the mempool spends is not among them."""
        outputs: dict[tuple[bytes, int], int] = {}
        for item in self._session.items(
            await self.request("blockchain.scripthash.listunspent", script_hash(script)), "coins"
        ):
            match item:
                case {"tx_hash": str(txid), "tx_pos": int(vout), "value": int(value)}:
                    outputs[self._session.unhex(txid, "transaction id", 32)[::-1], vout] = value
                case _:
                    raise self._session.lied("sent malformed coins")
        return outputs

    async def broadcast(self, raw: bytes) -> bytes:
        """Hand in a transaction and return its id. One that the server has already is a success; a refusal is
        `BroadcastRejected`."""
        txid: bytes = parse_transaction(raw).GetTxid()
        try:
            answer = await self.request("blockchain.transaction.broadcast", raw.hex())
        except ServerError as error:
            if _known(error.message):
                return txid
            raise BroadcastRejected(error.message) from error
        if answer != txid[::-1].hex():
            raise self._session.lied(f"took transaction {txid[::-1].hex()} for {printable(str(answer), 80)}")
        return txid

    async def broadcast_package(self, raws: Sequence[bytes]) -> dict[bytes, str]:
        """Hand in a child with its unconfirmed parents, the child last, whose fees then count together. Returns why
        transactions were refused, by id; empty if the server has them all. Raises `NoPackages`, and
        `BroadcastRejected` when they are refused as a whole."""
        if not self.takes_packages:
            raise NoPackages(self.server)
        txids: list[bytes] = [parse_transaction(raw).GetTxid() for raw in raws]
        try:
            answer = await self.request("blockchain.transaction.broadcast_package", [raw.hex() for raw in raws])
        except ServerError as error:
            raise BroadcastRejected(error.message) from error
        match answer:
            case {"success": True}:
                return {}
            case {"success": False, "errors": [_, *_] as errors}:
                refused = dict(self._refusal(each) for each in errors)
                return {txid: refused[txid] for txid in txids if txid in refused and not _known(refused[txid])}
            case {"success": False}:
                raise BroadcastRejected("the server does not say why")
        raise self._session.lied("sent a malformed answer to a package")

    def _refusal(self, item: object) -> tuple[bytes, str]:
        match item:
            case {"txid": str(txid), "error": str(reason)}:
                return self._session.unhex(txid, "transaction id", 32)[::-1], printable(reason)
        raise self._session.lied("sent a malformed answer to a package")

    async def estimate_fee(self, blocks: int) -> int | None:
        """Satoshi per virtual byte, rounded up, that should confirm within `blocks`; None if the server cannot say."""
        match await self.request("blockchain.estimatefee", blocks):
            case int() | Decimal() as fee if -1 <= fee <= 21 * 10**6:  # in bitcoin per 1000 vB, -1 for unknown
                return max(1, int((fee * Decimal(10**5)).to_integral_value(ROUND_CEILING))) if fee >= 0 else None
        raise self._session.lied("sent a malformed fee")

    async def subscribe(self, name: str, notify: Notify) -> str | None:
        """From now on `notify` is called with the new status whenever the history of the script with `script_hash`
        `name` changes, until `unsubscribe`. The answer is the status now: a history fetched after this returned and
        again after each call misses nothing."""
        self._subscribers.setdefault(name, []).append(notify)
        try:
            status = await self.request("blockchain.scripthash.subscribe", name)
        except BaseException:
            self.unsubscribe(name, notify)
            raise
        if not isinstance(status, str | None):
            raise self._session.lied("sent a malformed status")
        return status

    def unsubscribe(self, name: str, notify: Notify) -> None:
        subscribers = self._subscribers.get(name, [])
        if notify in subscribers:
            subscribers.remove(notify)
            if not subscribers:
                del self._subscribers[name]
                self._session.tell("blockchain.scripthash.unsubscribe", name)

    # The connection's life.

    async def run(self, started: Callable[["ElectrumClient"], object]) -> None:
        """Greet the server, hand the client to `started`, and follow the chain until the connection is over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._session.run)
            if await self._ends_with(self._greet):
                started(self)
                nursery.start_soon(self._ends_with, self._chain.follow)
                nursery.start_soon(self._ends_with, self._stay_alive)

    def leave(self, sentence: str) -> None:
        """End the connection, for a reason."""
        self._session.end(sentence)

    def lost(self) -> ServerLost:
        """Why the connection is over."""
        return self._session.lost()

    async def _ends_with(self, work: Callable[[], Awaitable[None]]) -> bool:
        try:
            await work()
        except WorldError as error:
            self._session.end(error.sentence)
            return False
        return True

    async def _greet(self) -> None:
        with trio.move_on_after(GREETING_TIMEOUT):
            match await self.request("server.version", AGENT, PROTOCOL):
                case [_, str(version)]:
                    self.takes_packages = _version(version) >= PACKAGES
            features = await self.request("server.features")
            found = features.get("genesis_hash") if isinstance(features, dict) else None
            if found != self._network.genesis_hex:
                raise self._session.lied(f"is on {printable(chain_named(found))}, this node on {self._network.name}")
            await self._chain.catch_up()
            return
        raise self._session.lied(f"did not greet within {GREETING_TIMEOUT:g} seconds")

    async def _stay_alive(self) -> None:
        while True:
            await trio.sleep(PING_EVERY)
            await self.request("server.ping")

    def _over(self) -> None:
        self._chain.end()
        self._ended()

    def _heard(self) -> None:
        self.heard_at = self._clock.now()
        self._report.beat()
        self._report.fresh()

    def _notified(self, method: str, params: list[object]) -> None:
        match method, params:
            case "blockchain.headers.subscribe", [notice]:
                self._chain.announce(notice)
            case "blockchain.scripthash.subscribe", [str(name), str() | None as status]:
                for notify in tuple(self._subscribers.get(name, ())):
                    notify(status)
            case _:
                pass  # a notification that nobody asked for

    # Proofs.

    def _holds(self, txid: bytes, height: int) -> bool:
        proof = self._proofs.get((txid, height))
        return proof is not None and proof == self.headers.hash(height)

    async def _prove(self, txid: bytes, height: int) -> None:
        if self._holds(txid, height):
            return
        await self._chain.reach(height)
        try:
            await self.transaction(txid)  # refuses what is no transaction but a node of the tree
            answer = await self.request("blockchain.transaction.get_merkle", txid[::-1].hex(), height)
        except ServerError:
            raise Moved from None
        match answer:
            case {"merkle": list(branch), "pos": int(position)} if 0 <= position < 2 ** len(branch) <= 2**32:
                siblings = [self._session.unhex(node, "proof", 32)[::-1] for node in branch]
            case _:
                raise self._session.lied("sent a malformed proof")
        header = self.headers.header(height)
        if header is None or merkle_root(txid, siblings, position) != header[36:68]:
            raise Moved
        self._proofs[txid, height] = header_hash(header)

    async def _history(self, script: bytes) -> list[tuple[bytes, int]]:
        answer = await self.request("blockchain.scripthash.get_history", script_hash(script))
        entries: dict[bytes, int] = {}
        for item in self._session.items(answer, "history"):
            match item:
                case {"tx_hash": str(txid), "height": int(height)} if -1 <= height < 2**31:
                    entries[self._session.unhex(txid, "transaction id", 32)[::-1]] = max(height, 0)
                case _:
                    raise self._session.lied("sent a malformed history")
        return sorted(entries.items(), key=lambda entry: (entry[1] == 0, entry[1]))

    def _remember(self, txid: bytes, raw: bytes) -> None:
        self._cached += len(raw) - len(self._transactions.pop(txid, b""))
        self._transactions[txid] = raw
        while self._cached > CACHE_BYTES:
            self._cached -= len(self._transactions.popitem(last=False)[1])


async def run_electrum(
    servers: Servers | Sequence[str],
    network: Network,
    *,
    clock: Clock,
    report: Report = UNREPORTED,
    task_status: trio.TaskStatus[ElectrumClient] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Connect to the first of `servers` that answers and is on `network`, start with its client, and raise
    `ServerLost` when the connection ends; `WorldError` ``no_electrum_server``, naming each reason, if none will do.

    Hand in a `Servers` object kept over lives, so that a server that keeps failing does not keep being the first."""
    servers = servers if isinstance(servers, Servers) else Servers(servers)
    reasons = []
    for address in servers.in_turn():
        reason = await _connection(
            servers, address, network=network, clock=clock, report=report, started=task_status.started
        )
        servers.troubles[str(address)] = reason
        reasons.append(reason)
        report.beat()
    raise WorldError("no_electrum_server", "; ".join(reasons))


async def _connection(
    servers: Servers,
    address: ServerAddress,
    *,
    network: Network,
    clock: Clock,
    report: Report,
    started: Callable[[ElectrumClient], object],
) -> str:
    """One connection. Raises `ServerLost` when it ends; returns the reason if it never came to be used."""
    try:
        stream = await address.connect()
    except WorldError as error:
        return error.sentence
    handed_out = trio.Event()

    def hand_out(client: ElectrumClient) -> None:
        handed_out.set()
        started(client)

    async def compare() -> None:
        await handed_out.wait()

        async def look(other: ServerAddress) -> Headers:
            return await glance(other, network, clock, client.headers)

        comparison = Comparison(servers, address, client, look, network=network, clock=clock, report=report)
        await comparison.run()

    async with stream:
        with trio.CancelScope() as life:
            client = ElectrumClient(str(address), stream, network, clock=clock, ended=life.cancel, report=report)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(compare)
                await client.run(hand_out)
    lost = client.lost()
    if not handed_out.is_set():
        return lost.sentence
    servers.troubles.setdefault(str(address), lost.sentence)
    if servers.others(address):
        raise ServerLost(f"{lost.sentence}; {servers.next} is next")
    raise lost


async def glance(address: ServerAddress, network: Network, clock: Clock, ours: Headers) -> Headers:
    """The chain that a server shows now, by a connection of its own, down to where it parted from `ours` as far as that
    shows. Raises `WorldError` naming the server."""
    shown: Headers | None = None
    greeted = trio.Event()

    async def look() -> None:
        nonlocal shown
        await greeted.wait()
        with suppress(ServerLost):
            await client.reach_down_to(ours)
            shown = client.headers
            client.leave(f"electrum server {address} was asked for its chain only")

    async with await address.connect() as stream:
        with trio.CancelScope() as life:
            client = ElectrumClient(str(address), stream, network, clock=clock, ended=life.cancel)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look)
                await client.run(lambda _: greeted.set())
                nursery.cancel_scope.cancel()
    if shown is None:
        raise client.lost()
    return shown
