"""A regtest chain judged by Bitcoin Core's own consensus code, in this process.

`Chain` wraps py-bitcoinkernel: it builds blocks, grinds them (every second hash will do on regtest), hands
them to the kernel and says in Bitcoin Core's words why one was refused. There is no mempool and no wallet
here.

Every call blocks, for well under a millisecond unless it mines many blocks or opens a long chain; the world
runs them inline in its trio tasks. A `Chain` belongs to one thread, and its data directory to one process.
"""

import struct
import time as system_time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pbk
from attrs import field, frozen
from bitcoin.core import (
    CBlock,
    CMutableTransaction,
    CMutableTxIn,
    CMutableTxOut,
    COutPoint,
    CTransaction,
    CTxInWitness,
    CTxWitness,
    Hash,
)
from bitcoin.core.script import CScript, CScriptWitness

from protocols.contract.sighash import TxOut
from protocols.errors import LocalError, WorldError

__all__ = [
    "ANYONE",
    "COINBASE_MATURITY",
    "GENESIS",
    "BlockChange",
    "BlockRejected",
    "Chain",
    "ScriptRefused",
    "TxOut",
    "check_scripts",
    "merkle_root",
    "subsidy",
]

GENESIS = bytes.fromhex("06226e46111a0b59caaf126043eb5bbf28c34f3a5e332a1fc7b2b73cf188910f")
"""Hash of regtest's first block, internal byte order."""
COINBASE_MATURITY = 100
"""A coinbase of height h may be spent in block h + 100."""
ANYONE = b"\x51"
"""The script OP_TRUE: whoever mines to it gives the coins away."""

_BITS = 0x207FFFFF
_HALVING = 150
_RESERVED = bytes(32)
_COMMITMENT = b"\x6a\x24\xaa\x21\xa9\xed"


class BlockRejected(LocalError):
    """The kernel refused a block; `reason` is Bitcoin Core's own, such as ``bad-txns-nonfinal``."""

    def __init__(self, reason: str) -> None:
        super().__init__("block_rejected", f"the block was refused: {reason}")
        self.reason = reason


class ScriptRefused(LocalError):
    """The kernel's interpreter refused the witness of input `index`."""

    def __init__(self, index: int) -> None:
        super().__init__("script_refused", f"input {index} does not satisfy the script that it spends")
        self.index = index


@frozen
class BlockChange:
    """One block joined (`connected`) or left the active chain."""

    connected: bool
    height: int
    hash: bytes
    raw: bytes = field(repr=False)

    def transactions(self) -> tuple[CTransaction, ...]:
        return tuple(CBlock.deserialize(self.raw).vtx)


def subsidy(height: int) -> int:
    """What a block of that height may create, in satoshis: regtest halves it every 150 blocks."""
    halvings = height // _HALVING
    return 50 * 10**8 >> halvings if halvings < 64 else 0


def merkle_root(hashes: Sequence[bytes]) -> bytes:
    """Root of Bitcoin's merkle tree over at least one 32-byte hash."""
    level = list(hashes)
    while len(level) > 1:
        if len(level) % 2:
            level.append(level[-1])
        level = [Hash(level[i] + level[i + 1]) for i in range(0, len(level), 2)]
    return level[0]


def check_scripts(raw: bytes, spent: Sequence[TxOut]) -> None:
    """Run every input of a serialized transaction through the consensus interpreter (BIP16 to BIP342).

    `spent` are the outputs that it spends, in the order of its inputs. Raises `ScriptRefused` for the first
    input that fails. Amounts, lock times and sequences against the chain are not judged here.
    """
    transaction = pbk.Transaction(raw)
    if len(spent) != len(transaction.inputs):
        raise ValueError(f"{len(spent)} spent outputs for {len(transaction.inputs)} inputs")
    scripts = [pbk.ScriptPubkey(output.script) for output in spent]
    outputs = [pbk.TransactionOutput(script, o.value) for script, o in zip(scripts, spent, strict=True)]
    shared = pbk.script.PrecomputedTransactionData(transaction, outputs)
    for index, output in enumerate(spent):
        if not scripts[index].verify(output.value, transaction, shared, index, pbk.ScriptVerificationFlags.ALL):
            raise ScriptRefused(index)


