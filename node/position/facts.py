"""From a protocol's fact to a command on a position: protocols never name domain events."""

from __future__ import annotations

from node.eventstore.interface import Blob
from node.position.closing import complete_close, complete_spend, sign_close, sign_spend
from node.position.commands import Command, begin_attempt, complete_lock, complete_setup, hold_signatures, recover
from node.position.events import Event, signatures_blob
from node.position.evolve import evolve
from node.position.rolling import begin_rollover, complete_rollover, hold_revocation, hold_rollover, revoke
from node.position.state import Position
from protocols import contract_setup, positions, rollover, settlement
from protocols.contract.signing import Signatures
from protocols.dialogue import Fact
from protocols.errors import LocalError

Made = tuple[bytes, Command, tuple[Blob, ...]]


def command_of(fact: Fact, peer: bytes) -> Made:
    """The order id, the command, and the blobs stored with its first event. `peer`: who the dialogue is with."""
    match fact:
        case contract_setup.AttemptBegun():
            return fact.order.order_id, begin_attempt(fact, peer), ()
        case contract_setup.SignaturesHeld():
            return fact.order_id, hold_signatures(fact), (_blob(fact.index, fact.signatures),)
        case contract_setup.SetupComplete():
            return fact.order_id, complete_setup(fact), ()
        case contract_setup.LockComplete():
            return fact.order_id, complete_lock(fact), ()
        case rollover.RolloverBegun():
            return fact.order_id, begin_rollover(fact, peer), ()
        case rollover.RolloverHeld():
            return fact.order_id, hold_rollover(fact, peer), (_blob(fact.index, fact.signatures),)
        case rollover.RolloverComplete():
            return fact.order_id, complete_rollover(fact, peer), ()
        case rollover.RevocationLeaves():
            return fact.order_id, revoke(fact, peer), ()
        case rollover.RevocationHeld():
            return fact.order_id, hold_revocation(fact, peer), ()
        case rollover.Together():
            return _together([command_of(each, peer) for each in fact.facts])
        case settlement.CloseSigned():
            return fact.order_id, sign_close(fact, peer), ()
        case settlement.CloseComplete():
            return fact.order_id, complete_close(fact, peer), ()
        case settlement.SpendSigned():
            return fact.order_id, sign_spend(fact, peer), ()
        case settlement.SpendComplete():
            return fact.order_id, complete_spend(fact, peer), ()
        case positions.PeerAhead():
            return fact.order_id, recover("the peer showed a signature of ours that this record knows nothing of"), ()
    raise LocalError("unknown_fact", f"no position remembers a {type(fact).__name__}")


def _together(made: list[Made]) -> Made:
    """All or none, in one append."""
    order_id, _, _ = made[0]
    commands = [command for _, command, _ in made]

    def decide(position: Position) -> list[Event]:
        events: list[Event] = []
        for command in commands:
            for event in command(position):
                position = evolve(position, event)
                events.append(event)
        return events

    return order_id, decide, tuple(blob for _, _, blobs in made for blob in blobs)


def _blob(index: int, signatures: Signatures) -> Blob:
    return Blob(signatures_blob(index), encode_signatures(signatures))


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
