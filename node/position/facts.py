"""From a protocol's fact to a command on a position: protocols never name domain events."""

from __future__ import annotations

from node.eventstore.interface import Blob
from node.position.commands import Command, begin_attempt, complete_lock, complete_setup, hold_signatures
from node.position.events import signatures_blob
from protocols.contract.signing import Signatures
from protocols.contract_setup import AttemptBegun, LockComplete, SetupComplete, SignaturesHeld
from protocols.dialogue import Fact
from protocols.errors import LocalError


def command_of(fact: Fact, peer: bytes) -> tuple[bytes, Command, tuple[Blob, ...]]:
    """The order id, the command, and the blobs stored with its first event. `peer`: who the dialogue is with."""
    match fact:
        case AttemptBegun():
            return fact.order.order_id, begin_attempt(fact, peer), ()
        case SignaturesHeld():
            blob = Blob(signatures_blob(fact.index), encode_signatures(fact.signatures))
            return fact.order_id, hold_signatures(fact), (blob,)
        case SetupComplete():
            return fact.order_id, complete_setup(fact), ()
        case LockComplete():
            return fact.order_id, complete_lock(fact), ()
    raise LocalError("unknown_fact", f"no position remembers a {type(fact).__name__}")


def encode_signatures(signatures: Signatures) -> bytes:
    """Refund signature (64 bytes), then for each event a length (4 bytes, big-endian) and its CET signatures."""
    return signatures.refund + b"".join(len(cets).to_bytes(4, "big") + cets for cets in signatures.cets)


def decode_signatures(data: bytes) -> Signatures:
    refund, cets, offset = data[:64], [], 64
    while offset < len(data):
        size = int.from_bytes(data[offset : offset + 4], "big")
        cets.append(data[offset + 4 : offset + 4 + size])
        offset += 4 + size
    return Signatures(refund, tuple(cets))