class Chain:
    """The active chain of one data directory. Hashes are bytes in internal order, blocks and headers raw bytes."""

    def __init__(self, datadir: Path, *, wall: Callable[[], float] = system_time.time) -> None:
        """Open or create the chain; raises `WorldError` (code ``chain_directory``) if that fails.

        `wall` gives the seconds since 1970 for blocks that are mined without a time of their own. The kernel
        itself refuses blocks that are two hours ahead of the machine's clock.
        """
        self._wall = wall
        self._built = 0
        self._log: deque[str] = deque(maxlen=50)
        self._refused = False
        self._changes: list[BlockChange] = []
        self.listeners: list[Callable[[Sequence[BlockChange]], None]] = []
        """Called after each block that changed the active chain, with the changes in order."""
        self._connection = pbk.LoggingConnection(self._on_line)
        callbacks = pbk.ValidationInterfaceCallbacks(
            block_checked=self._on_checked,
            block_connected=lambda _, block, entry: self._on_change(True, block, entry),
            block_disconnected=lambda _, block, entry: self._on_change(False, block, entry),
        )
        try:
            datadir.mkdir(parents=True, exist_ok=True)
            self._manager = pbk.load_chainman(datadir, pbk.ChainType.REGTEST, callbacks)
        except (RuntimeError, OSError) as error:
            said = self._reason("] ") or str(error)
            raise WorldError("chain_directory", f"cannot open the chain in {datadir}: {said}") from error
        self._active = self._manager.get_active_chain()
        self._journal = (datadir / "journal").open("a+b")
        self._replay()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Flush to disk and give the data directory free. Nothing else may be called afterwards."""
        self.listeners.clear()
        self._journal.close()
        # the kernel closes when the last reference goes
        del self._active, self._manager, self._connection

    # Reading

    @property
    def height(self) -> int:
        return int(self._active.height)

    @property
    def tip(self) -> bytes:
        """Hash of the last block."""
        return self.block_hash(self.height)

    def block_hash(self, height: int) -> bytes:
        """Hash of the active block at a height; raises IndexError past the tip."""
        return bytes(self._active.block_tree_entries[self._checked(height)].block_hash)

    def header(self, height: int) -> bytes:
        """The 80 bytes of the active header at a height; raises IndexError past the tip."""
        return bytes(self._active.block_tree_entries[self._checked(height)].block_header)

    def block(self, height: int) -> bytes:
        """The raw active block at a height; raises IndexError past the tip."""
        return bytes(self._manager.blocks[self._active.block_tree_entries[self._checked(height)]])

    def height_of(self, block_hash: bytes) -> int | None:
        """Height of a block in the active chain, or None."""
        try:
            entry = self._manager.block_tree_entries[pbk.BlockHash(block_hash)]
        except KeyError:
            return None
        return int(entry.height) if entry in self._active.block_tree_entries else None

    def median_time(self, block_hash: bytes | None = None) -> int:
        """Median time past as of a block (default: the tip): the next block must be later than this
        (BIP113)."""
        entry = self._entry(self.tip if block_hash is None else block_hash)
        times = []
        for height in range(entry.height, max(-1, entry.height - 11), -1):
            header = bytes(entry.get_ancestor(height).block_header)
            times.append(int.from_bytes(header[68:72], "little"))
        return sorted(times)[len(times) // 2]

    def blocks(self) -> Iterator[BlockChange]:
        """Every block of the active chain from height 1, as if it had just been connected."""
        for height in range(1, self.height + 1):
            yield BlockChange(True, height, self.block_hash(height), self.block(height))

    # Writing

    def build(
        self,
        transactions: Iterable[CTransaction | bytes] = (),
        *,
        script: bytes = ANYONE,
        time: int | None = None,
        parent: bytes | None = None,
    ) -> bytes:
        """A block with a valid proof of work on `parent` (default: the tip), not submitted.

        The coinbase pays the subsidy to `script` and claims no fees. `time` defaults to the wall clock, but
        is always later than the median of the last eleven blocks when not given.
        """
        parent = self.tip if parent is None else parent
        height = self._entry(parent).height + 1
        if time is None:
            time = max(int(self._wall()), self.median_time(parent) + 1)
        parsed = [CTransaction.deserialize(t) if isinstance(t, bytes) else t for t in transactions]
        # a number of its own keeps two blocks on one parent in one second from being the same block
        self._built += 1
        tag = CScript([height, struct.pack("<I", self._built)])
        witness_root = merkle_root([bytes(32), *(t.GetHash() for t in parsed)])
        coinbase = CMutableTransaction(
            [CMutableTxIn(COutPoint(), tag)],
            [
                CMutableTxOut(subsidy(height), CScript(script)),
                CMutableTxOut(0, CScript(_COMMITMENT + Hash(witness_root + _RESERVED))),
            ],
        )
        coinbase.wit = CTxWitness([CTxInWitness(CScriptWitness([_RESERVED]))])
        root = merkle_root([coinbase.GetTxid(), *(t.GetTxid() for t in parsed)])
        start = struct.pack("<i", 0x20000000) + parent + root + struct.pack("<II", time, _BITS)
        nonce = 0
        while (header := start + struct.pack("<I", nonce)) and Hash(header)[31] > 0x7E:
            nonce += 1
        block: bytes = header + _count(1 + len(parsed)) + b"".join(t.serialize() for t in [coinbase, *parsed])
        return block

    def submit(self, block: bytes) -> bytes:
        """Hand a raw block to the kernel and return its hash; raises `BlockRejected` with Bitcoin Core's
        reason.

        A valid block that does not make the most work is kept aside without a word: it joins when its branch
        wins.
        """
        self._log.clear()
        self._refused = False
        try:
            new = self._manager.process_block(pbk.Block(block))
        except pbk.ProcessBlockException as error:
            raise BlockRejected(self._reason("FAILED (") or str(error)) from error
        except RuntimeError as error:
            raise BlockRejected("block-decode-failed") from error
        changes, self._changes = self._changes, []
        if changes:
            for listener in self.listeners:
                listener(changes)
        if self._refused:
            raise BlockRejected(self._reason("failed, ") or self._reason("error: ") or "invalid")
        if new:
            self._journal.write(struct.pack("<I", len(block)) + block)
            self._journal.flush()
        return bytes(Hash(block[:80]))

    def mine(
        self,
        transactions: Iterable[CTransaction | bytes] = (),
        *,
        script: bytes = ANYONE,
        time: int | None = None,
    ) -> bytes:
        """Build a block on the tip and submit it: see `build` and `submit`. Returns its hash."""
        return self.submit(self.build(transactions, script=script, time=time))

    def mine_many(self, count: int, *, script: bytes = ANYONE) -> None:
        """Mine that many blocks without transactions, the coinbases to `script`."""
        for _ in range(count):
            self.mine(script=script)

    def _replay(self) -> None:
        """Give the kernel again what it had not written to disk: killed, it forgets hundreds of blocks."""
        self._journal.seek(0)
        end = 0
        while len(length := self._journal.read(4)) == 4:
            block = self._journal.read(struct.unpack("<I", length)[0])
            try:
                if self.height_of(Hash(block[:80])) is None:
                    self._manager.process_block(pbk.Block(block))
            except (pbk.ProcessBlockException, RuntimeError):
                break
            end = self._journal.tell()
        self._journal.truncate(end)
        self._journal.seek(end)
        self._changes.clear()

    # From the kernel

    def _on_line(self, line: str) -> None:
        self._log.append(line)

    def _on_checked(self, _: object, block: object, state: "pbk.BlockValidationState") -> None:
        if state.validation_mode != pbk.ValidationMode.VALID:
            self._refused = True

    def _on_change(self, connected: bool, block: "pbk.Block", entry: "pbk.BlockTreeEntry") -> None:
        if entry.height:  # the genesis block is announced too, once, but it is always there
            change = BlockChange(connected, int(entry.height), bytes(block.block_hash), bytes(block))
            self._changes.append(change)

    def _reason(self, before: str) -> str | None:
        """The rest of the last log line that holds `before`: the kernel gives its reasons in no other way."""
        for line in reversed(self._log):
            _, found, rest = line.partition(before)
            if found:
                rest = rest.strip()
                return rest.removesuffix(")") if before.endswith("(") else rest
        return None

    def _entry(self, block_hash: bytes) -> "pbk.BlockTreeEntry":
        try:
            return self._manager.block_tree_entries[pbk.BlockHash(block_hash)]
        except KeyError:
            raise LocalError("unknown_block", f"the chain does not know the block {block_hash[::-1].hex()}") from None

    def _checked(self, height: int) -> int:
        if not 0 <= height <= self.height:
            raise IndexError(f"height {height} is not within 0 … {self.height}")
        return height


def _count(number: int) -> bytes:
    """Bitcoin's compact size."""
    if number < 0xFD:
        return bytes([number])
    return b"\xfd" + struct.pack("<H", number) if number <= 0xFFFF else b"\xfe" + struct.pack("<I", number)
