"""What the Electrum server answers: the requests of protocol 1.4 and 1.6 that need no connection, as plain functions.

Shapes are those of https://electrumx.readthedocs.io/en/latest/protocol-methods.html. `RpcError` is the only
error a caller can cause.
"""

import inspect
import struct
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

from bitcoin.core import CTransaction, Hash

from node.regtest import policy
from node.regtest.consensus import GENESIS, Chain
from node.regtest.index import Index
from node.regtest.mempool import Mempool
from node.regtest.policy import Rejected

Json = object
"""Whatever `json.dumps` takes."""

SOFTWARE = "cfdnode regtest"
PROTOCOL_MIN, PROTOCOL_MAX = (1, 4), (1, 6)
PACKAGES = (1, 6)
"""From this version on headers come as a list, and packages are taken."""
MAX_HEADERS = 2016
MAX_HISTORY = 20_000
MAX_PACKAGE = 25

BAD_REQUEST, DAEMON_ERROR = 1, 2
UNKNOWN_METHOD, BAD_PARAMETERS = -32601, -32602


class RpcError(Exception):
    """Answered as a JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def shown(hash_: bytes) -> str:
    """A transaction id or block hash as people and JSON see it."""
    return hash_[::-1].hex()


class Methods:
    """Every method that depends on the chain and the mempool alone, in `table` by its name."""

    def __init__(self, chain: Chain, index: Index, mempool: Mempool, *, fee_rate: int = 2) -> None:
        self._chain = chain
        self._index = index
        self._mempool = mempool
        self.fee_rate = fee_rate
        """What `blockchain.estimatefee` says, in sat/vB, whatever the target."""
        self.table: dict[str, Callable[..., Json]] = {
            "server.features": self.features,
            "server.ping": lambda: None,
            "server.banner": lambda: "a regtest world in a box",
            "server.donation_address": lambda: "",
            "server.peers.subscribe": list,
            "blockchain.block.header": self.block_header,
            "blockchain.block.headers": self.block_headers,
            "blockchain.estimatefee": self.estimate_fee,
            "blockchain.relayfee": lambda: self._mempool.min_relay / 10**5,
            "blockchain.scripthash.get_balance": self.balance,
            "blockchain.scripthash.get_history": self.history,
            "blockchain.scripthash.get_mempool": self.unconfirmed,
            "blockchain.scripthash.listunspent": self.unspent,
            "blockchain.transaction.broadcast": self.broadcast,
            "blockchain.transaction.get": self.transaction,
            "blockchain.transaction.get_merkle": self.merkle,
            "blockchain.transaction.id_from_pos": self.id_from_position,
            "mempool.get_fee_histogram": self.fee_histogram,
        }

        self.newer_table: dict[str, Callable[..., Json]] = {
            "blockchain.block.headers": self.block_headers_listed,
            "blockchain.transaction.broadcast_package": self.broadcast_package,
        }
        """What is new or different in 1.6."""

    def features(self) -> Json:
        return {
            "genesis_hash": shown(GENESIS),
            "hash_function": "sha256",
            "server_version": SOFTWARE,
            "protocol_min": ".".join(map(str, PROTOCOL_MIN)),
            "protocol_max": ".".join(map(str, PROTOCOL_MAX)),
            "pruning": None,
            "hosts": {},
        }

    # Blocks

    def tip(self) -> Mapping[str, Json]:
        height = self._chain.height
        return {"height": height, "hex": self._chain.header(height).hex()}

    def block_header(self, height: object, cp_height: object = 0) -> Json:
        at, checkpoint = self._height(height), self._height(cp_height, "cp_height")
        header = self._chain.header(at).hex()
        if not checkpoint:
            return header
        return {"header": header, **self._header_proof(at, checkpoint)}

    def block_headers(self, start_height: object, count: object, cp_height: object = 0) -> Json:
        start, wanted = natural(start_height, "start_height"), natural(count, "count")
        checkpoint = self._height(cp_height, "cp_height")
        heights = range(start, min(start + min(wanted, MAX_HEADERS), self._chain.height + 1))
        found = b"".join(self._chain.header(height) for height in heights)
        answer: dict[str, Json] = {"hex": found.hex(), "count": len(found) // 80, "max": MAX_HEADERS}
        if checkpoint and heights:
            answer |= self._header_proof(heights[-1], checkpoint)
        return answer

    def block_headers_listed(self, start_height: object, count: object, cp_height: object = 0) -> Json:
        answer = self.block_headers(start_height, count, cp_height)
        assert isinstance(answer, dict)
        joined = answer.pop("hex")
        return answer | {"headers": [joined[at : at + 160] for at in range(0, len(joined), 160)]}

    def estimate_fee(self, number: object, mode: object = None) -> Json:
        natural(number, "number")
        return self.fee_rate / 10**5

    def fee_histogram(self) -> Json:
        rates: dict[int, int] = {}
        for entry in self._mempool.entries.values():
            rate = entry.fee // entry.vsize
            rates[rate] = rates.get(rate, 0) + entry.vsize
        return [[rate, rates[rate]] for rate in sorted(rates, reverse=True)]

    # Scripts

    def status(self, script: bytes) -> str | None:
        """The hash over a script's whole history that tells a client whether anything is new to it."""
        history = [(shown(seen.txid), seen.height) for seen in self._index.history(script)]
        for entry in self._mempool.history(script):
            history.append((shown(entry.txid), -1 if entry.parents else 0))
        text = "".join(f"{txid}:{height}:" for txid, height in history)
        return sha256(text.encode()).hexdigest() if text else None

    def history(self, scripthash: object) -> Json:
        script = hash_of(scripthash, "scripthash")
        confirmed = self._index.history(script)
        if len(confirmed) > MAX_HISTORY:
            raise RpcError(BAD_REQUEST, f"history too large: more than {MAX_HISTORY} transactions")
        return [{"height": seen.height, "tx_hash": shown(seen.txid)} for seen in confirmed] + self._unconfirmed(script)

    def unconfirmed(self, scripthash: object) -> Json:
        return self._unconfirmed(hash_of(scripthash, "scripthash"))

    def balance(self, scripthash: object) -> Json:
        script = hash_of(scripthash, "scripthash")
        confirmed = sum(coin.output.value for coin in self._index.unspent(script).values())
        total = sum(coin.output.value for coin in self._mempool.unspent(script).values())
        return {"confirmed": confirmed, "unconfirmed": total - confirmed}

    def unspent(self, scripthash: object) -> Json:
        found = self._mempool.unspent(hash_of(scripthash, "scripthash"))
        return [
            {
                "tx_hash": shown(outpoint.txid),
                "tx_pos": outpoint.vout,
                "height": coin.height,
                "value": coin.output.value,
            }
            for outpoint, coin in found.items()
        ]

    # Transactions

    def broadcast(self, raw_tx: object) -> Json:
        try:
            return shown(self._mempool.submit(hex_of(raw_tx, "raw_tx")))
        except Rejected as error:
            raise RpcError(
                BAD_REQUEST, f"the transaction was rejected by network rules.\n\n{error.sentence}"
            ) from error

    def broadcast_package(self, raw_txs: object, verbose: object = False) -> Json:
        """A child with its unconfirmed parents, the child last (protocol 1.6)."""
        if not isinstance(raw_txs, list) or len(raw_txs) > MAX_PACKAGE:
            raise RpcError(BAD_PARAMETERS, f"raw_txs must be a list of at most {MAX_PACKAGE}")
        try:
            results = self._mempool.submit_package([hex_of(raw, "raw_txs") for raw in raw_txs])
        except Rejected as error:
            raise RpcError(BAD_REQUEST, f"the package was rejected by network rules.\n\n{error.sentence}") from error
        errors: list[Json] = [
            {"txid": shown(txid), "error": error.sentence} for txid, error in results.items() if error
        ]
        return {"success": False, "errors": errors} if errors else {"success": True}

    def transaction(self, tx_hash: object, verbose: object = False) -> Json:
        txid = hash_of(tx_hash, "tx_hash")
        if txid in self._mempool.entries:
            raw, height = self._mempool.entries[txid].raw, None
        elif txid in self._index.transactions:
            seen = self._index.transactions[txid]
            raw, height = seen.raw, seen.height
        else:
            raise RpcError(DAEMON_ERROR, "no such mempool or blockchain transaction")
        return self._described(raw, height) if verbose else raw.hex()

    def merkle(self, tx_hash: object, height: object) -> Json:
        txid, at = hash_of(tx_hash, "tx_hash"), self._height(height)
        txids = self._index.blocks[at]
        if txid not in txids:
            raise RpcError(BAD_REQUEST, f"tx {shown(txid)} not in block at height {at}")
        position = txids.index(txid)
        return {"block_height": at, "pos": position, "merkle": _shown_branch(txids, position)}

    def id_from_position(self, height: object, tx_pos: object, merkle: object = False) -> Json:
        at, position = self._height(height), natural(tx_pos, "tx_pos")
        txids = self._index.blocks[at]
        if position >= len(txids):
            raise RpcError(BAD_REQUEST, f"no tx at position {position:,} in block at height {at:,}")
        txid = shown(txids[position])
        return {"tx_hash": txid, "merkle": _shown_branch(txids, position)} if merkle else txid

    # Parts

    def _height(self, value: object, name: str = "height") -> int:
        height = natural(value, name)
        if height > self._chain.height:
            raise RpcError(BAD_REQUEST, f"{name} {height:,} is beyond the tip at {self._chain.height:,}")
        return height

    def _header_proof(self, height: int, checkpoint: int) -> Mapping[str, Json]:
        if height > checkpoint:
            raise RpcError(BAD_REQUEST, f"header height {height:,} must be <= cp_height {checkpoint:,}")
        hashes = [self._chain.block_hash(at) for at in range(checkpoint + 1)]
        branch, root = merkle_branch(hashes, height)
        return {"branch": [shown(hash_) for hash_ in branch], "root": shown(root)}

    def _unconfirmed(self, script: bytes) -> list[Json]:
        return [
            {"height": -1 if entry.parents else 0, "tx_hash": shown(entry.txid), "fee": entry.fee}
            for entry in self._mempool.history(script)
        ]

    def _described(self, raw: bytes, height: int | None) -> Json:
        """The part of bitcoind's verbose answer that does not need to understand scripts."""
        parsed = CTransaction.deserialize(raw)
        weight = policy.weight(parsed)
        answer: dict[str, Json] = {
            "txid": shown(parsed.GetTxid()),
            "hash": shown(parsed.GetHash()),
            "version": parsed.nVersion,
            "size": len(raw),
            "vsize": -(-weight // 4),
            "weight": weight,
            "locktime": parsed.nLockTime,
            "vin": [
                {
                    "txid": shown(txin.prevout.hash),
                    "vout": txin.prevout.n,
                    "scriptSig": {"hex": bytes(txin.scriptSig).hex()},
                    "txinwitness": [item.hex() for item in policy.witness(parsed, position)],
                    "sequence": txin.nSequence,
                }
                for position, txin in enumerate(parsed.vin)
            ],
            "vout": [
                {
                    "value": output.nValue / 10**8,
                    "n": position,
                    "scriptPubKey": {"hex": bytes(output.scriptPubKey).hex()},
                }
                for position, output in enumerate(parsed.vout)
            ],
            "hex": raw.hex(),
        }
        if height is not None:
            (time,) = struct.unpack_from("<I", self._chain.header(height), 68)
            answer |= {
                "blockhash": shown(self._chain.block_hash(height)),
                "confirmations": self._chain.height - height + 1,
                "time": time,
                "blocktime": time,
            }
        return answer


def call(function: Callable[..., Json], parameters: object) -> Json:
    """Call with JSON-RPC parameters, by position or by name; raises `RpcError` if they do not fit."""
    arguments = parameters if isinstance(parameters, list) else []
    named = parameters if isinstance(parameters, dict) else {}
    if not isinstance(parameters, list | dict):
        raise RpcError(BAD_PARAMETERS, "params must be a list or an object")
    try:
        bound = inspect.signature(function).bind(*arguments, **named)
    except TypeError as error:
        raise RpcError(BAD_PARAMETERS, str(error)) from error
    return function(*bound.args, **bound.kwargs)


def natural(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise RpcError(BAD_PARAMETERS, f"{name} must be a non-negative integer")
    return value


def hex_of(value: object, name: str) -> bytes:
    try:
        if isinstance(value, str):
            return bytes.fromhex(value)
    except ValueError:
        pass
    raise RpcError(BAD_PARAMETERS, f"{name} must be a hexadecimal string")


def hash_of(value: object, name: str) -> bytes:
    """A hash in internal order from one as it is shown."""
    found = hex_of(value, name)
    if len(found) != 32:
        raise RpcError(BAD_PARAMETERS, f"{name} must be 64 hexadecimal digits")
    return found[::-1]


def merkle_branch(hashes: Sequence[bytes], position: int) -> tuple[list[bytes], bytes]:
    """The hashes that lead from one of a tree's leaves to its root, and the root."""
    branch: list[bytes] = []
    level = list(hashes)
    while len(level) > 1:
        if len(level) % 2:
            level.append(level[-1])
        branch.append(level[position ^ 1])
        level = [Hash(level[i] + level[i + 1]) for i in range(0, len(level), 2)]
        position //= 2
    return branch, level[0]


def _shown_branch(txids: Sequence[bytes], position: int) -> list[Json]:
    return [shown(hash_) for hash_ in merkle_branch(txids, position)[0]]
